"""The comparison with from scratch: what its arms share, and when it says that pre-training helped."""

import json
import math

import pytest
import yaml

import fastmim
from conftest import TINY
from fastmim.cli import main
from fastmim.transfer.comparison import FROM_SCRATCH, OURS, Cell, as_table, half_interval, verdicts

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
    found = json.loads((out / "payoff.json").read_text())
    places = {(cell["arm"], cell["share"]): cell for cell in found["cells"]}
    assert len(places) == 5
    assert all(len(cell["top1"]) == 2 for cell in places.values())
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
    assert differs == {"encoder", "model", "model_kwargs", "layer_decay"}
    longer = yaml.safe_load((runs["scratch-longer_0.1_seed0"] / "config.yaml").read_text())
    assert longer["steps"] > 2
    before = {name: (run / "last.ckpt").stat().st_mtime_ns for name, run in runs.items()}
    (runs["scratch_0.1_seed1"] / "last.ckpt").unlink()
    assert main([*command, *FLAGS.split(), "--quiet"]) == 0
    again = json.loads((out / "payoff.json").read_text())
    assert [cell["top1"] for cell in again["cells"]] == [cell["top1"] for cell in found["cells"]]
    assert set(before) == {run.name for run in (out / "runs").iterdir()}


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
        ((40.0, 41.0, 45.0), (41.0, 40.0, 43.0), "did not help for sure"),
    ],
)
def test_the_verdict_follows_the_paired_interval(ours, scratch, said):
    (line, missing) = verdicts(cells(ours, scratch), None)
    assert line.startswith("10 % of the labels: ")
    assert said in line
    assert "not compared" in missing


def test_the_interval_is_students(monkeypatch):
    assert half_interval((1.0, 2.0, 3.0)) == pytest.approx(4.302653 / math.sqrt(3), rel=1e-6)
    assert math.isnan(half_interval((1.0,)))


def test_the_table_has_a_row_an_arm():
    from fastmim.transfer.comparison import Payoff

    table = as_table(Payoff(cells((50.0, 52.0), (40.0, 41.0)), None, ()))
    assert table.splitlines()[0] == "| top-1, % | 10 % (100 images) |"
    assert table.splitlines()[2].startswith("| pre-trained | 51.00 ± 12.71 |")
