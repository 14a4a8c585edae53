"""Runs with a teacher, end to end: what is written, what resumes, what a cache changes (nothing)."""

import copy
import json
import shutil
from collections import namedtuple

import pytest
import timm
import torch
import yaml
from safetensors.torch import save_file

import fastmim
from conftest import TINY, USUAL, Killed, lines, mostly_slow, same, weights
from fastmim.cli.entry import main
from fastmim.errors import UsageError
from fastmim.methods.frozen_teacher import Teacher
from fastmim.methods.masked.input_masking import InputMasking
from fastmim.pretraining import build
from fastmim.pretraining import teacher_features as teacher_features
from fastmim.pretraining.teacher_features import FeatureCache, bytes_text

WIDER = {**TINY, "model_kwargs": {"embed_dim": 48, "depth": 3, "num_heads": 3}}
Usage = namedtuple("Usage", "total used free")


@pytest.fixture(scope="module")
def teacher(photos, tmp_path_factory):
    """A teacher that is wider and deeper than the student, fine-tuned."""
    base = tmp_path_factory.mktemp("teacher")
    fastmim.pretrain(data=photos, out=base / "pretrained", steps=2, **WIDER)
    settings = {"image_size": 32, "batch_size": 8, "steps": 1, "workers": 0, "quiet": True}
    fastmim.finetune(encoder=base / "pretrained", data=photos, out=base / "tuned", **settings)
    return base / "tuned"


def distil(photos, out, teacher, **settings):
    given = {**TINY, "steps": 8, "data": photos, "distill.teacher": str(teacher), **settings}
    return fastmim.pretrain(out=out, **given)


@pytest.fixture(scope="module")
def finished(photos, teacher, tmp_path_factory):
    out = tmp_path_factory.mktemp("distilled") / "run"
    assert distil(photos, out, teacher).complete
    return out


def test_the_teacher_is_told_and_lands_nowhere(finished, photos, tmp_path):
    fastmim.pretrain(data=photos, out=tmp_path / "alone", steps=8, **TINY)
    alone = weights(tmp_path / "alone")
    assert weights(finished).keys() == alone.keys()
    assert not same(weights(finished), alone)
    origin = json.loads((finished / "encoder.json").read_text())
    assert origin["teacher"]["model"] == "vit_tiny_patch16_224"
    model = timm.create_model(origin["model"], **origin["kwargs"])
    model.load_state_dict(weights(finished), strict=True)
    state = torch.load(finished / "last.ckpt", weights_only=True)
    outside = [name for name in state["module"] if not name.startswith("method.")]
    assert sorted(outside) == [f"project.{i}.{part}" for i in (0, 1) for part in ("bias", "weight")]
    assert state["identity"]["teacher_digest"] == origin["teacher"]["digest"]
    before = torch.load(tmp_path / "alone" / "last.ckpt", weights_only=True)
    inside = {name.removeprefix("method.") for name in state["module"]} - set(outside)
    assert inside == set(before["module"])
    assert len(state["optimizer"]["state"]) == len(before["optimizer"]["state"]) + len(outside)
    stored = yaml.safe_load((finished / "config.yaml").read_text())
    assert stored["distill"]["layers"] == ["0:1", "1:2"]  # the ends of both halves


def test_the_held_out_loss_stays_the_methods_own(finished):
    metrics = lines(finished)
    measured = [line for line in metrics if "held_out_loss" in line]
    assert len(measured) == 2
    for line in measured:
        assert line["held_out_distillation_loss"] > 0
        assert line["held_out_loss"] < 0.2 < line["loss"]  # HOG's alone, and both
    assert measured[-1]["held_out_distillation_loss"] < measured[0]["held_out_distillation_loss"]
    assert "teacher" in (finished / "report.html").read_text()


def test_the_teacher_does_not_change(photos, teacher, tmp_path, monkeypatch):
    load, seen = build.load_teacher, []

    def spy(*arguments):
        teacher_setup = load(*arguments)
        seen.append((teacher_setup.teacher, copy.deepcopy(teacher_setup.teacher.state_dict())))
        return teacher_setup

    monkeypatch.setattr(build, "load_teacher", spy)
    before = (teacher / "encoder.safetensors").read_bytes()
    distil(photos, tmp_path / "run", teacher, steps=3)
    ((teach, state),) = seen
    assert same(dict(teach.state_dict()), dict(state))
    assert (teacher / "encoder.safetensors").read_bytes() == before


@pytest.mark.parametrize("cached", mostly_slow([False, True], [True]))
def test_a_run_that_broke_off_ends_like_one_that_did_not(
    finished, photos, teacher, tmp_path, monkeypatch, cached
):
    forward, calls = InputMasking.forward, []

    def breaks(self, images, mask):
        if self.training:
            calls.append(1)
            if len(calls) > 5:
                raise Killed
        return forward(self, images, mask)

    monkeypatch.setattr(InputMasking, "forward", breaks)
    settings = {"distill.cache": str(tmp_path / "cache")} if cached else {}
    with pytest.raises(Killed):
        distil(photos, tmp_path / "run", teacher, checkpoint_every_steps=3, **settings)
    monkeypatch.setattr(InputMasking, "forward", forward)
    moved = tmp_path / "moved"
    shutil.copytree(teacher, moved)
    again = fastmim.pretrain(out=tmp_path / "run", resume=True, quiet=True, **{"distill.teacher": str(moved)})
    assert again.complete
    assert same(weights(tmp_path / "run"), weights(finished))
    keys = ("step", "loss", "held_out_loss", "held_out_distillation_loss")
    pick = lambda run: [{key: line.get(key) for key in keys} for line in lines(run)]  # noqa: E731
    assert pick(tmp_path / "run") == pick(finished)


def test_other_weights_are_no_way_to_go_on(finished, teacher, tmp_path):
    shutil.copytree(finished, tmp_path / "run")
    other = weights(teacher)
    other["patch_embed.proj.bias"] += 1
    shutil.copytree(teacher, tmp_path / "other")
    save_file(other, tmp_path / "other" / "encoder.safetensors")
    settings = {"distill.teacher": str(tmp_path / "other")}
    with pytest.raises(UsageError, match=r"distill\.teacher: these are not the weights"):
        fastmim.pretrain(out=tmp_path / "run", resume=True, quiet=True, **settings)
    with pytest.raises(UsageError, match=r"distill\.weight = 2"):
        fastmim.pretrain(out=tmp_path / "run", resume=True, quiet=True, **{"distill.weight": 2})


def files_of(cache):
    return sorted(cache.rglob("*.safetensors"))


def refuse(self, images):
    raise AssertionError("the teacher was asked")


def test_a_cache_changes_nothing_and_spares_the_teacher(photos, teacher, tmp_path, monkeypatch):
    cache = tmp_path / "cache"
    settings = {"distill.cache": str(cache), "micro_batch": 4, "steps": 4}
    distil(photos, tmp_path / "alone", teacher, micro_batch=4, steps=4)
    distil(photos, tmp_path / "first", teacher, **settings)
    assert same(weights(tmp_path / "first"), weights(tmp_path / "alone"))
    assert len([f for f in files_of(cache) if "held_out" not in f.name]) == 4 * 2
    assert not list(cache.rglob("*.part"))

    with monkeypatch.context() as patched:
        patched.setattr(Teacher, "forward", refuse)
        distil(photos, tmp_path / "second", teacher, **settings)
    assert same(weights(tmp_path / "second"), weights(tmp_path / "alone"))

    damaged = files_of(cache)[0]
    content = damaged.read_bytes()
    damaged.write_bytes(content[: len(content) // 2])
    distil(photos, tmp_path / "third", teacher, **settings)
    assert same(weights(tmp_path / "third"), weights(tmp_path / "alone"))
    assert damaged.read_bytes() == content


@pytest.mark.slow
def test_a_cache_serves_all_students_of_the_same_crops(photos, teacher, tmp_path, monkeypatch):
    settings = {"distill.cache": str(tmp_path / "cache"), "micro_batch": 4, "steps": 4}
    distil(photos, tmp_path / "first", teacher, **settings)
    monkeypatch.setattr(Teacher, "forward", refuse)
    narrow = {
        "model_kwargs": {"embed_dim": 64, "depth": 4, "num_heads": 2},
        "distill.layers": ["1:1", "3:2"],
    }
    distil(photos, tmp_path / "student", teacher, **settings, **narrow)
    distil(photos, tmp_path / "weight", teacher, **settings, **{"distill.weight": 2})
    with pytest.raises(AssertionError, match="asked"):
        distil(photos, tmp_path / "seed", teacher, seed=1, **settings)
    with pytest.raises(AssertionError, match="asked"):
        distil(photos, tmp_path / "crops", teacher, **settings, **{"crop.flip": False})


def test_a_full_disk_ends_the_cache_and_not_the_run(finished, photos, teacher, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(teacher_features.shutil, "disk_usage", lambda _: Usage(1, 1, 2 << 20))
    cache = tmp_path / "cache"
    settings = {"distill.cache": str(cache), "quiet": False}
    distil(photos, tmp_path / "run", teacher, **settings)
    out = capsys.readouterr().out
    assert out.count("no more features are stored") == 1
    assert "an image, up to" in out
    assert files_of(cache) == []
    assert same(weights(tmp_path / "run"), weights(finished))


def test_a_cache_knows_other_crops_under_the_same_name(tmp_path):
    cache = FeatureCache(str(tmp_path), {"seed": 0}, print)
    images, maps = torch.randn(2, 3, 32, 32), [torch.randn(2, 4, 2, 2).half() for _ in range(12)]
    cache.put("000000001-0-0", images, maps)
    found = FeatureCache(str(tmp_path), {"seed": 0}, print).get("000000001-0-0", images)
    assert all(map(torch.equal, found, maps))
    assert cache.get("000000001-0-0", images + 1) is None
    assert cache.get("000000002-0-0", images) is None
    assert FeatureCache(str(tmp_path), {"seed": 1}, print).get("000000001-0-0", images) is None
    assert [bytes_text(count) for count in (0, 512, 1536, 5 << 30)] == ["0 B", "512 B", "1.5 KiB", "5 GiB"]


@pytest.mark.slow
def test_stages_and_other_families(photos, tmp_path):
    swin = {"embed_dim": 16, "depths": [1, 1, 1, 1], "num_heads": [1, 2, 2, 4]}
    settings = {
        **{key: value for key, value in TINY.items() if key != "image_size"},
        "stages": "32x2s,64x2s",
        "distill": {"teacher": "none", "model": "swin_tiny_patch4_window7_224", "model_kwargs": swin},
    }
    result = fastmim.pretrain(data=photos, out=tmp_path / "run", **settings)
    assert result.complete
    assert [line["image_size"] for line in lines(tmp_path / "run")][-1] == [64, 64]
    assert "held_out_distillation_loss" in lines(tmp_path / "run")[-1]


@pytest.mark.parametrize("form", mostly_slow(["safetensors", "pth", "wrapped"], ["wrapped"]))
def test_a_file_of_timms_keys_with_its_model(photos, tmp_path, form):
    kwargs = {"embed_dim": 48, "depth": 3, "num_heads": 3}
    state = timm.create_model("vit_tiny_patch16_224", num_classes=5, img_size=64, **kwargs).state_dict()
    file = tmp_path / f"weights.{form.replace('wrapped', 'pth')}"
    if form == "safetensors":
        save_file(state, file)
    else:
        torch.save({"model": state} if form == "wrapped" else state, file)
    told = {"teacher": str(file), "model": "vit_tiny_patch16_224", "model_kwargs": {**kwargs, "img_size": 64}}
    result = fastmim.pretrain(data=photos, out=tmp_path / "run", steps=1, distill=told, **TINY)
    assert result.complete
    wrong = {**told, "model_kwargs": kwargs}
    with pytest.raises(UsageError, match=r"of another shape: .*pos_embed.*img_size"):
        fastmim.pretrain(data=photos, out=tmp_path / "other", steps=1, distill=wrong, **TINY)
    assert not (tmp_path / "other").exists()


@pytest.mark.parametrize(
    ("told", "part"),
    [
        ({"teacher": "nowhere"}, "distill.teacher = nowhere: there is no such file or folder"),
        ({"teacher": "timm:no_such_model"}, "no_such_model"),
        ({"teacher": "timm:resnet10t", "model": "resnet10t"}, "already names the model"),
        ({"teacher": "none"}, "distill.model is missing"),
        ({"teacher": "none", "model": "resnet10t", "layers": ["0:7"]}, "teacher has layers 0 to 4"),
        ({"teacher": "none", "model": "vit_tiny_patch16_224", "size": 33}, "33x33 (distill.size)"),
        ({"teacher": "none", "model": "resnet10t", "cache": "/proc/cache"}, "distill.cache: /proc/cache"),
    ],
)
def test_what_does_not_work_is_told_before_anything_is_written(photos, tmp_path, told, part):
    with pytest.raises(UsageError) as raised:
        fastmim.pretrain(data=photos, out=tmp_path / "run", steps=1, distill=told, **TINY)
    assert part in str(raised.value)
    assert "\n" not in str(raised.value)
    assert not (tmp_path / "run").exists()


def test_timms_weights_that_cannot_be_had(photos, tmp_path, monkeypatch):
    def offline(*_, **__):
        raise OSError("no route to the hub\nand more")

    real = timm.create_model
    monkeypatch.setattr(
        timm, "create_model", lambda *a, pretrained=False, **k: offline() if pretrained else real(*a, **k)
    )
    with pytest.raises(
        UsageError,
        match=r"^distill.teacher = timm:resnet10t: its weights cannot be downloaded: no route to the hub$",
    ):
        distil(photos, tmp_path / "run", "timm:resnet10t")


def test_flags(photos, teacher, tmp_path):
    settings = [
        "--steps",
        "1",
        "--batch-size",
        "8",
        "--held-out",
        "4",
        "--workers",
        "0",
        "--image-size",
        "32",
    ]
    model = ["--model", TINY["model"], "--model-kwargs", json.dumps(TINY["model_kwargs"])]
    model += [
        word for name, value in USUAL.items() for word in (f"--kernels.{name.replace('_', '-')}", str(value))
    ]
    distill = ["--distill.teacher", str(teacher), "--distill.layers", "0:0", "1:2", "--distill.normalize"]
    out = tmp_path / "run"
    assert main(["pretrain", "--data", str(photos), "--out", str(out), *settings, *model, *distill]) == 0
    stored = yaml.safe_load((out / "config.yaml").read_text())["distill"]
    assert (stored["layers"], stored["normalize"]) == (["0:0", "1:2"], True)
    again = fastmim.pretrain(config=out / "config.yaml", out=tmp_path / "again", quiet=True)
    assert again.complete
    assert same(weights(out), weights(tmp_path / "again"))
