import subprocess
import sys

import pytest
import yaml

from conftest import TINY
from fastmim.cli import main


@pytest.fixture
def places(photos, tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "file.txt").write_text("text")
    (tmp_path / "bad.yaml").write_text("mask: {ratio: 0.5, szie: 8}")
    (tmp_path / "texts").mkdir()
    for number in range(30):
        (tmp_path / "texts" / f"{number}.jpg").write_text("not an image")
    return {"photos": str(photos), "tmp": str(tmp_path), "out": str(tmp_path / "out")}


BAD_INPUT = [
    ("pretrain --data {tmp}/nowhere --out {out}", 2, "nowhere does not exist"),
    ("pretrain --data {tmp}/empty --out {out}", 2, "holds no images"),
    ("pretrain --data {tmp}/file.txt --out {out}", 2, "neither a tar nor parquet"),
    ("pretrain --data {tmp}/texts --out {out} --image-size 64 --model resnet10t", 1, "cannot be read"),
    ("pretrain --data {photos}", 2, "out is missing"),
    ("pretrain --out {out}", 2, "data is missing"),
    ("pretrain --data {photos} --out {tmp}/file.txt/x", 2, "cannot be made"),
    ("pretrain --data {photos} --out {out} --model resnet5000", 2, "resnet50"),
    ("pretrain --data {photos} --out {out} --image-size 100", 2, "96 or 112 would be"),
    ("pretrain --data {photos} --out {out} --mask.ratio 1.5", 2, "mask.ratio = 1.5"),
    ("pretrain --data {photos} --out {out} --mask.ratoi 0.5", 2, "did you mean --mask.ratio?"),
    ("pretrain --data {photos} --out {out} --target.name hgo", 2, "hog+pixels-norm"),
    ("pretrain --data {photos} --out {out} --batch-size many", 2, "--batch-size"),
    ("pretrain --data {photos} --out {out} --model-kwargs depth=2", 2, "--model-kwargs"),
    ("pretrain --data {photos} --out {out} --config {tmp}/bad.yaml", 2, "did you mean mask.size?"),
    ("pretrain --data {photos} --out {out} --config {tmp}/none.yaml", 2, "No such file"),
    ("pretrain --data {photos} --out {out} --recipe table3/fastmim-vitb-800", 2, "fastmim-vit-b-800"),
    ("pretrain --data {photos} --out {out} --accelerator cuda --devices 99 --batch-size 99", 2, "CUDA"),
    ("pretrian", 2, "there is no verb 'pretrian'"),
    ("recipes nothing-like-it", 2, "table3"),
]


@pytest.mark.parametrize(("command", "code", "part"), BAD_INPUT, ids=[part for _, _, part in BAD_INPUT])
def test_bad_input_gets_one_line_and_the_right_exit_code(command, code, part, places, capsys):
    assert main(command.format(**places).split()) == code
    errors = capsys.readouterr().err
    assert part in errors
    (line,) = errors.strip().splitlines()
    assert line.startswith("fastmim: ")


def test_debug_shows_the_traceback(places, capsys):
    assert main(["pretrain", "--data", "/nowhere", "--out", places["out"], "--debug"]) == 2
    assert "Traceback" in capsys.readouterr().err


def test_help_lists_every_group_with_units_and_defaults(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    with pytest.raises(SystemExit) as stopped:
        main(["pretrain", "--help"])
    assert stopped.value.code == 0
    text = capsys.readouterr().out
    for flag in (
        "--data",
        "--image-size",
        "--checkpoint-every-steps",
        "--mask.ratio",
        "--mask.size",
        "--target.name",
        "--target.normalize",
        "--decoder.depth",
        "--decoder.width",
        "--optim.base-lr",
        "--schedule.warmup-epochs",
        "--crop.scale",
        "--resume",
        "--overwrite",
        "--recipe",
        "--config",
    ):
        assert flag in text, flag
    assert max(map(len, text.splitlines())) <= 80


def test_flags_win_over_the_file_and_the_file_over_the_recipe(photos, tmp_path, capsys):
    settings = {key: value for key, value in TINY.items() if key != "quiet"} | {"steps": 3, "seed": 5}
    (tmp_path / "c.yaml").write_text(yaml.safe_dump(settings))
    arguments = ["--recipe", "table3/fastmim-vit-b-800", "--config", str(tmp_path / "c.yaml"), "--steps", "2"]
    assert main(["pretrain", "--data", str(photos), "--out", str(tmp_path / "run"), *arguments]) == 0
    stored = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())
    assert (stored["steps"], stored["seed"], stored["epochs"]) == (2, 5, 800)
    output = capsys.readouterr().out
    assert "trivial predictor" in output.strip().splitlines()[-1]
    assert "lr" in output


def test_a_recipe_is_printed_as_yaml(capsys):
    assert main(["recipes", "table3/fastmim-swin-b-400"]) == 0
    settings = yaml.safe_load(capsys.readouterr().out)
    assert settings["model"] == "swin_base_patch4_window7_224"
    assert main(["recipes"]) == 0
    assert "table 3" in capsys.readouterr().out


def test_the_module_runs_like_the_command():
    done = subprocess.run([sys.executable, "-m", "fastmim", "--version"], capture_output=True, text=True)
    assert done.returncode == 0
    assert done.stdout.startswith("fastmim ")
