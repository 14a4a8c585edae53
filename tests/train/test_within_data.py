"""Runs that lie within their data: what they write is none of it."""

import os
import signal
from pathlib import Path

import pytest
from PIL import Image

import fastmim
from conftest import QUICK, TINY, mostly_slow, photo
from fastmim.cli.entry import main
from fastmim.data.labelled import open_labelled
from fastmim.data.sources.base import fingerprint, notes_of
from fastmim.data.sources.open import open_images
from fastmim.methods.masked.input_masking import InputMasking
from fastmim.train.checkpoint_folder import load_checkpoint
from fastmim.train.run_files import LAST

COUNT = 24


@pytest.fixture
def here(tmp_path, monkeypatch):
    """The working folder, with a folder of photos of two classes."""
    monkeypatch.chdir(tmp_path)
    for number in range(COUNT):
        folder = Path("photos") / f"class{number % 2}"
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(photo(number)).save(folder / f"{number:02d}.jpg")
    return tmp_path


def interrupted_in_step(monkeypatch, number):
    forward, calls = InputMasking.forward, []

    def counted(self, images, mask):
        if self.training:
            calls.append(1)
            if len(calls) == number:
                os.kill(os.getpid(), signal.SIGINT)
        return forward(self, images, mask)

    monkeypatch.setattr(InputMasking, "forward", counted)


@pytest.mark.parametrize(
    ("data", "out"),
    mostly_slow(
        [
            (".", "run"),
            ("photos", "photos/runs/x"),
            ("photos/../photos", "photos/class0/y"),
            ("photos", "photos"),
        ],
        [("photos/../photos", "photos/class0/y")],
    ),
)
def test_a_stopped_run_goes_on_by_the_command_that_it_prints(here, monkeypatch, capsys, data, out):
    if out != "photos":
        fastmim.pretrain(data=data, out="photos/earlier", steps=2, **TINY)
        assert Path("photos/earlier/samples.png").is_file()
        assert len(open_images(data)) == COUNT
        assert "left out: of runs (1)" in " ".join(notes_of(open_images(data)))
    before = fingerprint(open_images(data))
    interrupted_in_step(monkeypatch, 3)
    result = fastmim.pretrain(data=data, out=out, steps=6, **TINY | {"quiet": False, "log_every_steps": 1})
    assert (result.steps, result.stopped_by) == (3, signal.SIGINT)
    told = next(line for line in capsys.readouterr().out.splitlines() if "--resume" in line)
    assert main(["pretrain", *told.split("resume with ")[1].split()]) == 0
    assert load_checkpoint(Path(out, LAST)).progress.step == 6
    assert Path(out, "samples.png").is_file()
    assert fingerprint(open_images(data)) == before
    assert f"{COUNT - 3} images to train on" in capsys.readouterr().out


def test_fine_tuning_within_its_data_sees_the_same_images_again(here):
    start = {"encoder": "none", "model": TINY["model"], "model_kwargs": TINY["model_kwargs"]}
    before = [(len(part), part.classes) for part in open_labelled("photos", 0.25, 0)]
    for out in ("photos/tuned", "photos/class1/tuned"):
        fastmim.finetune(data="photos", out=out, **start, **QUICK)
        assert [(len(part), part.classes) for part in open_labelled("photos", 0.25, 0)] == before
