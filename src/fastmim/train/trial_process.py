"""The process in which ways of computing a step are tried; `trials` starts it and asks it, line by line."""

import contextlib
import ctypes
import json
import math
import os
import signal
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from fastmim.system.hardware import keep_freed_memory
from fastmim.train.kernels import KernelChoices, apply

SECONDS = 1.0  # of steps that are timed, for each way, after its first call
CALLS = 5  # at most
FEWEST_IMAGES = 8  # of a step on a CPU, and more where it is shorter than
SHORT_STEP = 0.25  # seconds; on a GPU, all images that there are
ALIKE = 1e-3  # relative: what another order of summation explains
LAST_DIGITS = 1e-6  # relative, of float32
READY = "ready"


@dataclass(frozen=True)
class Trial:
    """What came of a way of computing a step."""

    seconds: float = math.inf
    """Of a forward and backward pass, an image; the shortest of a few."""
    error: float = math.inf
    """How far loss and gradients are from those of the usual way in float32, relative to those."""
    noise: float = 0.0
    """How far those are moved by rounding: by weights and images that differ in their last digits."""
    failure: str = ""
    """Why there is nothing else."""

    @property
    def ran(self) -> bool:
        return not self.failure

    def agrees_with(self, usual: "Trial") -> bool:
        """Whether it is no less exact than the usual way of the same precision, but for rounding."""
        return self.ran and self.error <= 2 * max(usual.error, usual.noise) + ALIKE


@dataclass(frozen=True)
class Parcel:
    """What the process needs, beside the module and its inputs."""

    device: str
    bfloat16: bool
    threads: int
    deterministic: bool
    start: KernelChoices


def one_line(error: BaseException) -> str:
    """Kind and message of an error, at most 300 characters."""
    return " ".join(f"{type(error).__name__}: {error}".split())[:300]


def serve(file: str) -> None:
    """Try what is asked for, a line of JSON a trial, until nobody asks any more."""
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w")
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # what libraries print is no answer
    _be_the_first_to_go()
    try:
        # The file is this user's, written a moment ago by the process that waits for this one.
        parcel, module, inputs = torch.load(file, weights_only=False)
    except Exception as error:
        print(one_line(error), file=answers, flush=True)
        return
    torch.set_num_threads(parcel.threads)
    if parcel.deterministic:
        torch.use_deterministic_algorithms(True, warn_only=True)
        torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    if parcel.device == "cpu":
        keep_freed_memory()
    bench = Bench(module, inputs, parcel)
    print(READY, file=answers, flush=True)
    for line in sys.stdin:
        asked = json.loads(line)
        with _alarm(asked["seconds"]):
            trial = bench.trial(KernelChoices(**asked["kernels"]))
        finite = {k: v for k, v in asdict(trial).items() if not isinstance(v, float) or math.isfinite(v)}
        print(json.dumps(finite), file=answers, flush=True)


def _be_the_first_to_go() -> None:
    """Where memory runs out, this process is killed before the one that it serves; and it leaves no core."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the other's to answer
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("1000")
    with contextlib.suppress(ImportError, OSError, ValueError):
        import resource  # not on every platform

        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG, of Linux


@contextlib.contextmanager
def _alarm(seconds: int) -> Iterator[None]:
    """Within the block, so many seconds kill this process, whatever it is at."""
    if not hasattr(signal, "alarm"):
        yield
        return
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)


class Bench:
    """A module, what it is tried on, and the answers of the usual way in float32."""

    def __init__(self, module: nn.Module, inputs: tuple[Tensor, ...], parcel: Parcel) -> None:
        self.module = module
        self.inputs = inputs
        self.parcel = parcel
        self.training = len(inputs[0]) > 1  # batch norms cannot be trained by one image
        self.state = {name: tensor.clone() for name, tensor in module.state_dict().items()}
        self.count = len(inputs[0])
        self.loss = self.noise = math.nan
        self.gradients: list[Tensor | None] = []

    def trial(self, kernels: KernelChoices) -> Trial:
        """Try that way, on fewer images where there is no memory for all of them."""
        try:
            if not self.gradients:
                self._compute_reference()
            return self._measured(kernels)
        except torch.OutOfMemoryError as error:
            self.module.zero_grad(set_to_none=True)
            if self.count <= FEWEST_IMAGES:
                return Trial(failure=f"failed ({one_line(error)})")
        except Exception as error:
            self.module.zero_grad(set_to_none=True)
            return Trial(failure=f"failed ({one_line(error)})")

        self.gradients = []
        self._take(self.count // 2)
        return self.trial(kernels)

    def _compute_reference(self) -> None:
        """Loss and gradients of the usual way in float32, and how far rounding moves them."""
        self._prepare(self.parcel.start)
        self._cut()
        self._prepare(self.parcel.start)
        self.loss = self._step(bfloat16=False)
        self.gradients = [parameter.grad for parameter in self.module.parameters()]
        self.module.zero_grad(set_to_none=True)
        self.noise = self._rounding()

    def _take(self, count: int) -> None:
        self.count = count
        self.inputs = tuple(tensor[:count] for tensor in self.inputs)

    def _cut(self) -> None:
        """Settle on how many images there are in a step."""
        if self.parcel.device != "cpu" or self.count <= FEWEST_IMAGES:
            return
        everything, most = self.inputs, self.count
        self.inputs = tuple(tensor[:FEWEST_IMAGES] for tensor in everything)
        self._step(self.parcel.bfloat16)
        start = time.perf_counter()
        self._step(self.parcel.bfloat16)
        times = int(SHORT_STEP / (time.perf_counter() - start))
        self.module.zero_grad(set_to_none=True)
        self.inputs = everything
        self._take(min(most, FEWEST_IMAGES * max(1, times)))

    def _measured(self, kernels: KernelChoices) -> Trial:
        self._prepare(kernels)
        times: list[float] = []
        error = math.inf
        while len(times) < 1 + CALLS and sum(times[1:]) < SECONDS:
            start = time.perf_counter()
            loss = self._step(self.parcel.bfloat16)  # waits for the device
            times.append(time.perf_counter() - start)
            if len(times) == 1:
                error = self._error(loss)
            self.module.zero_grad(set_to_none=True)
        if not math.isfinite(error):
            return Trial(failure="gave a loss or gradients that are not finite")
        self.module.eval()
        with torch.no_grad(), self._autocast(self.parcel.bfloat16):
            self.module(*self.inputs).loss.item()  # as the run's measurements do; for its crashes
        return Trial(min(times[1:]) / self.count, error, self.noise)

    def _prepare(self, kernels: KernelChoices) -> None:
        """The module as it came, computed that way."""
        apply(self.module, replace(kernels, threads=kernels.threads or self.parcel.threads))
        with torch.no_grad():
            for name, tensor in self.module.state_dict().items():
                tensor.copy_(self.state[name])
        self.module.train(self.training)

    def _rounding(self) -> float:
        """The error of a step in float32 whose weights and images are moved by what rounding moves."""
        self._prepare(self.parcel.start)
        exact = self.inputs
        torch.manual_seed(0)
        with torch.no_grad():
            for parameter in self.module.parameters():
                parameter.mul_(1 + LAST_DIGITS * torch.randn_like(parameter))
        images, *rest = exact
        self.inputs = (images * (1 + LAST_DIGITS * torch.randn_like(images)), *rest)
        error = self._error(self._step(bfloat16=False))
        self.inputs = exact
        self.module.zero_grad(set_to_none=True)
        return error if math.isfinite(error) else 0.0

    def _step(self, bfloat16: bool) -> float:
        torch.manual_seed(0)  # what the module drops
        if not self.training:
            self.module.eval()  # again: some models (LeViT, TinyViT) keep a part of the graph until then
        with self._autocast(bfloat16):
            loss: Tensor = self.module(*self.inputs).loss
        loss.backward()  # type: ignore[no-untyped-call]
        return loss.item()

    def _autocast(self, bfloat16: bool) -> contextlib.AbstractContextManager[object]:
        kind = torch.device(self.parcel.device).type
        return torch.autocast(kind, torch.bfloat16) if bfloat16 else contextlib.nullcontext()

    def _error(self, loss: float) -> float:
        """Of loss or gradients, the larger one; NaN and infinite ones are infinitely wrong."""
        apart = norm = 0.0
        for parameter, expected in zip(self.module.parameters(), self.gradients, strict=True):
            if (parameter.grad is None) != (expected is None):
                return math.inf
            if parameter.grad is not None and expected is not None:
                apart += float((parameter.grad.float() - expected.float()).square().sum())
                norm += float(expected.float().square().sum())
        tiny = 1e-30
        found = max(abs(loss - self.loss) / (abs(self.loss) + tiny), math.sqrt(apart / (norm + tiny)))
        return found if math.isfinite(found) else math.inf
