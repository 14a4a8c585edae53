"""Check by trial whether a backbone can be pre-trained, and at which image size.

The contract: finite features of the expected shape; a gradient for every trainable parameter; an optimiser
step that changes the parameters; exported weights that load strictly into a new model and give the same
features.
"""

import contextlib
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock
from torch import Tensor

from fastmim.encoders.adapter import Encoder
from fastmim.encoders.build import build_encoder
from fastmim.encoders.catalogue import Backbone, look_up
from fastmim.encoders.sizes import working_sizes
from fastmim.errors import UsageError
from fastmim.methods.masked.input_masking import InputMasking
from fastmim.mim.settings import DecoderConfig, Masking, TargetConfig
from fastmim.mim.targets import build_target
from fastmim.system.hardware import free_bytes
from fastmim.train.optim import build_adamw, guarded_step
from fastmim.train.settings import OptimConfig
from fastmim.weights.encoder_file import describe_encoder, save_encoder
from fastmim.weights.load import load_encoder

NEAR = 128  # pixels, as in the paper
LARGE_SHARE = 0.2  # of the free memory: models that need more are checked one at a time
LOCK = "fastmim-large-model.lock"  # in the folder for temporary files
BYTES_PER_PARAMETER = 24  # of a run with kernel timing: weights, gradients, AdamW's moments and copies


@dataclass(frozen=True)
class Check:
    """Result of checking a backbone against the contract."""

    image_size: int
    """Side of the square images in pixels: the working size nearest to 128."""
    failures: tuple[str, ...]
    notes: tuple[str, ...] = ()
    """Further observations, which do not affect the verdict."""

    @property
    def passed(self) -> bool:
        return not self.failures

    def __str__(self) -> str:
        verdict = f"fails: {self.failures[0]}" if self.failures else f"pre-trains at {self.image_size}"
        return "; ".join((verdict, *self.notes))


def check(name: str, near: int = NEAR, model_kwargs: dict[str, Any] | None = None) -> Check:
    """Pre-train for one step at size ``near``, or the nearest size that works; export and reload."""
    kwargs = model_kwargs or {}
    with contextlib.suppress(UsageError):
        return Check(near, tuple(broken_promises(name, near, kwargs)))
    try:
        best = working_sizes(name, kwargs).best(near)
        return Check(best, tuple(broken_promises(name, best, kwargs)))
    except UsageError as error:
        return Check(near, (str(error),))


def check_by_pretraining(name: str) -> tuple[Backbone, Check]:
    """Run `fastmim pretrain` for one step in a new process, with kernel timing, and reload its export."""
    backbone = look_up(name)
    if backbone.sizes is None:
        return backbone, Check(NEAR, (backbone.reason,))
    side = backbone.sizes.best(NEAR)
    needed = BYTES_PER_PARAMETER * 1e6 * backbone.parameters
    with _alone(needed > LARGE_SHARE * free_bytes(torch.device("cpu"))):
        if needed > free_bytes(torch.device("cpu")):
            reason = f"not tried: it needs about {needed / 2**30:.0f} GiB of memory"
            return backbone, Check(side, (reason,))
        return backbone, _pretrained(name, side)


@contextlib.contextmanager
def _alone(large: bool) -> Iterator[None]:
    """Let one large model at a time, of all processes, be checked within the block."""
    with FileLock(Path(tempfile.gettempdir()) / LOCK) if large else contextlib.nullcontext():
        yield


def _pretrained(name: str, side: int) -> Check:
    with tempfile.TemporaryDirectory(prefix="fastmim-") as folder:
        run = Path(folder) / "run"
        settings = {"data": "demo:photos", "model": name, "image-size": side, "batch-size": 4, "steps": 1}
        settings |= {"held-out": 2, "workers": 0, "out": run}
        words = [word for key, value in settings.items() for word in (f"--{key}", str(value))]
        done = subprocess.run(
            [sys.executable, "-m", "fastmim", "pretrain", *words],
            env=os.environ | {"FASTMIM_CACHE": str(Path(folder) / "cache")},
            capture_output=True,
            text=True,
        )
        if done.returncode:
            lines = done.stderr.strip().splitlines() or [""]
            return Check(side, (f"exit code {done.returncode}: {lines[-1]}",))
        notes = tuple(line for line in done.stdout.splitlines() if line.endswith("not taken"))
        return Check(side, tuple(_unusable(run, side)), notes)


def _unusable(run: Path, side: int) -> Iterator[str]:
    """Yield a description of each fault of a run's export."""
    model: Any = load_encoder(run).eval()
    with torch.no_grad():
        features = model.forward_features(torch.randn(2, 3, side, side))
    parts = features if isinstance(features, tuple | list) else [features]
    if not all(torch.isfinite(part).all() for part in parts):
        yield "the exported model's features are not finite"


def look_up_and_check(name: str) -> tuple[Backbone, Check]:
    """Look up a backbone and check it, for the table of families."""
    backbone = look_up(name)
    near = backbone.sizes.best(NEAR) if backbone.sizes else NEAR
    return backbone, check(name, near)


def broken_promises(name: str, side: int, model_kwargs: dict[str, Any]) -> Iterator[str]:
    """Yield a description of each violation of the contract at an image size of ``side`` pixels."""
    torch.manual_seed(0)
    encoder = build_encoder(name, (side, side), model_kwargs=model_kwargs)
    images = torch.randn(2, 3, side, side)
    grid = (side // encoder.stride, side // encoder.stride)
    features = encoder(images)
    if features.shape != (2, encoder.width, *grid):
        yield f"features are {tuple(features.shape)}, not {(2, encoder.width, *grid)}"
    if not torch.isfinite(features).all():
        yield "features are not finite"
    del features

    target = build_target(TargetConfig(), encoder.stride)
    method = InputMasking(encoder, target, Masking(), DecoderConfig(depth=0), "l2")
    optimizer = build_adamw(method, OptimConfig())
    method.train()
    mask = method.draw_mask(torch.Generator().manual_seed(0), 2, (side, side))
    method(images, mask).loss.backward()
    trained = [(n, p) for n, p in method.named_parameters() if p.requires_grad]
    missing = [n for n, p in trained if p.grad is None]
    if missing:
        yield f"no gradient reaches {len(missing)} parameters, first {missing[0]}"
    # AdamW adds epsilon = 1e-8 to the gradient's magnitude, so far smaller gradients change nothing.
    pushed = [
        (n, p, p.detach().clone()) for n, p in trained if p.grad is not None and p.grad.abs().max() > 1e-6
    ]
    _, taken = guarded_step(optimizer, 1e-3, None)
    if not taken:
        yield "the gradient is not finite"
    still = [n for n, p, old in pushed if torch.equal(p, old)]
    if taken and still:
        yield f"a step does not change {len(still)} parameters that have a gradient, first {still[0]}"
    del optimizer, pushed
    yield from _lost_in_export(encoder, images)


def _lost_in_export(encoder: Encoder, images: Tensor) -> Iterator[str]:
    encoder.eval()
    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        origin = describe_encoder(encoder, (0.0,) * 3, (1.0,) * 3, "fastmim", "hog")
        save_encoder(Path(folder), encoder.model, origin)
        expected = encoder(images)
        model = load_encoder(folder).eval()
        again = Encoder(model, encoder.model_name, encoder.model_kwargs, encoder.image_size, encoder.in_chans)
        if not torch.allclose(again(images), expected, rtol=1e-4, atol=1e-5):
            yield "a model that loads the export gives other features"
