"""The comparison with from scratch: what its arms share, and when it says that pre-training helped."""

import json
import math
import pickle
import re
import shutil
import statistics

import numpy as np
import pytest
import yaml
from scipy.stats import binomtest

import fastmim
from annotated import DETECT, SEGMENT
from conftest import TINY, mostly_slow
from fastmim.cli.entry import main
from fastmim.config import FinetuneConfig, SegmentConfig
from fastmim.downstream.backbone import load_backbone
from fastmim.downstream.classification.start import build_classifier
from fastmim.errors import StoppedError, UsageError
from fastmim.studies.arms import scratch_of
from fastmim.studies.comparison import CONFIDENCE, Cell, Payoff, as_table, half_interval, verdicts
from fastmim.studies.settings import FROM_SCRATCH, OURS, PayoffConfig

SWIN = "swin_tiny_patch4_window7_224"
FLAGS = "--image-size 16 --batch-size 16 --steps 2 --workers 0 --evaluations 1 --shares 1/class 0.1 --seeds 2"


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    run = tmp_path_factory.mktemp("digits") / "run"
    kwargs = {"embed_dim": 32, "depth": 1, "num_heads": 2, "patch_size": 4}
    settings = TINY | {"model_kwargs": kwargs, "image_size": 16, "target": {"cell": 4}}
    fastmim.pretrain(data="demo:digits", out=run, steps=2, **settings)
    return run


def test_the_card_is_written_and_goes_on_where_it_stopped(encoder, tmp_path, capsys):
    out = tmp_path / "card"
    command = ["payoff", "--encoder", str(encoder), "--data", "demo:digits", "--out", str(out)]
    assert main([*command, *FLAGS.split(), "--quiet"]) == 0
    text = capsys.readouterr().out
    assert "| pre-trained |" in text
    assert "equal total time:" in text
    assert "were among those that the encoder was pre-trained on" in text
    found = json.loads((out / "payoff.json").read_text())
    places = {(cell["arm"], cell["share"]): cell for cell in found["cells"]}
    assert len(places) == 5
    assert all(len(cell["scores"]) == 2 for cell in places.values())
    assert places[OURS, "1/class"]["training_images"] == 10
    assert (out / "payoff.png").read_bytes().startswith(b"\x89PNG")
    assert "| scratch |" in (out / "payoff.md").read_text()
    runs = {run.name: run for run in (out / "runs").iterdir()}
    assert len(runs) == 10
    ours, scratch = (
        yaml.safe_load((runs[f"{arm}_0.1_seed1"] / "config.yaml").read_text())
        for arm in ("pre-trained", "scratch")
    )
    differs = {name for name in ours if ours[name] != scratch[name]} - {"out"}
    assert differs == {"encoder", "model", "model_kwargs", "layer_decay", "head_std"}
    longer = yaml.safe_load((runs["scratch-longer_0.1_seed0"] / "config.yaml").read_text())
    assert longer["steps"] > 2
    before = {name: (run / "last.ckpt").stat().st_mtime_ns for name, run in runs.items()}
    shutil.rmtree(runs["scratch_0.1_seed1"])
    assert main([*command, *FLAGS.split(), "--quiet"]) == 0
    again = json.loads((out / "payoff.json").read_text())
    assert [cell["scores"] for cell in again["cells"]] == [cell["scores"] for cell in found["cells"]]
    assert set(before) == {run.name for run in (out / "runs").iterdir()}


def compare(task, folder, settings, out, *flags):
    """Pre-train a backbone and compare it in the task."""
    given = {name: value for name, value in settings.items() if name not in ("encoder", "model", "quiet")}
    run = out / "encoder"
    backbone = {name: given[name] for name in ("batch_size", "workers", "kernels")}
    backbone |= {"image_size": 64, "decoder": {"width": 32}, "model": settings["model"]}
    fastmim.pretrain(data=folder, out=run, steps=1, quiet=True, **backbone)
    (out / "settings.yaml").write_text(yaml.safe_dump(given | {"steps": 2, "evaluations": 1}))
    command = ["payoff", "--task", task, "--encoder", str(run), "--data", str(folder), "--quiet"]
    command += ["--out", str(out / "card"), "--config", str(out / "settings.yaml")]
    assert main([*command, *flags]) == 0
    return json.loads((out / "card" / "payoff.json").read_text())


def test_segmentation_is_compared_by_its_miou(scenes, tmp_path, capsys):
    found = compare("segment", scenes, SEGMENT, tmp_path, "--shares", "3", "--seeds", "1", "--no-equal-time")
    text = capsys.readouterr().out
    assert "| mIoU, % | 3 images |" in text
    assert "3 labelled images: pre-training changed mIoU by" in text
    assert "whose choice it leaves out" in text
    assert found["metric"] == "mIoU"
    by_place = {(cell["arm"], cell["share"]): cell for cell in found["cells"]}
    assert by_place[OURS, "3"]["training_images"] == by_place[FROM_SCRATCH, "3"]["training_images"] == 3
    for (arm, _), cell in by_place.items():  # the scores are those of the runs
        file = tmp_path / "card" / "runs" / f"{arm}_3_seed0" / "results.json"
        assert cell["scores"] == [json.loads(file.read_text())["miou"]]


def test_detection_is_compared_by_the_ap_of_boxes_or_masks(squares, tmp_path, capsys):
    flags = ["--shares", "2", "--seeds", "1", "--no-equal-time"]
    found = compare("detect", squares, DETECT, tmp_path, *flags, "--score", "mask")
    assert "| mask AP, % | 2 images |" in capsys.readouterr().out
    for cell in found["cells"]:
        file = tmp_path / "card" / "runs" / f"{cell['arm']}_2_seed0" / "results.json"
        assert cell["scores"] == [json.loads(file.read_text())["mask"]["AP"]]


def test_another_task_is_one_line(capsys):
    assert main(["payoff", "--task", "caption"]) == 2
    assert capsys.readouterr().err == ("fastmim: task = caption must be one of classify, detect, segment\n")


@pytest.mark.parametrize("share", ["0", "1.5", "-2", "10/class", "many"])
def test_shares_of_images_are_shares_or_numbers(share, scenes, tmp_path, capsys):
    command = ["payoff", "--task", "segment", "--encoder", "timm:resnet10t", "--data", str(scenes)]
    assert main([*command, "--out", str(tmp_path / "card"), "--shares", share]) == 2
    assert f"shares: {share} must be a share of the images" in capsys.readouterr().err


def test_without_the_run_there_is_no_equal_time(encoder, tmp_path, capsys):
    alone = tmp_path / "encoder.safetensors"
    alone.write_bytes((encoder / "encoder.safetensors").read_bytes())
    command = ["payoff", "--encoder", str(alone), "--data", "demo:digits", "--out", str(tmp_path / "card")]
    flags = FLAGS.replace("--shares 1/class 0.1 --seeds 2", "--shares 1/class --seeds 1")
    assert main([*command, *flags.split(), "--quiet"]) == 0
    text = capsys.readouterr().out
    assert "equal total time was not compared" in text
    assert "one seed only" in text


def cells(ours, scratch):
    return (Cell(OURS, "0.1", ours, 1.0, 100), Cell(FROM_SCRATCH, "0.1", scratch, 1.0, 100))


@pytest.mark.parametrize(
    ("ours", "scratch", "said"),
    [
        ((50.0, 51.0, 52.0), (40.0, 41.5, 41.0), "pre-training helped, +10.17 points"),
        ((40.0, 41.5, 41.0), (50.0, 51.0, 52.0), "pre-training hurt, -10.17 points"),
        ((40.0, 41.0, 45.0), (41.0, 40.0, 43.0), "no difference beyond chance"),
    ],
)
def test_the_verdict_follows_the_paired_interval(ours, scratch, said):
    (line,) = verdicts(cells(ours, scratch))
    assert line.startswith("10 % of the labels: ")
    assert said in line


def test_the_interval_is_students(monkeypatch):
    assert half_interval((1.0, 2.0, 3.0)) == pytest.approx(4.302653 / math.sqrt(3), rel=1e-6)
    assert half_interval((1.0, 5.0)) == pytest.approx(12.706205 * 2, rel=1e-6)
    assert half_interval((2.0, 2.0)) == 0
    assert math.isnan(half_interval((1.0,)))


def test_the_table_has_a_row_an_arm():
    table = as_table(Payoff(cells((50.0, 52.0), (40.0, 41.0)), None, ()))
    assert table.splitlines()[0] == "| top-1, % | 10 % (100 images) |"
    assert table.splitlines()[2].startswith("| pre-trained | 51.00 ± 12.71 |")


def test_what_was_left_of_the_data_is_said_of_quiet_runs_too(pretrained, photos, tmp_path, capsys):
    data = tmp_path / "data"
    shutil.copytree(photos, data)
    (data / "class0" / "x.heic").write_bytes(b"-")
    command = ["payoff", "--encoder", str(pretrained), "--data", str(data), "--out", str(data / "card")]
    flags = "--image-size 32 --batch-size 8 --steps 1 --workers 0 --evaluations 1 --shares 1 --seeds 1"
    for _ in range(2):
        assert main([*command, *flags.split(), "--no-equal-time", "--quiet"]) == 0
        assert capsys.readouterr().out.count("file of another kind was left out: .heic (1)") == 1


@pytest.mark.parametrize("model", mostly_slow([SWIN, "swinv2_tiny_window8_256"], [SWIN]))
def test_from_scratch_is_the_same_architecture_at_another_size(model, photos, tmp_path):
    narrow = {"embed_dim": 16, "depths": [1, 1, 1, 1], "num_heads": [1, 1, 2, 4]}
    run = tmp_path / "run"
    settings = TINY | {"model": model, "model_kwargs": narrow, "image_size": 128}
    fastmim.pretrain(data=photos, out=run, steps=1, **settings)
    config = FinetuneConfig(encoder=str(run), image_size=256)
    ours, scratch = build_classifier(config, 2).model, build_classifier(scratch_of(config), 2).model
    assert {n: v.shape for n, v in ours.state_dict().items()} == {
        n: v.shape for n, v in scratch.state_dict().items()
    }
    assert windows(ours) == windows(scratch)
    assert len(windows(ours)) == 4


@pytest.mark.parametrize("size", [128, (160, 224), 256])
def test_dense_tasks_compare_the_same_architecture(size, photos, tmp_path):
    narrow = {"embed_dim": 16, "depths": [1, 1, 1, 1], "num_heads": [1, 1, 2, 4]}
    run = tmp_path / "run"
    settings = TINY | {"model": SWIN, "model_kwargs": narrow, "image_size": 128}
    fastmim.pretrain(data=photos, out=run, steps=1, **settings)
    config = SegmentConfig(encoder=str(run), image_size=size)
    ours, scratch = (load_backbone(each).encoder.model for each in (config, scratch_of(config)))
    assert {n: v.shape for n, v in ours.state_dict().items()} == {
        n: v.shape for n, v in scratch.state_dict().items()
    }
    assert windows(ours) == windows(scratch)


def windows(model):
    return [m.window_size for m in model.modules() if hasattr(m, "relative_position_index")] or [
        m.window_size for m in model.modules() if hasattr(m, "window_size")
    ]


def test_an_arm_has_a_name_of_its_own():
    with pytest.raises(UsageError, match=r"give a path, such as \./scratch"):
        PayoffConfig(against=("scratch",))


def test_a_stop_survives_its_way_from_another_process():
    error = pickle.loads(pickle.dumps(StoppedError(15, "in runs/x")))
    assert (error.exit_code, str(error)) == (143, "stopped by SIGTERM in runs/x")


def measured(top1, images, arm=OURS):
    return Cell(arm, "0.1", top1, 1.0, 100, images)


@pytest.mark.parametrize(
    ("right", "images"), [(41, 68), (0, 68), (68, 68), (1, 300), (150, 300), (9_990, 10_000)]
)
def test_seeds_that_agree_leave_the_error_of_the_images(right, images):
    """Held against the exact binomial interval (Clopper and Pearson 1934), which is no narrower."""
    cell = measured((100 * right / images,) * 3, images)
    exact = binomtest(right, images).proportion_ci(CONFIDENCE)
    half = 50 * (exact.high - exact.low)
    assert cell.interval > 0.8 * half
    assert cell.bounds[1] - cell.bounds[0] < 2.6 * half
    assert 0 <= cell.bounds[0] <= cell.mean <= cell.bounds[1] <= 100


def test_the_interval_holds_seeds_and_images():
    values = (58.0, 61.0, 64.0)
    of_seeds = 4.302653 * statistics.stdev(values) / math.sqrt(3)
    of_images = 1.959964 * 100 * math.sqrt(0.61 * 0.39 / 68)
    assert measured(values, 68).interval == pytest.approx(math.hypot(of_seeds, of_images), rel=0.03)
    assert measured(values, 10**9).interval == pytest.approx(of_seeds, rel=1e-3)


def test_nothing_is_said_to_help_by_chance_more_often_than_one_time_in_twenty():
    """Two arms that are equally good, on images that are drawn anew: how often a verdict is given."""
    generator = np.random.default_rng(0)
    given = 0
    for _ in range(400):
        share = 1 / (1 + np.exp(-generator.normal(0, 1.5, 68)))  # how surely each image is right, in any arm
        arms = [tuple(100 * (generator.random(68) < share).mean() for _ in range(3)) for _ in range(2)]
        (line,) = verdicts((measured(arms[0], 68), measured(arms[1], 68, FROM_SCRATCH)))
        given += "no difference" not in line
    assert given <= 20


SAID = [
    ((60.29, 58.82), (51.47, 50.0), 68, "2 seeds are too few for a verdict"),
    ((60.29, 58.82, 61.76), (51.47, 50.0, 52.94), 68, "no difference beyond chance, +8.82 points ± 1"),
    ((60.29, 58.82, 61.76), (51.47, 50.0, 52.94), 10_000, "pre-training helped, +8.82 points ± 1."),
    ((100.0,) * 3, (100.0,) * 3, 50, "no difference beyond chance"),
    ((90.0,) * 3, (90.0,) * 3, 10**9, "no difference beyond chance"),
    ((90.0,) * 3, (80.0,) * 3, 10**9, "pre-training helped"),
    ((50.0,) * 3, (41.0,) * 3, None, "its uncertainty is unknown"),
]


@pytest.mark.parametrize(("ours", "scratch", "images", "said"), SAID)
def test_no_verdict_of_two_seeds_and_no_interval_of_nothing(ours, scratch, images, said):
    both = measured(ours, images), measured(scratch, images, FROM_SCRATCH)
    (line,) = verdicts(both)
    table = as_table(Payoff(both, None, ()))
    assert said in line
    for text in (line, table):
        assert not re.search(r"± -?0\.?0*(?![\d.])", text)
        assert "nan" not in text
