"""Flags as other tools name them, and words in the wrong place: one line that says what was perhaps meant."""

import pytest

from fastmim.cli.entry import VERBS, main
from fastmim.cli.hints import CALLED, flags_of, hint
from fastmim.config import FinetuneConfig, PretrainConfig
from fastmim.downstream.frozen.settings import ProbeConfig
from fastmim.studies.settings import SweepConfig

HINTS = {
    "pretrain --lr 1e-3": "did you mean --optim.base-lr?",
    "probe --lr 1e-3": "did you mean --base-lr?",
    "stats --lr 1e-3": "`fastmim stats --help`",
    "pretrain --output x": "did you mean --out?",
    "pretrain --out-dir x": "did you mean --out?",
    "embed --out_dir=x": "did you mean --out?",
    "pretrain --save x": "did you mean --out?",
    "pretrain --mask-ratio 0.5": "did you mean --mask.ratio?",
    "embed --epochs 3": "`fastmim embed --help`",
    "pretrain -q": "did you mean --quiet?",
    "pretrain --gpus 2": "did you mean --devices?",
    "embed --gpus 2": "did you mean --accelerator?",
    "pack --input x": "did you mean --data?",
    "pretrain --dataset x": "did you mean --data?",
    "finetune --weights x": "did you mean --encoder?",
    "pretrain photos/": "did you mean --data photos/?",
    "pretrain photos/ --out x": "did you mean --data photos/?",
    "finetune runs/vit": "did you mean --encoder runs/vit or --data runs/vit?",
    "pretrain --resume runs/vit": "--resume is a switch, which takes no value",
    "pretrain help": "did you mean --help?",
    "pretrain --data a b": "`fastmim pretrain --help`",
    "pertrain": "did you mean pretrain?",
    "--data photos/": "a verb comes first",
    "help pertrain": "did you mean pretrain?",
}


@pytest.mark.parametrize("words", HINTS)
def test_a_habit_gets_a_hint(words, capsys):
    assert main(words.split()) == 2
    output, error = capsys.readouterr()
    (line,) = error.splitlines()
    assert output == ""
    assert HINTS[words] in line


@pytest.mark.parametrize("verb", [verb for verb in VERBS if verb != "recipes"])
@pytest.mark.parametrize("ask", ["{verb} --help", "{verb} -h", "help {verb}"])
def test_a_verb_is_explained_in_three_ways(verb, ask, capsys):
    with pytest.raises(SystemExit) as stopped:
        main(ask.format(verb=verb).split())
    assert stopped.value.code == 0
    assert f"usage: fastmim {verb}" in capsys.readouterr().out


def test_what_a_hint_names_is_a_flag():
    """A renamed setting must not leave a hint behind that leads nowhere."""
    flags = {name for form in (PretrainConfig, FinetuneConfig) for name, _ in flags_of(form)}
    outside = {"base-lr", "centre-lr", "processes", "config", "quiet", "overwrite", "resume"}
    assert {name for names in CALLED.values() for name in names} <= flags | outside
    others = {name for form in (ProbeConfig, SweepConfig) for name, _ in flags_of(form)}
    assert {"base-lr", "centre-lr"} <= others


def test_a_flag_that_exists_is_not_explained():
    flags = dict(flags_of(PretrainConfig))
    assert flags["optim.base-lr"] is False
    assert flags["crop.flip"] is True
    assert hint(["--out", "x", "--stray"], ["--stray"], flags) is None
