"""The README is true: its Python runs, and its commands are accepted."""

import re
import shlex
from pathlib import Path
from typing import Any

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
    session: dict[str, Any] = {
        "__name__": "__main__",
        "MyBackbone": MyBackbone,
        "images": torch.randn(2, 3, 224, 224),
    }
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
        "pretraining.run_pretraining",
        "downstream.classification.entry.run_finetuning",
        "downstream.detection.entry.run_detection",
        "downstream.segmentation.entry.run_segmentation",
        "downstream.predict.predict",
        "studies.payoff.payoff",
        "studies.sweep.sweep",
        "downstream.frozen.probe.run_probe",
        "downstream.frozen.embed.embed",
        "weights.encoder_file.read_description",
        "weights.released.import_released",
        "bench.parts._run_part",
        "bench.parts._apart",
        "bench.parts.read_results",
        "bench.backbones.names_like",
        "bench.backbones.smallest_of_each_family",
        "data.loading.channel_stats.measure_stats",
        "data.packing.pack.pack",
        "data.packing.pack.verify",
    ):
        monkeypatch.setattr(f"fastmim.{place}", note)
    monkeypatch.setattr("fastmim.data.sources.open.open_images", lambda *_: None)
    monkeypatch.setattr("fastmim.data.sources.files.find_path", lambda _: None)  # the reader's own folders
    monkeypatch.setattr("fastmim.config.usage.check_start", lambda *_: False)
    for place in ("config.usage", "downstream.frozen.settings"):
        monkeypatch.setattr(f"fastmim.{place}.check_source", lambda *_: None)  # the reader's own runs
    words = shlex.split(command, comments=True)[1:]
    words = ["demo:photos" if word in ("photos/", "tiles/") else word for word in words]
    theirs = ("coco/", "scenes/", "runs/masks") if words[0] == "predict" else ("coco/", "scenes/")
    words = [str(tmp_path) if word in theirs else word for word in words]
    if "--resume" in words:
        words += ["--data", "demo:photos"]  # as the run's config.yaml has it
    if words[0] == "recipes":
        assert main(words) == 0
        return
    if "--help" in words:
        with pytest.raises(SystemExit):
            main(words)
        return
    assert main(words) == 130  # it came as far as the work
    assert done
