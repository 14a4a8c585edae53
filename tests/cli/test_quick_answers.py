"""Help and wrong usage are answered before anything is imported that takes seconds: imports are counted."""

import json
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

from fastmim.cli.entry import VERBS

HEAVY = ["torch", "timm", "torchvision", "lightning_fabric", "matplotlib"]
HEAVY += ["datasets", "cv2", "scipy", "numpy", "pyarrow"]
# Runs commands in turn; of each prints the exit code, the heavy modules that it imported, and what it wrote.
PROBE = f"""
import contextlib, io, json, sys
known = set()
for arguments in json.load(sys.stdin):
    output, errors = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(output), contextlib.redirect_stderr(errors):
        from fastmim.cli.entry import main
        try:
            code = main(arguments)
        except SystemExit as stop:
            code = stop.code or 0
    heavy = [name for name in {HEAVY} if name in sys.modules and name not in known]
    known.update(heavy)
    print(json.dumps([code, heavy, output.getvalue(), errors.getvalue()]))
"""
MISSING = {  # what a verb needs besides the folder that is not there
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
USAGE = [  # in a folder that holds a run; what is said, or nothing where the command works
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
    (
        "finetune --data {tmp} --out {tmp}/new --encoder {tmp}/nowhere",
        "nowhere: there is no such file",
    ),
    ("detect --data {tmp} --out {tmp}/new --encoder {tmp}", "holds no encoder.safetensors"),
    ("probe --data {tmp} --encoder {tmp}/vit.pth", "vit.pth: there is no such file or folder"),
    ("pretrain --data {tmp} --out {tmp}/new --weights {tmp}/on", "on: there is no such file or folder"),
    ("payoff --task detect --encoder {tmp} --data {tmp} --out {tmp}/x --shares 5/class", "shares: 5/class"),
    ("payoff --task caption", "task = caption must be one of classify, detect, segment"),
    ("recipes", ""),
    ("pertrain", "there is no verb"),
    ("--help", ""),
    ("--version", ""),
]


class Answer(NamedTuple):
    """Exit code of a command, the heavy modules it was the first to import, and what it wrote."""

    code: int
    heavy: list[str]
    text: str
    errors: str
    folder: Path


@pytest.fixture(scope="module")
def answers(tmp_path_factory) -> dict[str, Answer]:
    """The answers to all commands of this file, from one process."""
    folders = {
        words: tmp_path_factory.mktemp("answer")
        for words in (
            *(f"{verb} --help" for verb in VERBS),
            *(f"{verb} --no-such-flag 1e-3" for verb in VERBS),
            *(f"{verb} {MISSING[verb]}" for verb in VERBS),
            *(words for words, _ in USAGE),
        )
    }
    for words, _ in USAGE:
        (folders[words] / "config.yaml").write_text("seed: 1\n")
    commands = [
        words.format(tmp=folder, missing=folder / "nowhere").split() for words, folder in folders.items()
    ]
    done = subprocess.run(
        [sys.executable, "-c", PROBE], input=json.dumps(commands), capture_output=True, text=True
    )
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    return {
        words: Answer(*[*json.loads(line), folder])
        for (words, folder), line in zip(folders.items(), lines, strict=True)
    }


@pytest.mark.parametrize("verb", VERBS)
def test_help_imports_nothing_heavy(answers, verb):
    code, heavy, text, *_ = answers[f"{verb} --help"]
    assert (code, heavy) == (0, [])
    assert f"fastmim {verb}" in text


@pytest.mark.parametrize("verb", VERBS)
def test_a_wrong_flag_is_told_before_anything_heavy_is_imported(answers, verb):
    code, heavy, text, errors, _ = answers[f"{verb} --no-such-flag 1e-3"]
    assert (code, heavy, text) == (2, [], "")
    assert len(errors.splitlines()) == 1


@pytest.mark.parametrize("verb", VERBS)
def test_what_is_not_there_is_told_before_anything_heavy_is_imported(answers, verb):
    code, heavy, text, errors, folder = answers[f"{verb} {MISSING[verb]}"]
    assert (code, heavy, text) == (2, [], "")
    (line,) = errors.splitlines()
    assert str(folder / "nowhere") in line or "write: " in line or "no-such-recipe" in line
    assert not any(folder.iterdir())


@pytest.mark.parametrize(("words", "said"), USAGE)
def test_usage_is_checked_before_anything_heavy_is_imported(answers, words, said):
    code, heavy, text, errors, _ = answers[words]
    assert heavy == []
    assert said in errors
    assert (code, bool(text)) == ((2, False) if said else (0, True))


@pytest.mark.parametrize("module", ["fastmim", "fastmim.config", "fastmim.recipes"])
def test_configuration_imports_nothing_heavy(module):
    code = f"import sys, {module}; print([name for name in {HEAVY} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
