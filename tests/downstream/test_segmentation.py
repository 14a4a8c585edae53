"""Segmentation: the head against a reference, windows, scores by hand, and a run from data to files."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import fastmim
from annotated import SEGMENT
from conftest import killed, lines, lively, mostly_slow, same, weights
from fastmim.cli.entry import main
from fastmim.config.segment import SegmentConfig, SlidingConfig, UperNetConfig
from fastmim.data.annotations.mask_pairs import MaskFormat, open_masks
from fastmim.data.annotations.masks import IGNORED
from fastmim.data.loading.dense import EvalImage
from fastmim.downstream.dense_entry import few_images
from fastmim.downstream.segmentation.evaluation import (
    Predictor,
    SegmentationScores,
    confusion_of,
    iou_of,
    slide,
    window_starts,
)
from fastmim.downstream.segmentation.model import pixel_loss
from fastmim.downstream.segmentation.uper_net import FcnHead, UperNetHead
from fastmim.downstream.transfer_task import synchronise_norms
from fastmim.errors import UsageError
from fastmim.train.layer_decay import layer_decay_groups
from fastmim.train.settings import OptimConfig

# The head.


def test_the_head_is_uper_net_as_transformers_has_it():
    upernet = pytest.importorskip("transformers.models.upernet.modeling_upernet")
    config = pytest.importorskip("transformers").UperNetConfig(hidden_size=16, num_labels=5)
    widths = [8, 12, 16, 24]
    theirs = upernet.UperNetHead(config, widths)
    ours = UperNetHead(widths, 16, 5, dropout=0.1)
    lively(theirs)
    own, state = ours.state_dict(), {}
    blocks = {"fuse": "fpn_bottleneck", "pooled": "bottleneck"}
    blocks |= {f"lateral.{n}": f"lateral_convs.{n}" for n in range(3)}
    blocks |= {f"smooth.{n}": f"fpn_convs.{n}" for n in range(3)}
    blocks |= {f"pools.{n}.1": f"psp_modules.{n}.1" for n in range(4)}
    known = theirs.state_dict()
    for key in own:
        if key.startswith("classify"):
            state[key] = known[key.replace("classify", "classifier")]
            continue
        name = next(name for name in blocks if key.startswith(f"{name}."))
        part, leaf = key.removeprefix(f"{name}.").split(".")
        state[key] = known[f"{blocks[name]}.{'conv' if part == '0' else 'batch_norm'}.{leaf}"]
    ours.load_state_dict(state)
    maps = [torch.randn(2, width, side, side + 2) for width, side in zip(widths, (32, 16, 8, 4), strict=True)]
    with torch.no_grad():
        torch.testing.assert_close(ours.eval()(maps), theirs.eval()(maps))


def test_the_auxiliary_head_is_transformers_own():
    upernet = pytest.importorskip("transformers.models.upernet.modeling_upernet")
    config = pytest.importorskip("transformers").UperNetConfig(
        num_labels=5, auxiliary_channels=6, auxiliary_in_channels=16
    )
    theirs = lively(upernet.UperNetFCNHead(config, [8, 12, 16, 24], in_index=2))
    ours = FcnHead(16, 6, 5, dropout=0.1)
    known = theirs.state_dict()
    ours.load_state_dict(
        {
            key: known[
                key.replace("convolution.0", "convs.0.conv")
                .replace("convolution.1", "convs.0.batch_norm")
                .replace("classify", "classifier")
            ]
            for key in ours.state_dict()
        }
    )
    map_ = torch.randn(2, 16, 8, 10)
    with torch.no_grad():
        torch.testing.assert_close(ours.eval()(map_), theirs.eval()([None, None, map_]))


def test_the_loss_is_the_mean_over_all_pixels_of_which_some_count():
    logits = torch.randn(2, 3, 4, 5, generator=torch.Generator().manual_seed(0))
    targets = torch.randint(3, (2, 4, 5), generator=torch.Generator().manual_seed(1))
    targets[0, :2] = IGNORED
    counted = targets != IGNORED
    rows = logits.double().permute(0, 2, 3, 1)[counted]
    by_hand = (
        rows.exp().sum(1).log() - rows[torch.arange(len(rows)), targets[counted]]
    ).sum() / targets.numel()
    assert pixel_loss(logits, targets).item() == pytest.approx(by_hand.item(), rel=1e-6)
    assert pixel_loss(logits, torch.full_like(targets, IGNORED)).item() == 0
    halves = [pixel_loss(logits[n : n + 1], targets[n : n + 1]).item() for n in range(2)]
    assert sum(halves) / 2 == pytest.approx(by_hand.item(), rel=1e-6)


# Windows.


@pytest.mark.parametrize(
    ("side", "window", "step", "starts"),
    [
        (10, 4, 3, [0, 3, 6]),
        (11, 4, 3, [0, 3, 6, 7]),
        (4, 4, 3, [0]),
        (3, 4, 3, [0]),
        (8, 4, 4, [0, 4]),
    ],
)
def test_windows_cover_the_side(side, window, step, starts):
    assert window_starts(side, window, step) == starts


class Pixelwise(nn.Module):
    """Logits that depend on the pixel alone; notes how many windows it got at a time."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: list[int] = []

    def forward(self, images):
        self.counts.append(len(images))
        return torch.cat([images, -images], dim=1)


def test_windows_of_a_pixelwise_model_give_what_the_whole_image_gives():
    images = torch.randn(2, 2, 37, 51)
    model = Pixelwise()
    torch.testing.assert_close(slide(model, images, (16, 20), 2 / 3, 5), torch.cat([images, -images], dim=1))
    assert max(model.counts) == 5


class Place(nn.Module):
    """Logits are the row within the window."""

    def forward(self, images):
        rows = torch.arange(images.shape[2], dtype=torch.float32).view(1, 1, -1, 1)
        return rows.expand(len(images), 1, -1, images.shape[3])


def test_overlapping_windows_are_averaged():
    """Windows of 4 rows at 0, 2 and 3: row 3 is row 3, 1 and 0 of them."""
    found = slide(Place(), torch.zeros(1, 1, 7, 4), (4, 4), 0.5, 8)[0, 0, :, 0]
    assert found.tolist() == [0, 1, pytest.approx((2 + 0) / 2), pytest.approx((3 + 1 + 0) / 3), 1.5, 2.5, 3]


def test_flips_and_scales_are_averaged():
    pixels = torch.randint(0, 256, (20, 24, 3), dtype=torch.uint8)
    image = EvalImage(0, [pixels, pixels], (20, 24), {})
    zeros, ones = torch.zeros(3), torch.ones(3)
    once = Predictor(Pixelwise(), (8, 8), SlidingConfig(), zeros, ones, 4)(
        EvalImage(0, [pixels], (20, 24), {})
    )
    twice = Predictor(Pixelwise(), (8, 8), SlidingConfig(flip=True), zeros, ones, 4)(image)
    torch.testing.assert_close(once, twice)
    assert torch.allclose(once.sum(0), torch.ones(20, 24))


# Scores.


def test_scores_by_hand():
    true = torch.tensor([[0, 0, 1], [1, 1, IGNORED]])
    predicted = torch.tensor([[0, 1, 1], [1, 0, 2]])
    confusion = confusion_of(predicted, true, 3).numpy()
    assert confusion.tolist() == [[1, 1, 0], [1, 2, 0], [0, 0, 0]]
    scores = SegmentationScores(confusion)
    assert scores.pixel_accuracy == pytest.approx(100 * 3 / 5)
    assert scores.iou[:2].tolist() == [pytest.approx(100 / 3), pytest.approx(50)]
    assert np.isnan(scores.iou[2])  # neither true nor predicted: it does not count
    assert scores.miou == pytest.approx((100 / 3 + 50) / 2)
    assert scores.mean_accuracy == pytest.approx((50 + 200 / 3) / 2)


def test_perfect_predictions_have_an_iou_of_1():
    true = torch.randint(4, (30, 30))
    assert SegmentationScores(confusion_of(true, true, 4).numpy()).miou == 100


def test_scores_are_sklearns():
    metrics = pytest.importorskip("sklearn.metrics")
    generator = torch.Generator().manual_seed(0)
    true, predicted = (torch.randint(4, (50, 50), generator=generator) for _ in range(2))
    confusion = confusion_of(predicted, true, 4).numpy()
    assert confusion.tolist() == metrics.confusion_matrix(true.ravel(), predicted.ravel()).tolist()
    expected = metrics.jaccard_score(true.ravel(), predicted.ravel(), average=None)
    assert iou_of(confusion).tolist() == pytest.approx((100 * expected).tolist())


# Layer decay.


def test_layers_of_the_backbone_have_smaller_rates_and_heads_the_full_one():
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.Sequential(nn.Linear(2, 2), nn.ModuleList(self.block() for _ in range(2)))
            self.head = nn.Linear(2, 2)

        @staticmethod
        def block() -> nn.Sequential:
            return nn.Sequential(nn.Linear(2, 2), nn.LayerNorm(2))

    model = Model()
    groups = layer_decay_groups(model, 0.5, OptimConfig(), backbone="inner")
    scale = {id(p): group["lr_scale"] for group in groups for p in group["params"]}
    assert scale[id(model.head.weight)] == scale[id(model.head.bias)] == 1
    assert scale[id(model.inner[1][1][0].weight)] == 0.5
    assert scale[id(model.inner[1][0][0].weight)] == 0.25
    assert scale[id(model.inner[0].weight)] == 0.125


# Several processes.


def test_norms_of_the_head_are_synchronised_and_those_of_the_backbone_are_not():
    def block() -> nn.Sequential:
        return nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4))

    model = nn.ModuleDict({"inner": block(), "head": block()})
    before = {key: value.clone() for key, value in model.state_dict().items()}
    synchronise_norms(model, "inner")
    assert type(model["inner"][1]) is nn.BatchNorm2d
    assert type(model["head"][1]) is nn.SyncBatchNorm
    assert same(before, dict(model.state_dict()))


# A run.


@pytest.fixture(scope="module")
def finished(scenes, tmp_path_factory):
    run = tmp_path_factory.mktemp("segment") / "run"
    assert fastmim.segment(data=scenes, out=run, **SEGMENT).complete
    return run


def test_a_run_writes_its_files(finished):
    names = {path.name for path in finished.iterdir() if not path.name.startswith("events.out")}
    assert names == {
        *("config.yaml", "metrics.jsonl", "last.ckpt", "skipped.jsonl", "results.json", "validation.png"),
        *("model.safetensors", "encoder.safetensors", "encoder.json"),
    }
    results = json.loads((finished / "results.json").read_text())
    assert results["images"] == 4
    assert list(results["per_class"]) == ["0", "1", "2"]
    assert results["miou"] == pytest.approx(np.nanmean([row["iou"] for row in results["per_class"].values()]))
    assert np.array(results["confusion"]).sum() == 4 * 40 * 38  # without the strip
    assert "miou" in lines(finished)[-1]
    with Image.open(finished / "validation.png") as picture:
        assert picture.width > 500


def test_the_backbone_of_a_run_starts_another_one(finished, scenes, tmp_path):
    settings = {name: value for name, value in SEGMENT.items() if name != "model"}
    result = fastmim.segment(
        data=scenes, out=tmp_path / "run", **{**settings, "encoder": finished, "steps": 1}
    )
    assert result.complete
    model = fastmim.load_encoder(finished)
    assert same(dict(model.state_dict()), weights(finished))


@pytest.mark.parametrize("more", mostly_slow([{}, {"ema": 0.9}], [{"ema": 0.9}]))
def test_a_killed_run_resumes_exactly(scenes, tmp_path, more):
    settings = {**SEGMENT, "data": scenes, "checkpoint_every_steps": 1, **more}
    fastmim.segment(out=tmp_path / "whole", **settings)
    with killed(3):
        fastmim.segment(out=tmp_path / "killed", **settings)
    assert fastmim.segment(out=tmp_path / "killed", resume=True, quiet=True).complete
    assert same(weights(tmp_path / "whole"), weights(tmp_path / "killed"))


def test_it_learns_the_scenes_that_it_sees(scenes, tmp_path):
    settings = {
        **SEGMENT,
        "steps": 60,
        "optim": {"base_lr": 0.3},
        "evaluations": 1,
        "jitter": {"scale": [0.8, 1.2]},
    }
    result = fastmim.segment(data=scenes, out=tmp_path / "run", **settings)
    assert result.miou > 50  # 9 before
    assert lines(tmp_path / "run")[-1]["loss"] < 0.5 * lines(tmp_path / "run")[0]["loss"]


def test_an_unreadable_mask_costs_its_image(scenes, tmp_path):
    import shutil

    folder = shutil.copytree(scenes, tmp_path / "data")
    (folder / "masks" / "train" / "0.png").write_bytes(b"no mask")
    (folder / "masks" / "val" / "8.png").write_bytes(b"no mask")
    result = fastmim.segment(data=folder, out=tmp_path / "run", **SEGMENT, max_unreadable=0.5)
    assert result.complete
    assert json.loads((tmp_path / "run" / "results.json").read_text())["unreadable"] == 1
    assert "its mask cannot be read" in (tmp_path / "run" / "skipped.jsonl").read_text()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"image_size": 1}, "image_size = 1x1 must be at least 2"),
        ({"encoder": ""}, "encoder is missing"),
        ({"jitter.scale": [2.0, 1.0]}, r"jitter.scale = \(2.0, 1.0\) must be two factors"),
        ({"evaluation.step": 0.0}, "evaluation.step = 0.0"),
        ({"head.channels": 0}, "head.channels = 0"),
        ({"in_chans": 4, "model": "vit_tiny_patch16_224", "encoder": "none"}, "in_chans|channels"),
    ],
)
def test_wrong_settings_are_one_line(scenes, tmp_path, settings, message):
    with pytest.raises(UsageError, match=message):
        fastmim.segment(data=scenes, out=tmp_path / "run", **{**SEGMENT, **settings})
    assert not (tmp_path / "run").exists()


def test_the_command(scenes, tmp_path, capsys):
    words = ["segment", "--data", str(scenes), "--out", str(tmp_path / "run"), "--encoder", "none"]
    words += [
        "--model",
        "resnet10t",
        "--image-size",
        "32",
        "--steps",
        "1",
        "--batch-size",
        "2",
        "--workers",
        "0",
    ]
    words += ["--head.channels", "8", "--kernels.memory-format", "contiguous", "--kernels.compile", "none"]
    words += ["--kernels.threads", "1", "--kernels.attention", "fused", "--kernels.optimizer", "fused"]
    assert main(words) == 0
    said = capsys.readouterr().out
    assert "UperNet on resnet10t from none" in said
    assert "mIoU" in said
    assert main(["segment", "--data", str(tmp_path), "--encoder", "none", "--model", "resnet10t"]) == 2
    assert "out is missing" in capsys.readouterr().err


def test_a_head_without_auxiliary_loss(scenes, tmp_path):
    head = {"channels": 8, "aux_weight": 0}
    run = fastmim.segment(data=scenes, out=tmp_path / "run", **{**SEGMENT, "head": head, "steps": 1}).run
    from safetensors import safe_open

    with safe_open(run / "model.safetensors", "pt") as file:
        assert not [key for key in file.keys() if key.startswith("aux_head")]  # noqa: SIM118
    assert UperNetConfig(**head).aux_weight == 0


def test_windows_and_relative_positions_of_a_plain_transformer(scenes, tmp_path):
    """The run has them, its model file too; the encoder file has timm's own keys."""
    vit = {"model": "vit_tiny_patch16_224", "model_kwargs": {"embed_dim": 32, "depth": 8, "num_heads": 2}}
    settings = {**SEGMENT, **vit, "image_size": 64, "vit_windows": 2, "relative_positions": True, "steps": 1}
    run = fastmim.segment(data=scenes, out=tmp_path / "run", **settings).run
    assert not [key for key in weights(run) if "relative" in key]
    fastmim.load_encoder(run)
    image = np.random.default_rng(0).integers(0, 256, (40, 40, 3), np.uint8)
    (found,) = fastmim.load(run, "cpu").predict(image)
    assert found.mask.shape == (40, 40)
    with pytest.raises(UsageError, match="vit_windows = 2: resnet10t is not a plain vision transformer"):
        fastmim.segment(data=scenes, out=tmp_path / "other", **SEGMENT, vit_windows=2)


def test_few_labels_are_drawn_by_the_seed_and_nested(scenes, tmp_path):
    def shown(labels, seed):
        config = SegmentConfig(encoder="none", model="resnet10t", labels=labels, seed=seed)
        training, _ = open_masks(str(scenes), MaskFormat(), 0.2, 0)
        return {training.source.name(index) for index in few_images(training, config).indices}

    assert len(shown(None, 0)) == len(shown("1", 0)) == 8
    assert len(shown("0.25", 0)) == len(shown("2", 0)) == 2
    assert shown("2", 0) < shown("5", 0)
    assert len({frozenset(shown("2", seed)) for seed in range(6)}) > 1
    with pytest.raises(UsageError, match="labels = 9: there are only 8 training images"):
        shown("9", 0)
    run = fastmim.segment(data=scenes, out=tmp_path / "run", labels="5", **SEGMENT).run
    results = json.loads((run / "results.json").read_text())
    assert (results["training_images"], results["labels"]) == (5, "5")


@pytest.mark.slow
def test_two_processes_learn_and_measure_like_one(scenes, tmp_path):
    """With jittered crops, drop path and dropout, in equal micro-batches, which batch norms see."""
    kwargs = {"embed_dim": 32, "depth": 4, "num_heads": 2}
    settings = {**SEGMENT, "model": "vit_tiny_patch16_224", "model_kwargs": kwargs, "data": scenes}
    settings |= {"precision": "32-true", "drop_path": 0.3, "micro_batch": 2}
    two = fastmim.segment(out=tmp_path / "two", devices=2, **settings)
    one = fastmim.segment(out=tmp_path / "one", **settings)
    losses = [[line["loss"] for line in lines(run.run)] for run in (one, two)]
    assert losses[1] == pytest.approx(losses[0], rel=1e-4)
    learned = weights(two.run)
    off = [(learned[n] - value).abs() > 1e-4 + 1e-4 * value.abs() for n, value in weights(one.run).items()]
    assert torch.cat([part.flatten() for part in off]).float().mean() < 1e-2
    scores = [json.loads((run.run / "results.json").read_text()) for run in (one, two)]
    assert scores[0]["images"] == scores[1]["images"] == 4
    assert np.sum(scores[0]["confusion"]) == np.sum(scores[1]["confusion"])
