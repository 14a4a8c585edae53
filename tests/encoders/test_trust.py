"""No code of a stranger runs: a factory that a file names leaves a mark when it is imported, and must not."""

import itertools
import json
import shutil
import sys
from pathlib import Path

import pytest
import safetensors.torch
import timm
import torch
import yaml

import fastmim
from conftest import QUICK, TINY, mostly_slow
from fastmim.cli.entry import main
from fastmim.encoders.described import check_described
from fastmim.encoders.limits import MOST_BUFFERED, TooLarge, brief, limited
from fastmim.encoders.trust import Trust
from fastmim.errors import UsageError
from fastmim.weights.load import load_encoder

KWARGS = {"embed_dim": 32, "depth": 1, "num_heads": 2, "img_size": 32}
VIT = "vit_tiny_patch16_224"
SOURCE = """
from pathlib import Path
import timm
MARK = Path({mark!r})
MARK.write_text("imported")

def make(**kwargs):
    MARK.write_text("called")
    return timm.create_model("vit_tiny_patch16_224", **{{"num_classes": 0, **{kwargs!r}, **kwargs}})
"""


class Stranger:
    """A module that leaves a mark, and an encoder's file that names it."""

    def __init__(self, folder: Path, module: str) -> None:
        self.mark = folder / "mark"
        self.module, self.name = module, f"{module}:make"
        (folder / f"{module}.py").write_text(SOURCE.format(mark=str(self.mark), kwargs=KWARGS))
        self.folder = folder / "encoder"
        self.folder.mkdir()
        self.file = self.folder / "encoder.safetensors"
        self.write(self.name)

    def write(self, model: str, kwargs: dict | None = None, beside: bool = False) -> None:
        text = json.dumps(described(model, kwargs or {}))
        torch.manual_seed(0)
        state = timm.create_model(VIT, num_classes=0, **KWARGS).state_dict()
        safetensors.torch.save_file(state, self.file, None if beside else {"fastmim": text})
        (self.folder / "encoder.json").write_text(text)

    @property
    def untouched(self) -> bool:
        return not self.mark.exists() and self.module not in sys.modules


def described(model: str, kwargs: dict) -> dict:
    return {
        "model": model,
        "kwargs": kwargs,
        "image_size": [32, 32],
        "in_chans": 3,
        "mean": [0.5] * 3,
        "std": [0.5] * 3,
        "method": "fastmim",
        "target": "hog",
    }


@pytest.fixture
def stranger(tmp_path, monkeypatch, request):
    monkeypatch.syspath_prepend(str(tmp_path))
    module = f"stranger_{abs(hash(request.node.nodeid))}"
    yield Stranger(tmp_path, module)
    sys.modules.pop(module, None)


def flags(settings: dict) -> list[str]:
    return [word for name, value in settings.items() for word in (f"--{name.replace('_', '-')}", str(value))]


SMALL = flags({k: QUICK[k] for k in ("image_size", "batch_size", "steps", "workers", "evaluations")})
VERBS = {
    "finetune": "finetune --encoder {file} --data {photos} --out {out}",
    "a folder": "finetune --encoder {folder} --data {photos} --out {out}",
    "export": "export --format onnx --encoder {file} --data {photos} --out {out}",
    "embed": "embed --encoder {file} --data {photos} --out {out}.parquet --workers 0",
    "probe": "probe --encoder {file} --data {photos} --workers 0",
    "payoff": "payoff --encoder {file} --data {photos} --out {out}",
    "sweep": "sweep --encoder {file} --data {photos} --out {out}",
    "teacher": "pretrain --distill.teacher {file} --data {photos} --out {out}",
}


def command(verb: str, stranger: Stranger, photos: Path, tmp_path: Path) -> list[str]:
    places = {"file": stranger.file, "folder": stranger.folder, "photos": photos, "out": tmp_path / "out"}
    words = VERBS[verb].format(**places).split()
    if verb == "teacher":
        tiny = flags({k: TINY[k] for k in ("model", "image_size", "batch_size", "workers", "held_out")})
        return [*words, *tiny, "--steps", "1", "--model-kwargs", json.dumps(TINY["model_kwargs"])]
    return words + SMALL if verb in ("finetune", "a folder", "payoff", "sweep") else words


@pytest.mark.parametrize(
    ("verb", "place"),
    mostly_slow(
        itertools.product(VERBS, ["metadata", "encoder.json"]),
        [*((verb, "metadata") for verb in VERBS), ("a folder", "encoder.json"), ("teacher", "encoder.json")],
    ),
)
def test_no_factory_is_imported_because_a_file_names_it(verb, place, stranger, photos, tmp_path, capsys):
    stranger.write(stranger.name, beside=place == "encoder.json")
    assert main(command(verb, stranger, photos, tmp_path)) == 2
    said = capsys.readouterr().err
    assert stranger.untouched
    setting = "--distill.model" if verb == "teacher" else "--model"
    assert len(said.strip().splitlines()) == 1
    assert f"names the factory {stranger.name}" in said
    assert f"{setting} {stranger.name}, or --trust-code" in said


@pytest.mark.parametrize(
    ("verb", "way"),
    mostly_slow(
        itertools.product(["embed", "export", "finetune", "teacher"], ["name", "trust"]),
        [("embed", "name"), ("export", "trust"), ("finetune", "trust"), ("teacher", "name")],
    ),
)
def test_it_is_where_the_user_gives_its_name_or_trusts_code(verb, way, stranger, photos, tmp_path):
    model = "--distill.model" if verb == "teacher" else "--model"
    more = ["--trust-code"] if way == "trust" else [model, stranger.name]
    assert main([*command(verb, stranger, photos, tmp_path), *more]) == 0
    assert stranger.mark.read_text() == "called"


@pytest.mark.parametrize("given", ["os:system", "other.module:make"])
def test_another_name_does_not_do(given, stranger, photos, tmp_path, capsys):
    assert main([*command("embed", stranger, photos, tmp_path), "--model", given]) == 2
    assert f"names the factory {stranger.name} as model, not {given}" in capsys.readouterr().err
    assert stranger.untouched


def test_in_python(stranger):
    for place in (stranger.file, stranger.folder):
        with pytest.raises(UsageError, match=f"names the factory {stranger.name}"):
            load_encoder(place)
    assert stranger.untouched
    expected = safetensors.torch.load_file(stranger.file)
    for trusting in ({"model": stranger.name}, {"trust_code": True}):
        state = load_encoder(stranger.file, **trusting).state_dict()
        assert all(torch.equal(state[name], value) for name, value in expected.items())


@pytest.mark.parametrize("entry", ["pretrain", "finetune"])
def test_a_configuration_is_asked_about_before_it_is_imported(entry, stranger, photos, tmp_path, capsys):
    file = tmp_path / "a.yaml"
    file.write_text(
        yaml.safe_dump({"model": stranger.name, "data": str(photos), "out": str(tmp_path / "out")})
    )
    assert main([entry, "--config", str(file)]) == 2
    assert f"{file} names the factory {stranger.name}" in capsys.readouterr().err
    with pytest.raises(UsageError, match=f"names the factory {stranger.name}"):
        getattr(fastmim, entry)(config=file)
    assert stranger.untouched


def test_a_teacher_in_a_configuration_is_asked_about(stranger, photos, tmp_path, capsys):
    file = tmp_path / "a.yaml"
    file.write_text(yaml.safe_dump({"distill": {"teacher": "none", "model": stranger.name}}))
    words = ["pretrain", "--config", str(file), "--data", str(photos), "--out", str(tmp_path / "out")]
    assert main(words) == 2
    assert f"--distill.model {stranger.name}" in capsys.readouterr().err
    assert stranger.untouched


def test_a_model_that_the_user_gives_takes_the_place_of_a_configurations(stranger, photos, tmp_path):
    file = tmp_path / "a.yaml"
    file.write_text(yaml.safe_dump({"model": stranger.name}))
    fastmim.pretrain(config=file, data=photos, out=tmp_path / "out", steps=1, **TINY)
    assert stranger.untouched


def test_the_stored_settings_of_a_run_are_asked_about(stranger, pretrained, tmp_path, capsys):
    run = tmp_path / "run"
    shutil.copytree(pretrained, run)
    text = (run / "config.yaml").read_text()
    assert f"model: {VIT}\n" in text
    (run / "config.yaml").write_text(text.replace(f"model: {VIT}\n", f"model: {stranger.name}\n"))
    assert main(["pretrain", "--resume", "--out", str(run)]) == 2
    assert f"config.yaml names the factory {stranger.name}" in capsys.readouterr().err
    with pytest.raises(UsageError, match=stranger.name):
        fastmim.pretrain(resume=True, out=run)
    assert stranger.untouched


def test_the_printed_command_goes_on_with_a_run_of_a_factory(stranger, photos, tmp_path):
    """It names the factory again, and is refused without."""
    from fastmim.config import PretrainConfig
    from fastmim.config.resume import resume_flags

    out = tmp_path / "out"
    given = {k: v for k, v in TINY.items() if k not in ("model", "model_kwargs")}
    first = fastmim.pretrain(data=photos, out=out, steps=2, model=stranger.name, **given)
    assert first.complete
    config = PretrainConfig(out=str(out), model=stranger.name)
    printed = resume_flags(config).split()
    assert printed == ["--resume", "--out", str(out), "--model", stranger.name]
    assert main(["pretrain", *printed]) == 0
    assert main(["pretrain", *printed[:3]]) == 2
    assert main(["pretrain", *printed[:3], "--trust-code"]) == 0


HUBS = [
    "hf-hub:timm/vit",
    "local-dir:/tmp",
    "https://example.org/a.pth",
    "os.path:join:x",
    "a b:c",
    ":",
    "x:",
]


@pytest.mark.parametrize("name", HUBS)
def test_no_hub_and_no_folder_is_a_factory_even_where_code_is_trusted(name):
    with pytest.raises(UsageError):
        check_described(name, {}, 0, "a.json", Trust(everything=True))
    with pytest.raises(UsageError) as error:
        Trust.of(name).check(f"{name}\n", "a.json")
    assert "nor a package.module:factory" in str(error.value)
    assert "\n" not in str(error.value)


REFUSED = {
    "checkpoint_path": "/etc/passwd",
    "pretrained": True,
    "pretrained_cfg": {"file": "a.pth"},
    "pretrained_cfg_overlay": {"file": "a.pth"},
    "pretrained_strict": False,
    "cache_dir": "/tmp",
    "features_only": True,
    "scriptable": True,
    "exportable": True,
    "no_jit": True,
    "out_indices": [1],
    "device": "cuda",
    "dtype": "float16",
    "self": 1,
    "nothing_of_the_kind": 1,
    "a\x1b[31m": 1,
}
WRONG = [
    {"act_layer": "os.system"},
    {"norm_layer": "os:system"},
    {"block_fn": "subprocess.Popen"},
    {"img_size": {"a": {"b": {"c": {"d": 1}}}}},
    {"img_size": 10**6},
    {"img_size": 4096, "patch_size": 1},
    {"depth": 10**9},
    {"depth": -10},
    {"depth": 10**5000},
    {"depth": float("inf")},
    {"depth": 60_000, "embed_dim": 1, "num_heads": 1},
    {"embed_dim": 65_536, "num_heads": 1},
    {"in_chans": 65_536, "patch_size": 64},
    {"num_classes": 10**12},
    {"mlp_ratio": float("nan")},
    {"num_heads": 0},
    {"num_heads": [2] * 1000},
    {"global_pool": "x" * 1000},
]


@pytest.mark.parametrize("argument", REFUSED)
def test_a_file_says_nothing_but_what_a_backbone_is(argument):
    with pytest.raises(UsageError) as error:
        check_described(VIT, {**KWARGS, argument: REFUSED[argument]}, 10_000, "a.json")
    said = str(error.value)
    assert said.startswith("a.json: kwargs: ")
    assert repr(argument).strip("'") in said


@pytest.mark.parametrize("kwargs", WRONG, ids=lambda kwargs: "-".join(kwargs))
def test_arguments_that_no_backbone_has_are_one_line(kwargs):
    with pytest.raises(UsageError) as error:
        check_described(VIT, {**KWARGS, **kwargs}, 10_000, "a.json")
    assert len(str(error.value)) < 1000
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("model", "kwargs"),
    [
        ("swin_tiny_patch4_window7_224", {"img_size": 800, "window_size": 200, "embed_dim": 4}),
        ("beit_base_patch16_224", {"img_size": 2048, "embed_dim": 32, "depth": 1, "num_heads": 2}),
        pytest.param("resnet18", {"layers": [60_000] * 4}, marks=pytest.mark.slow),
        ("convnext_tiny", {"dims": [65_536] * 4}),
    ],
)
def test_no_memory_is_taken_for_a_model_that_its_file_cannot_hold(model, kwargs):
    with pytest.raises(UsageError, match="that does not match its 1 numbers"):
        check_described(model, kwargs, 1, "a.json")


def test_limits_count_parameters_tensors_buffers_and_calls():
    with limited(12, tensors=2, buffered=7):
        torch.nn.Linear(3, 3)  # 12 parameters in 2 tensors
        torch.nn.BatchNorm2d(3, affine=False)  # 3 + 3 + 1 numbers
    for numbers, tensors in ((11, 2), (12, 1)):
        with pytest.raises(TooLarge), limited(numbers, tensors):
            torch.nn.Linear(3, 3)
    with pytest.raises(TooLarge), limited(12, buffered=6):
        torch.nn.BatchNorm2d(3, affine=False)
    before = sys.getprofile()
    with brief(1000):
        [abs(n) for n in range(300)]
    with pytest.raises(TooLarge), brief(1000):
        [abs(n) for n in range(3000)]
    assert sys.getprofile() is before
    assert timm.create_model(VIT) is not None  # nothing is counted any more


@pytest.mark.parametrize("name", ["swinv2_base_window12to24_192to384", "beit_large_patch16_512"])
def test_timms_own_models_stay_within_the_limits(name):
    built = check_described(name, {}, 1 << 28, "a.json")
    buffered = sum(buffer.numel() for buffer in built.buffers())
    assert {parameter.device.type for parameter in built.parameters()} == {"meta"}
    assert 1 << 20 < buffered < MOST_BUFFERED
