"""Detection: the model against torchvision's, scores against pycocotools and by hand, and a run."""

import json

import numpy as np
import pytest
import torch
from torch import nn
from torchvision.models.detection import MaskRCNN, maskrcnn_resnet50_fpn
from torchvision.ops import MultiScaleRoIAlign

import fastmim
from annotated import DETECT
from conftest import killed, lines, mostly_slow, same, weights
from fastmim.cli.entry import main
from fastmim.config.detect import RcnnConfig
from fastmim.data.annotations.instances import Annotated, InstanceImages
from fastmim.data.sources.base import ArrayImages
from fastmim.downstream.detection.model import unpacked
from fastmim.downstream.detection.prediction import as_results, pasted
from fastmim.downstream.detection.rcnn import Detector, RegionPool
from fastmim.downstream.detection.scores import coco_figures, ground_truth, score
from fastmim.errors import UsageError
from fastmim.report.objects import Detections

EVERYTHING = {"ema": 0.9, "paste": 0.5, "head.upgraded": True, "activation_checkpointing": True}


# The model.


class Pyramid(nn.Module):
    """torchvision's own ResNet-50 as four maps."""

    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body = body
        self.widths = (256, 512, 1024, 2048)

    def forward(self, images):
        return list(self.body(images).values())


def targets(count: int) -> list[dict[str, torch.Tensor]]:
    generator = torch.Generator().manual_seed(5)
    found = []
    for _ in range(count):
        corners = torch.rand(3, 2, 2, generator=generator) * 90
        boxes = torch.cat([corners.amin(1), corners.amax(1) + 20], dim=1)
        masks = torch.zeros(3, 128, 128, dtype=torch.uint8)
        for mask, (x1, y1, x2, y2) in zip(masks, boxes.int().tolist(), strict=True):
            mask[y1:y2, x1:x2] = 1
        labels = torch.randint(1, 4, (3,), generator=generator)
        found.append({"boxes": boxes, "labels": labels, "masks": masks})
    return found


def both(anchors=(32, 64, 128, 256, 512)) -> tuple[MaskRCNN, Detector]:
    torch.manual_seed(0)
    theirs = maskrcnn_resnet50_fpn(weights=None, weights_backbone=None, num_classes=4)
    theirs.transform.min_size, theirs.transform.max_size = (128,), 128
    theirs.transform.torch_choice = lambda sides: sides[0]  # which draws a number even from one side
    theirs.transform.image_mean, theirs.transform.image_std = [0.0] * 3, [1.0] * 3
    ours = Detector(Pyramid(theirs.backbone.body), 3, RcnnConfig(aligned=False, anchors=anchors), masks=True)
    ours.fpn.load_state_dict(theirs.backbone.fpn.state_dict())
    ours.rpn.load_state_dict(theirs.rpn.state_dict())
    ours.heads.load_state_dict(theirs.roi_heads.state_dict())
    return theirs, ours


def test_losses_are_those_of_torchvisions_own_model():
    theirs, ours = both()
    images = torch.rand(2, 3, 128, 128, generator=torch.Generator().manual_seed(1))
    torch.manual_seed(7)
    expected = theirs.train()(list(images), targets(2))
    torch.manual_seed(7)
    _, losses = ours.train()(images, [(128, 128)] * 2, targets(2))
    assert losses.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(losses[name], value)


def test_detections_are_those_of_torchvisions_own_model():
    theirs, ours = both()
    images = torch.rand(2, 3, 128, 128, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        theirs.roi_heads.score_thresh = ours.heads.score_thresh = 0.2
        for proposals in (theirs.rpn, ours.rpn):
            proposals._post_nms_top_n["testing"] = 100
        found, _ = ours.eval()(images, [(128, 128)] * 2)
        expected = theirs.eval()(list(images))
    for one, other in zip(found, expected, strict=True):
        assert len(one["boxes"]) == len(other["boxes"]) > 0
        torch.testing.assert_close(one["boxes"], other["boxes"])
        torch.testing.assert_close(one["scores"], other["scores"])


def test_the_pool_is_torchvisions_where_it_is_not_aligned():
    maps = {str(n): torch.randn(2, 4, 64 >> n, 64 >> n) for n in range(4)}
    generator = torch.Generator().manual_seed(0)
    corners = torch.rand(2, 20, 2, 2, generator=generator) * 250
    boxes = [torch.cat([part.amin(1), part.amax(1) + 1], dim=1) for part in corners]
    theirs = MultiScaleRoIAlign(list(maps), 7, 2)(maps, boxes, [(256, 256)] * 2)
    torch.testing.assert_close(RegionPool(7, aligned=False)(maps, boxes, [(256, 256)] * 2), theirs)


def test_an_aligned_pool_reads_the_middle_of_a_cell():
    """On a map that holds its own coordinates, the value of a cell is the middle of that part of the box."""
    columns = torch.arange(64, dtype=torch.float32) * 4 + 2  # the middle of each position, in pixels
    maps = {str(n): torch.zeros(1, 1, 64 >> n, 64 >> n) for n in range(4)}
    maps["0"] = columns.view(1, 1, 1, -1).expand(1, 1, 64, 64).contiguous()
    box = torch.tensor([[40.0, 60.0, 96.0, 88.0]])
    pooled = RegionPool(7, aligned=True)(maps, [box], [(256, 256)])[0, 0, 0]
    assert pooled.tolist() == pytest.approx([40 + 8 * (n + 0.5) for n in range(7)], abs=1e-4)


@pytest.mark.parametrize("upgraded", [False, True])
def test_boxes_and_losses_are_float32_under_autocast(upgraded):
    config = RcnnConfig(channels=16, hidden=32, upgraded=upgraded)

    class Small(nn.Module):
        widths = (8, 8, 8, 8)

        def __init__(self) -> None:
            super().__init__()
            self.convolution = nn.Conv2d(3, 8, 4, 4)

        def forward(self, images):
            map_ = self.convolution(images)
            return [nn.functional.avg_pool2d(map_, 2**n) for n in range(4)]

    torch.manual_seed(0)
    model = Detector(Small(), 3, config, masks=True)
    images = torch.rand(2, 3, 128, 128)
    with torch.autocast("cpu", torch.bfloat16):
        torch.manual_seed(1)
        _, losses = model.train()(images, [(128, 128)] * 2, targets(2))
        assert {loss.dtype for loss in losses.values()} == {torch.float32}
        model.heads.score_thresh = 0.0
        found, _ = model.eval()(images, [(128, 128), (100, 128)])
    assert {row["boxes"].dtype for row in found} == {torch.float32}
    assert found[1]["boxes"][:, 3].max() <= 100  # clipped to the image, not to its canvas
    sum(losses.values()).backward()
    assert [name for name, p in model.named_parameters() if p.grad is None] == []


def test_an_upgraded_detector_has_more_layers():
    plain, upgraded = (
        Detector(Pyramid(nn.Identity()), 3, RcnnConfig(upgraded=value), masks=True) for value in (False, True)
    )

    def count(model: nn.Module, kind: type) -> int:
        return sum(isinstance(module, kind) for module in model.modules())

    assert count(plain, nn.BatchNorm2d) == 0
    assert count(upgraded.fpn, nn.BatchNorm2d) == 8
    assert (
        count(upgraded.heads.box_head, nn.BatchNorm2d) == count(upgraded.heads.mask_head, nn.BatchNorm2d) == 4
    )
    assert count(upgraded.rpn.head.conv, nn.Conv2d) == 2
    assert count(upgraded.heads.box_head, nn.Linear) == 1


# Masks.


def test_unpacking_is_numpys():
    masks = np.random.default_rng(0).integers(0, 2, (3, 5, 13), np.uint8)
    packed = torch.from_numpy(np.packbits(masks, axis=-1))
    assert torch.equal(unpacked(packed, 13), torch.from_numpy(masks))


def test_a_mask_fills_its_box():
    masks, boxes = torch.ones(1, 28, 28), torch.tensor([[10.0, 5.0, 30.0, 45.0]])
    whole = pasted(masks, boxes, (60, 50))
    expected = torch.zeros(60, 50, dtype=torch.bool)
    expected[5:45, 10:30] = True
    assert torch.equal(whole[0], expected)
    left = torch.cat([torch.ones(1, 28, 14), torch.zeros(1, 28, 14)], dim=2)
    assert pasted(left, boxes, (60, 50))[0].sum() == 40 * 10


# Scores.


def truth(boxes: list[list[float]], labels: list[int], crowd: list[bool] | None = None) -> InstanceImages:
    flags = crowd or [False] * len(boxes)
    corners = np.array(boxes, np.float32).reshape(-1, 4)
    masks = tuple(
        [np.array([[x1, y1], [x2, y1], [x2, y2], [x1, y2]], np.float32)] for x1, y1, x2, y2 in corners
    )
    areas = np.prod(corners[:, 2:] - corners[:, :2], axis=1)
    objects = Annotated(corners, np.array(labels), np.array(flags), masks, areas.astype(np.float32))
    source = ArrayImages(np.zeros((1, 100, 100, 3), np.uint8), "image")
    return InstanceImages(source, np.arange(1), (objects,), ("a", "b"), (3, 7), (42,), True)


def found(boxes: list[list[float]], scores: list[float], labels: list[int]) -> Detections:
    masks = np.zeros((len(boxes), 100, 100), bool)
    for mask, (x1, y1, x2, y2) in zip(masks, boxes, strict=True):
        mask[round(y1) : round(y2), round(x1) : round(x2)] = True
    corners = np.array(boxes, np.float32).reshape(-1, 4)
    return Detections(corners, np.array(scores, np.float32), np.array(labels), masks)


A, B, C = [10.0, 10.0, 50.0, 50.0], [60.0, 60.0, 90.0, 95.0], [5.0, 60.0, 30.0, 90.0]


def scored(data: InstanceImages, detections: Detections):
    return score(as_results(detections, 42, data.category_ids), data, {0: (100, 100)}, [], masks=True)


def test_perfect_detections_have_an_ap_of_1():
    scores = scored(truth([A, B, C], [0, 1, 1]), found([A, B, C], [0.9, 0.8, 0.7], [0, 1, 1]))
    assert scores.box["AP"] == scores.box["AP50"] == scores.box["AR_100"] == 100
    assert scores.mask is not None
    assert scores.mask["AP"] == 100
    assert scores.per_class == {"a": {"box": 100, "mask": 100}, "b": {"box": 100, "mask": 100}}
    assert scores.image_ap == {0: 1.0}
    assert scores.precision["box"] == [1.0] * 101


def test_ap_by_hand():
    """Two objects; detections: right, wrong, right: precision 1 up to recall 0.5, then 2/3."""
    scores = scored(truth([A, B], [0, 0]), found([A, C, B], [0.9, 0.8, 0.7], [0, 0, 0]))
    recalls = np.linspace(0, 1, 101)
    expected = 100 * np.where(recalls <= 0.5, 1, 2 / 3).mean()
    assert scores.box["AP50"] == pytest.approx(expected)
    assert scores.box["AP"] == pytest.approx(expected)  # the overlaps are exact
    assert scores.image_ap[0] == pytest.approx(2 * 2 / 5)


def test_an_overlap_counts_up_to_its_threshold():
    """A box that covers 0.8 of the true one is right at 0.5, 0.55, ... 0.8."""
    scores = scored(truth([A], [0]), found([[10, 10, 42, 50]], [0.9], [0]))
    assert scores.box["AP50"] == scores.box["AP75"] == 100
    assert scores.box["AP"] in (pytest.approx(70), pytest.approx(60))  # 0.8 itself is a matter of rounding


def test_a_detection_of_a_crowd_is_neither_right_nor_wrong():
    scores = scored(truth([A, B], [0, 0], [False, True]), found([B, A], [0.9, 0.8], [0, 0]))
    assert scores.box["AP"] == 100


def test_nothing_found_scores_0():
    scores = scored(truth([A], [0]), found([], [], []))
    assert scores.box["AP"] == 0
    assert scores.per_class["b"]["box"] is None


def test_figures_are_those_of_pycocotools():
    coco = pytest.importorskip("pycocotools.coco")
    cocoeval = pytest.importorskip("pycocotools.cocoeval")
    generator = np.random.default_rng(0)

    def some(count: int, jitter: float = 0.0) -> list[list[float]]:
        corners = np.random.default_rng(1).uniform(0, 60, (count, 2))
        sides = np.random.default_rng(2).uniform(5, 40, (count, 2))
        boxes = np.concatenate([corners, corners + sides], axis=1)
        return (boxes + generator.normal(0, jitter, boxes.shape)).round(2).clip(0, 100).tolist()

    data = truth(some(20), generator.integers(0, 2, 20).tolist(), (generator.random(20) < 0.2).tolist())
    detections = found(some(20, 3.0), generator.random(20).tolist(), generator.integers(0, 2, 20).tolist())
    known = ground_truth(data, {0: (100, 100)})
    results = as_results(detections, 42, data.category_ids)
    for kind, key in (("bbox", "bbox"), ("segm", "segmentation")):
        rows = [
            {**{k: row[k] for k in ("image_id", "category_id", "score")}, key: row[key]} for row in results
        ]
        figures, _ = coco_figures(known, [dict(row) for row in rows], kind)
        theirs = coco.COCO()
        theirs.dataset = known
        theirs.createIndex()
        judge = cocoeval.COCOeval(theirs, theirs.loadRes([dict(row) for row in rows]), kind)
        judge.evaluate()
        judge.accumulate()
        judge.summarize()
        expected = [100 * value if value > -1 else float("nan") for value in judge.stats]
        assert list(figures.values()) == pytest.approx(expected, abs=1e-4, nan_ok=True)


# A run.


@pytest.fixture(scope="module")
def finished(squares, tmp_path_factory):
    run = tmp_path_factory.mktemp("detect") / "run"
    assert fastmim.detect(data=squares, out=run, **DETECT).complete
    return run


def test_a_run_writes_its_files(finished):
    names = {path.name for path in finished.iterdir() if not path.name.startswith("events.out")}
    assert names == {
        *("config.yaml", "metrics.jsonl", "last.ckpt", "skipped.jsonl", "results.json", "detections.json"),
        *(
            "validation.png",
            "precision_recall.png",
            "model.safetensors",
            "encoder.safetensors",
            "encoder.json",
        ),
    }
    results = json.loads((finished / "results.json").read_text())
    assert results["images"] == 4
    assert set(results["box"]) == set(results["mask"]) >= {"AP", "AP50", "AP75", "AR_100"}
    assert set(results["per_class"]) == {"red", "blue"}
    assert "box_ap" in lines(finished)[-1]


@pytest.mark.parametrize("more", mostly_slow([{}, EVERYTHING], [EVERYTHING]))
def test_a_killed_run_resumes_exactly(squares, tmp_path, more):
    settings = {**DETECT, "data": squares, "checkpoint_every_steps": 1, **more}
    fastmim.detect(out=tmp_path / "whole", **settings)
    with killed(3):
        fastmim.detect(out=tmp_path / "killed", **settings)
    assert fastmim.detect(out=tmp_path / "killed", resume=True, quiet=True).complete
    assert same(weights(tmp_path / "whole"), weights(tmp_path / "killed"))


def test_it_learns_the_squares_that_it_sees(squares, tmp_path):
    settings = {**DETECT, "steps": 35, "evaluations": 1, "optim": {"base_lr": 0.4}}
    jitter = {"scale": [0.9, 1.1], "distort": False}
    result = fastmim.detect(data=squares, out=tmp_path / "run", **settings, jitter=jitter)
    scores = json.loads((tmp_path / "run" / "results.json").read_text())
    assert scores["box"]["AP50"] > 30
    assert result.mask_ap > 0


def test_boxes_only_train_faster_rcnn(squares, tmp_path, capsys):
    import shutil

    folder = shutil.copytree(squares, tmp_path / "data")
    for file in (folder / "annotations").iterdir():
        content = json.loads(file.read_text())
        for row in content["annotations"]:
            del row["segmentation"]
        file.write_text(json.dumps(content))
    settings = {**DETECT, "steps": 1, "quiet": False}
    result = fastmim.detect(data=folder, out=tmp_path / "run", **settings)
    said = capsys.readouterr().out
    assert "Faster R-CNN on resnet10t" in said
    assert "the data has boxes only, so masks are not trained" in said
    assert np.isnan(result.mask_ap)
    assert json.loads((tmp_path / "run" / "results.json").read_text())["mask"] is None
    with pytest.raises(UsageError, match=r"head.masks = yes: .* has boxes only, and no masks"):
        fastmim.detect(data=folder, out=tmp_path / "other", **settings, **{"head.masks": "yes"})


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"head.anchors": [8, 16]}, r"head.anchors = \(8, 16\): 5 sides are needed"),
        ({"images": ["a"]}, "images = a go with --annotations"),
        ({"paste": 1.5}, "paste = 1.5"),
        ({"schedule.name": "exponential"}, "schedule.name"),
    ],
)
def test_wrong_settings_are_one_line(squares, tmp_path, settings, message):
    with pytest.raises(UsageError, match=message):
        fastmim.detect(data=squares, out=tmp_path / "run", **{**DETECT, **settings})
    assert not (tmp_path / "run").exists()


def test_the_command(squares, tmp_path, capsys):
    words = ["detect", "--data", str(squares), "--out", str(tmp_path / "run"), "--encoder", "none"]
    words += [
        "--model",
        "resnet10t",
        "--image-size",
        "64",
        "--steps",
        "1",
        "--batch-size",
        "2",
        "--workers",
        "0",
    ]
    words += ["--head.channels", "8", "--head.hidden", "8", "--kernels.memory-format", "contiguous"]
    words += ["--kernels.compile", "none", "--kernels.threads", "1", "--kernels.attention", "fused"]
    assert main([*words, "--kernels.optimizer", "fused"]) == 0
    said = capsys.readouterr().out
    assert "Mask R-CNN on resnet10t from none" in said
    assert "box AP" in said


@pytest.mark.slow
def test_two_processes_find_what_one_finds(squares, tmp_path):
    """Each process draws the regions that it trains on; all images are measured, with one model."""
    settings = {**DETECT, "data": squares, "precision": "32-true", "head.score": 0.0}
    result = fastmim.detect(out=tmp_path / "two", devices=2, **settings)
    known = json.loads((result.run / "detections.json").read_text())
    assert {row["image_id"] for row in known} == {0, 1, 2, 3}
    files = sorted((squares / "val2017").iterdir())
    for number, objects in enumerate(fastmim.load(result.run, "cpu").predict(files, batch=1)):
        scores = sorted(row["score"] for row in known if row["image_id"] == number)
        assert sorted(objects.scores.tolist()) == pytest.approx(scores, abs=1e-4)
    assert json.loads((result.run / "results.json").read_text())["images"] == 4
