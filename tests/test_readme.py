"""The README is true: its Python runs, and its commands are accepted."""

import re
import shlex
from pathlib import Path

import pytest
import torch
from torch import nn

import fastmim
from conftest import QUICK, TINY
from fastmim.cli.entry import main

README = Path(__file__).parents[1] / "README.md"
TEXT = README.read_text()
BLOCKS = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)
COMMANDS = [
    line.strip()
    for block in re.findall(r"(?:^    .*\n)+", TEXT, re.MULTILINE)
    for line in block.replace("\\\n", " ").splitlines()
    if line.strip().startswith("fastmim ")
]


PAGES = [README, *sorted((README.parent / "docs").glob("*.md"))]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    for link in re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", page.read_text()):
        assert link.startswith("https://") or (page.parent / link).exists(), link


class MyBackbone(nn.Sequential):
    """What a reader may have."""

    def __init__(self):
        super().__init__(nn.Conv2d(3, 16, 16, 16), nn.GELU())


def test_every_block_of_python_runs(photos, tmp_path, monkeypatch):
    """In their order, in one session, where photos/ and labelled/ lie; only sizes and lengths are smaller."""
    for name in ("photos", "labelled"):
        (tmp_path / name).symlink_to(photos)
    monkeypatch.chdir(tmp_path)
    real_pretrain, real_finetune = fastmim.pretrain, fastmim.finetune

    def pretrain(**settings):
        small = {**TINY, "steps": 1, "overwrite": True, "epochs": None}
        if not isinstance(settings.get("model"), str):
            small = {k: v for k, v in small.items() if k not in ("model", "model_kwargs")}
        return real_pretrain(**settings | small)

    def finetune(**settings):
        return real_finetune(**settings | QUICK | {"epochs": 1.0})

    monkeypatch.setattr(fastmim, "pretrain", pretrain)
    monkeypatch.setattr(fastmim, "finetune", finetune)
    session = {"__name__": "__main__", "MyBackbone": MyBackbone, "images": torch.randn(2, 3, 224, 224)}
    for block in BLOCKS:
        exec(block, session)
    assert session["logits"].shape == (2, 10)
    assert session["features"].shape == (2, 27, 28, 28)
    assert (tmp_path / "runs" / "mine" / "encoder.safetensors").is_file()


def test_ten_lines_are_enough_for_timm():
    (block,) = [block for block in BLOCKS if "timm.create_model" in block]
    assert "fastmim" not in block
    assert len(block.strip().splitlines()) <= 10


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_is_accepted(command, monkeypatch, tmp_path):
    """Flags, recipes and files exist; the work itself is left out."""
    monkeypatch.chdir(README.parent)
    done = []

    def note(*arguments, **_):
        done.append(arguments)
        raise KeyboardInterrupt

    for place in (
        "pretrain.run_pretraining",
        "finetune.run_finetuning",
        "payoff.payoff",
        "sweep.sweep",
        "probe.run_probe",
        "embed.embed",
        "export.read_encoder",
        "export.import_released",
        "bench._run_part",
        "bench._apart",
        "bench.read_results",
    ):
        monkeypatch.setattr(f"fastmim.cli.commands.{place}", note)
    for place in ("names_like", "smallest_of_each_family"):
        monkeypatch.setattr(f"fastmim.cli.commands.backbones.{place}", note)
    monkeypatch.setattr("fastmim.cli.commands.stats.measure_stats", note)
    monkeypatch.setattr("fastmim.cli.commands.stats.open_images", lambda *_: None)
    for name in ("pack", "verify"):
        monkeypatch.setattr(f"fastmim.cli.commands.pack.{name}", note)
    words = shlex.split(command, comments=True)[1:]
    words = ["demo:photos" if word in ("photos/", "tiles/") else word for word in words]
    if words[0] == "recipes":
        assert main(words) == 0
        return
    if "--help" in words:
        with pytest.raises(SystemExit):
            main(words)
        return
    assert main(words) == 130  # it came as far as the work
    assert done
