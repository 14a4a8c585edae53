"""Small real and made images that many tests share."""

import contextlib
import io
import json
import os
import resource
from collections import Counter
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import settings
from PIL import Image
from safetensors.torch import load_file

import fastmim
from fastmim.data.decode.resize import Box
from fastmim.train.trial_process import Trial
from fastmim.train.trials import Trials
from simulated_device import ON_DEVICE, install

settings.register_profile("unhurried", deadline=None)  # no test has a clock
settings.load_profile("unhurried")

SHARED = Path(__file__).resolve().parents[2] / "shared"

# Those that nothing is measured for.
USUAL: dict[str, Any] = {
    "attention": "fused",
    "memory_format": "contiguous",
    "compile": "none",
    "optimizer": "fused",
    "threads": 1,
}

# A ViT small enough that a step takes milliseconds; every setting is timm's own.
TINY: dict[str, Any] = {
    "model": "vit_tiny_patch16_224",
    "model_kwargs": {"embed_dim": 32, "depth": 2, "num_heads": 2},
    "image_size": 32,
    "decoder": {"width": 32},
    "batch_size": 8,
    "held_out": 4,
    "workers": 0,
    "log_every_steps": 2,
    "evaluations": 2,
    "kernels": USUAL,
    "quiet": True,
}

# Settings of a fine-tuning run that takes a second.
QUICK: dict[str, Any] = {
    "image_size": 32,
    "batch_size": 8,
    "steps": 4,
    "workers": 0,
    "log_every_steps": 2,
    "evaluations": 2,
    "val_share": 0.25,
    "kernels": USUAL,
    "quiet": True,
}


REAL_TRIAL = Trials.of
CPU_BEFORE = pytest.StashKey[float]()


class Killed(Exception):
    """What a test raises in a run, as if its process had been killed."""


@contextlib.contextmanager
def killed(step: int) -> Iterator[None]:
    """Kill the run in the block at its optimiser step with this number, from 1."""
    from fastmim.train import loop

    real, calls = loop.guarded_step, []

    def dying(*arguments: Any) -> Any:
        calls.append(None)
        if len(calls) == step:
            raise Killed
        return real(*arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "guarded_step", dying)
        with pytest.raises(Killed):
            yield


def mostly_slow(cases: Iterable[Any], default: Collection[Any]) -> list[Any]:
    """Mark the cases that are not in ``default`` as slow; a tuple is the values of several arguments."""

    def slow(case: Any) -> Any:
        values = case if isinstance(case, tuple) else (case,)
        return pytest.param(*values, marks=pytest.mark.slow)

    return [case if case in default else slow(case) for case in cases]


def batch(network, count=2, size=None):
    """Noise as images of ``size`` (by default the network's), and masks for them."""
    size = size or network.image_size
    images = torch.randn(count, 3, *size, generator=torch.Generator().manual_seed(1))
    return images, network.draw_mask(torch.Generator().manual_seed(2), count, size)


def lively(model):
    """The model with weights so large that attention, positions, layer scale and norms tell."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.copy_(0.3 * noise if parameter.ndim > 1 else 1 + 0.1 * noise)
    return model.eval()


def weights(run: Path) -> dict[str, torch.Tensor]:
    return load_file(run / "encoder.safetensors")


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


def lines(run: Path) -> list[dict]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def shared(*parts: str) -> Path:
    """A file of the data that lies beside the project; the test is skipped where it is not there."""
    path = SHARED.joinpath(*parts)
    if not path.exists():
        pytest.skip(f"{'/'.join(parts)} is not beside the project")
    return path


def photo(seed: int, height: int = 48, width: int = 64) -> np.ndarray:
    """Something with edges: random rectangles on a gradient, (H, W, 3) uint8."""
    generator = np.random.default_rng(seed)
    image = np.linspace(0, 255, width, dtype=np.uint8)[None, :, None].repeat(height, 0).repeat(3, 2).copy()
    for _ in range(12):
        top, left = generator.integers(0, height - 4), generator.integers(0, width - 4)
        bottom, right = top + generator.integers(3, height), left + generator.integers(3, width)
        image[top:bottom, left:right] = generator.integers(0, 256, 3)
    return image


def encoded(image: Image.Image, kind: str, **options) -> bytes:
    """The image as a file of that kind holds it."""
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def whole(height: int, width: int) -> Box:
    """All of an image, as a crop."""
    return Box(0, 0, height, width)


def cpu_seconds() -> float:
    """CPU time of this process and of its children that have ended."""
    usages = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--cpu-times",
        action="store_true",
        help="list CPU seconds of files and tests, child processes included",
    )


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo):
    """Note the CPU seconds of a test's setup, call or teardown, for ``--cpu-times``."""
    report = yield
    now = cpu_seconds()
    report.user_properties.append(("cpu", now - item.config.stash.get(CPU_BEFORE, 0.0)))
    item.config.stash[CPU_BEFORE] = now
    return report


def pytest_collection_finish(session: pytest.Session) -> None:
    session.config.stash[CPU_BEFORE] = cpu_seconds()


def pytest_terminal_summary(terminalreporter, config: pytest.Config) -> None:
    if not config.getoption("--cpu-times"):
        return
    files, tests = Counter(), Counter()
    for reports in terminalreporter.stats.values():
        for report in reports:
            seconds = dict(getattr(report, "user_properties", ())).get("cpu", 0.0)
            tests[getattr(report, "nodeid", "")] += seconds
            files[getattr(report, "nodeid", "").partition("::")[0]] += seconds
    for title, seconds in (("files", files), ("tests", tests)):
        terminalreporter.section(f"CPU seconds of {title}, {seconds.total():.0f} in all")
        for name, value in seconds.most_common():
            if value >= 0.5:
                terminalreporter.line(f"{value:8.1f} {name}")


@pytest.fixture(scope="session")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of 24 JPEGs in two subfolders."""
    root = tmp_path_factory.mktemp("photos")
    for number in range(24):
        folder = root / f"class{number % 2}"
        folder.mkdir(exist_ok=True)
        Image.fromarray(photo(number)).save(folder / f"{number:02d}.jpg", quality=92)
    return root


@pytest.fixture(scope="session")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images with masks of three classes."""
    from annotated import write_scenes

    write_scenes(folder := tmp_path_factory.mktemp("scenes"))
    return folder


@pytest.fixture(scope="session")
def squares(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images with boxes and masks of two classes, in COCO's layout."""
    from annotated import write_squares

    write_squares(folder := tmp_path_factory.mktemp("squares"))
    return folder


@pytest.fixture(scope="session")
def segmenter(scenes: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run of a segmenter that has learned a little."""
    from annotated import SEGMENT

    run = tmp_path_factory.mktemp("runs") / "segment"
    fastmim.segment(data=scenes, out=run, **{**SEGMENT, "steps": 30, "optim": {"base_lr": 0.3}})
    return run


@pytest.fixture(scope="session")
def detector(squares: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run of a detector that finds objects of any score."""
    from annotated import DETECT

    run = tmp_path_factory.mktemp("runs") / "detect"
    fastmim.detect(data=squares, out=run, **{**DETECT, "steps": 2, "head.score": 0.0})
    return run


@pytest.fixture(scope="session")
def pretrained(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run of a tiny ViT."""
    run = tmp_path_factory.mktemp("pretrained") / "run"
    fastmim.pretrain(data=photos, out=run, steps=2, **TINY)
    return run


@pytest.fixture(autouse=True, scope="session")
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """What tests remember is not the user's."""
    before = os.environ.get("FASTMIM_CACHE")
    os.environ["FASTMIM_CACHE"] = str(tmp_path_factory.mktemp("cache"))
    yield
    if before is None:
        del os.environ["FASTMIM_CACHE"]
    else:
        os.environ["FASTMIM_CACHE"] = before


@pytest.fixture(autouse=True, scope="session")
def _no_trials() -> Iterator[None]:
    """All kernels are as fast, so that the usual ones are taken, but for the tests with `real_trials`."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Trials, "of", lambda *_: Trial(1e-3, 0.0))
        yield


@pytest.fixture
def real_trials(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lets a test try kernels in another process, which takes seconds."""
    monkeypatch.setattr(Trials, "of", REAL_TRIAL)


@pytest.fixture(scope="session")
def device(request: pytest.FixtureRequest) -> torch.device:
    """The simulated accelerator, for files that have a process of their own (see `simulated_device`)."""
    strangers = [item.path.name for item in request.session.items if not item.path.name.endswith(ON_DEVICE)]
    if strangers:
        pytest.fail(f"tests on the simulated device run by themselves, without {strangers[0]}")
    return install()
