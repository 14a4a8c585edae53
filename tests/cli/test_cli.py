import json
import shutil
import subprocess
import sys

import pytest
import yaml

from conftest import TINY, mostly_slow
from fastmim.cli.entry import main
from fastmim.config import PretrainConfig
from fastmim.recipes import base_config


@pytest.fixture
def places(photos, tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "file.txt").write_text("text")
    (tmp_path / "bad.yaml").write_text("mask: {ratio: 0.5, szie: 8}")
    (tmp_path / "texts").mkdir()
    for number in range(30):
        (tmp_path / "texts" / f"{number}.jpg").write_text("not an image")
    return {
        "photos": str(photos),
        "tmp": str(tmp_path),
        "out": str(tmp_path / "out"),
        "small": "--model test_vit",
    }


BAD_INPUT = [
    ("pretrain --data {tmp}/nowhere --out {out}", 2, "nowhere does not exist"),
    ("pretrain --data {tmp}/empty --out {out}", 2, "holds no images"),
    ("pretrain --data {tmp}/file.txt --out {out}", 2, "neither a tar nor parquet"),
    ("pretrain --data {tmp}/texts --out {out} --image-size 64 --model resnet10t", 1, "cannot be read"),
    ("pretrain --data {photos}", 2, "out is missing"),
    ("pretrain --out {out}", 2, "data is missing"),
    ("pretrain --data {photos} --out {tmp}/file.txt/x {small}", 2, "cannot be created"),
    ("pretrain --data {photos} --out {out} --model resnet5000", 2, "resnet50"),
    ("pretrain --data {photos} --out {out} --image-size 100 --model vit_tiny_patch16_224", 2, "96 or 112 is"),
    ("pretrain --data {photos} --out {out} --mask.ratio 1.5", 2, "mask.ratio = 1.5"),
    ("pretrain --data {photos} --out {out} --mask.ratoi 0.5", 2, "did you mean --mask.ratio?"),
    ("pretrain --data {photos} --out {out} --target.name hgo", 2, "hog+pixels-norm"),
    ("pretrain --data {photos} --out {out} --batch-size many", 2, "--batch-size"),
    ("pretrain --data {photos} --out {out} --model-kwargs depth=2", 2, "--model-kwargs"),
    ("pretrain --data {photos} --out {out} --config {tmp}/bad.yaml", 2, "did you mean mask.size?"),
    ("pretrain --data {photos} --out {out} --config {tmp}/none.yaml", 2, "No such file"),
    ("pretrain --data {photos} --out {out} --recipe table3/fastmim-vitb-800", 2, "fastmim-vit-b-800"),
    (
        "pretrain --data {photos} --out {out} --accelerator cuda --devices 99 --batch-size 99 {small}",
        2,
        "CUDA",
    ),
    ("pretrain --data {photos} --out {out} --stages 128x9", 2, "'128x9' is not SIZExEPOCHSe"),
    ("pretrain --data {photos} --out {out} --stages 64x2s,72x2s {small}", 2, "72x72"),
    (
        "pretrain --data {photos} --out {out} --encoder.depth 99",
        2,
        "encoder.depth = 99: give the number of blocks of vit_base_patch16_224",
    ),
    (
        "pretrain --data {photos} --out {out} --mask.place patch --mask.size 24 {small}",
        2,
        "16 pixels between",
    ),
    ("pretrain --data {photos} --out {out} --method mea", 2, "'mae'"),
    ("pretrain --data {photos} --out {out} --method mae --mask.place patch", 2, "mask.place = 'patch'"),
    ("pretrain --data {photos} --out {out} --method mae --model resnet10t", 2, "cannot leave patches out"),
    (
        "pretrain --data {photos} --out {out} --method lomar --image-size 96 --model vit_tiny_patch16_224",
        2,
        "112 pixels would do",
    ),
    ("pretrain --data {photos} --out {out} --lomar.windows 2", 2, "method = fastmim does not use it"),
    ("pretrain --data {photos} --out {out} --model efficientformer_l1", 2, "sizes that work: 224"),
    ("pretrain --data {photos} --out {out} --model no.such:thing", 2, "package.module:factory"),
    ("pretrain --data {photos} --out {out} --crop.mean 0.5", 2, "crop.std"),
    ("backbones nothing_like_it", 2, "no name matches"),
    ("backbones resnet10t --write {out}", 2, "--check"),
    ("stats", 2, "data is missing"),
    ("stats --data {photos} --count -3", 2, "count = -3"),
    ("backbones resnet10t --processes 0", 2, "processes = 0"),
    ("pretrain --out {tmp}/nothing --resume", 2, "there is no run in"),
    ("stats --data {photos} --in-chans 13", 2, "13 channels"),
    ("finetune --data {photos} --out {out}", 2, "encoder is missing"),
    ("finetune --encoder none --data {photos} --out {out}", 2, "model is missing"),
    ("finetune --encoder {tmp}/nowhere --data {photos} --out {out}", 2, "nowhere: there is no such file"),
    ("finetune --encoder timm:resnet5000 --data {photos} --out {out}", 2, "resnet50"),
    ("finetune --encoder timm:resnet10t --model resnet10t --data {photos} --out {out}", 2, "encoder = none"),
    ("finetune --encoder none --model resnet10t --data demo:photos --out {out}", 2, "has no classes"),
    ("finetune --encoder none --model resnet10t --data {photos}/class0 --out {out}", 2, "in no class folder"),
    ("finetune --encoder none --model resnet10t --data {photos} --out {out} --labels 0", 2, "10/class"),
    (
        "finetune --encoder none --model resnet10t --data {photos} --out {out} --labels 99/class",
        2,
        "has only 10 training images",
    ),
    (
        "finetune --encoder none --model resnet10t --data {photos} --out {out} --pool token",
        2,
        "no class token",
    ),
    (
        "finetune --encoder none --model vit_tiny_patch16_224 --data {photos} --out {out} --image-size 100",
        2,
        "96 or 112 is",
    ),
    ("finetune --encoder none --model resnet10t --data {photos} --out {out} --ema 2", 2, "ema = 2"),
    (
        "finetune --encoder none --model resnet10t --data {photos} --out {out} --no-crop.flip",
        2,
        "--crop.flip",
    ),
    ("probe --data {photos}", 2, "encoder is missing"),
    ("probe --encoder {tmp}/nowhere", 2, "data is missing"),
    ("probe --encoder {tmp}/nowhere --data {photos} --kind nearest", 2, "attentive"),
    ("embed --encoder {tmp}/nowhere --data {photos}", 2, "out is missing"),
    ("embed --encoder {tmp}/nowhere --data {photos} --out {tmp}", 2, "is a folder"),
    ("payoff --data {photos} --out {out}", 2, "encoder is missing"),
    ("payoff --encoder {tmp}/nowhere --data {photos} --out {out} --labels 0.1", 2, "--shares"),
    ("sweep --encoder {tmp}/nowhere --data {photos} --out {out} --lr-factor 1", 2, "lr_factor = 1"),
    ("export --out {out}", 2, "encoder is missing"),
    ("export --encoder {tmp}/nowhere --out {out} --from mae", 2, "model is missing"),
    ("export --encoder {tmp}/nowhere --out {out} --model resnet10t", 2, "--from only"),
    ("pretrian", 2, "there is no verb 'pretrian'"),
    ("recipes nothing-like-it", 2, "table3"),
]


@pytest.mark.parametrize(
    ("command", "code", "part"),
    mostly_slow(BAD_INPUT, [case for case in BAD_INPUT if "efficientformer" not in case[0]]),
    ids=[part for _, _, part in BAD_INPUT],
)
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
    assert (stored["steps"], stored["seed"], stored["epochs"]) == (2, 5, None)
    output = capsys.readouterr().out
    assert "constant baseline" in output.strip().splitlines()[-1]
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


def test_backbones_are_listed_for_people_and_machines(capsys):
    assert main(["backbones", "resnet10t"]) == 0
    header, row = capsys.readouterr().out.splitlines()
    assert header.split()[:3] == ["name", "M", "stride"]
    assert row.split()[0] == "resnet10t"
    assert "multiples of 32" in row
    assert max(len(header), len(row)) <= 80
    assert main(["backbones", "pit_ti_2*", "--json"]) == 0
    known = json.loads(capsys.readouterr().out.splitlines()[0])
    assert known["stride"] == 32
    assert 128 in known["sizes"]


def test_checked_backbones_make_a_table(capsys, tmp_path):
    table = tmp_path / "backbones.md"
    assert main(["backbones", "test_resnet", "--check", "--write", str(table), "--processes", "1"]) == 0
    assert "1 of 1 pass" in table.read_text()
    assert "| resnet | test_resnet |" in table.read_text()


def test_stats_can_be_given_to_pretrain(photos, capsys, tmp_path):
    shutil.copytree(photos, tmp_path / "photos")
    photos = tmp_path / "photos"
    (photos / "x.heic").write_bytes(b"-")
    assert main(["stats", "--data", str(photos)]) == 0
    text, said = capsys.readouterr()
    assert "left out: .heic (1)" in said
    (tmp_path / "stats.yaml").write_text(text)
    crop = yaml.safe_load(text)["crop"]
    assert len(crop["mean"]) == len(crop["std"]) == 3
    assert all(0 < value < 1 for value in crop["mean"] + crop["std"])
    config = base_config(PretrainConfig, tmp_path / "stats.yaml", None, None)
    assert config.data == PretrainConfig().data
    assert config.crop.mean == tuple(crop["mean"])
    assert main(["stats", "--data", str(photos), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["mean"] == crop["mean"]


def test_a_run_in_stages_shows_stage_and_size(photos, tmp_path, capsys):
    flags = "--model test_vit --stages 64x2s,96x2s@4 --batch-size 8 --held-out 4 --workers 0"
    out = str(tmp_path / "run")
    assert (
        main(["pretrain", "--data", str(photos), "--out", out, "--log-every-steps", "2", *flags.split()]) == 0
    )
    text = capsys.readouterr().out
    assert "stage 1/2 64px" in text
    assert "stage 2/2 96px" in text


def test_an_encoder_is_exported_and_checked_on_real_images(pretrained, tmp_path, capsys):
    command = ["export", "--encoder", str(pretrained), "--out", str(tmp_path / "timm")]
    assert main(command) == 0
    assert "read back, outputs on 8 images of demo:photos differ by at most" in capsys.readouterr().out
    assert main(command) == 2
    assert "overwrite" in capsys.readouterr().err
    assert main([*command, "--overwrite"]) == 0


def test_a_run_of_another_verb_is_not_resumed(pretrained, photos, capsys):
    command = ["finetune", "--data", str(photos), "--out", str(pretrained), "--resume"]
    assert main([*command, "--encoder", "none", "--model", "resnet10t"]) == 2
    assert "holds a run of `fastmim pretrain`" in capsys.readouterr().err


def test_arguments_of_a_released_model_are_taken(tmp_path, capsys):
    command = ["export", "--encoder", str(tmp_path / "none.pth"), "--out", str(tmp_path / "out"), "--from"]
    arguments = ["fastmim", "--model", "vit_base_patch16_224", "--model-kwargs", '{"num_heads": 6}']
    assert main([*command, *arguments]) == 2
    assert "none.pth" in capsys.readouterr().err
