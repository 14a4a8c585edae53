"""Help and wrong usage are answered before anything is imported that takes seconds: imports are counted."""

import json
import subprocess
import sys

import pytest

from fastmim.cli.entry import VERBS

HEAVY = ["torch", "timm", "torchvision", "lightning_fabric", "matplotlib"]
HEAVY += ["datasets", "cv2", "scipy", "numpy", "pyarrow"]
PROBE = f"""
import json, sys
arguments = json.loads(sys.argv[1])
from fastmim.cli.entry import main
try:
    code = main(arguments)
except SystemExit as stop:
    code = stop.code or 0
print(json.dumps([code, [name for name in {HEAVY} if name in sys.modules]]))
"""
USAGE = {  # what a verb needs besides the folder that is not there
    "pretrain": "--out {tmp}/run --data {missing}",
    "detect": "--data {missing} --encoder none --model resnet18 --out {tmp}/run",
    "segment": "--data {missing} --encoder none --model resnet18 --out {tmp}/run",
    "predict": "--data demo:photos --run {missing} --out {tmp}/out",
    "finetune": "--encoder none --model resnet18 --out {tmp}/run --data {missing}",
    "payoff": "--encoder {tmp} --out {tmp}/run --data {missing}",
    "sweep": "--encoder {tmp} --out {tmp}/run --data {missing}",
    "probe": "--encoder {tmp} --data {missing}",
    "embed": "--encoder {tmp} --out {tmp}/a.parquet --data {missing}",
    "export": "--encoder {tmp} --out {tmp}/export --data {missing}",
    "backbones": "--check --write {tmp}",
    "pack": "--out {tmp}/pack --data {missing}",
    "bench": "loader --data {missing} --json {tmp}/bench.json",
    "stats": "--data {missing}",
    "recipes": "no-such-recipe",
}


def answer(*arguments):
    """Exit code and heavy imports of the command in a fresh process, and what it wrote."""
    command = [sys.executable, "-c", PROBE, json.dumps(arguments)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    *lines, last = done.stdout.splitlines()
    code, heavy = json.loads(last)
    return code, heavy, "\n".join(lines), done.stderr


@pytest.mark.parametrize("verb", VERBS)
def test_help_imports_nothing_heavy(verb):
    code, heavy, text, _ = answer(verb, "--help")
    assert (code, heavy) == (0, [])
    assert f"fastmim {verb}" in text


@pytest.mark.parametrize("verb", VERBS)
def test_a_wrong_flag_is_told_before_anything_heavy_is_imported(verb):
    code, heavy, text, error = answer(verb, "--no-such-flag", "1e-3")
    assert (code, heavy, text) == (2, [], "")
    assert len(error.splitlines()) == 1


@pytest.mark.parametrize("verb", VERBS)
def test_what_is_not_there_is_told_before_anything_heavy_is_imported(verb, tmp_path):
    missing = tmp_path / "nowhere"
    code, heavy, text, error = answer(verb, *USAGE[verb].format(tmp=tmp_path, missing=missing).split())
    assert (code, heavy, text) == (2, [], "")
    (line,) = error.splitlines()
    assert str(missing) in line or "write: " in line or "no-such-recipe" in line
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("pretrain --data {tmp}", "out is missing"),
        ("pretrain --data {tmp} --out {tmp}", "already holds a run"),
        ("pretrain --out {tmp}/new --resume", "there is no run in"),
        ("pretrain --data {tmp} --out {tmp}/new --recipe table3/nothing", "recipe: table3/nothing"),
        ("pretrain --data {tmp} --out {tmp}/new --method mea", "'mae'"),
        ("pretrain --data {tmp} --out {tmp}/new --stages 128x9", "'128x9'"),
        ("pretrain --data {tmp} --out {tmp}/new --mask.ratio 2", "mask.ratio = 2.0"),
        ("pretrain --data {tmp} --out {tmp}/new --config {tmp}/none.yaml", "No such file"),
        ("finetune --data {tmp} --out {tmp}/new", "encoder is missing"),
        ("finetune --data {tmp} --out {tmp} --encoder none --model resnet18", "already holds a run"),
        ("embed --data {tmp} --out {tmp} --encoder {tmp}", "is a folder"),
        ("recipes", ""),
        ("pertrain", "there is no verb"),
        ("--help", ""),
        ("--version", ""),
    ],
)
def test_usage_is_checked_before_anything_heavy_is_imported(words, said, tmp_path):
    (tmp_path / "config.yaml").write_text("seed: 1\n")
    code, heavy, text, error = answer(*words.format(tmp=tmp_path).split())
    assert heavy == []
    assert said in error
    assert (code, bool(text)) == ((2, False) if said else (0, True))


@pytest.mark.parametrize("module", ["fastmim", "fastmim.config", "fastmim.recipes"])
def test_configuration_imports_nothing_heavy(module):
    code = f"import sys, {module}; print([name for name in {HEAVY} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
