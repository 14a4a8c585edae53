"""Child process that measures kernel choices; `trials` starts it and sends it one request per line."""

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

SECONDS = 1.0  # of timed steps per choice, after the first call
CALLS = 5  # timed steps at most
FEWEST_IMAGES = 8  # per step on a CPU, more if a step takes less than SHORT_STEP
SHORT_STEP = 0.25  # seconds; a GPU always gets all images
ALIKE = 1e-3  # relative error that another order of summation explains
LAST_DIGITS = 1e-6  # relative precision of float32
READY = "ready"


@dataclass(frozen=True)
class Trial:
    """Speed and accuracy of a training step with one choice of kernels."""

    seconds: float = math.inf
    """Time of a forward and backward pass per image; the shortest of a few."""
    error: float = math.inf
    """Relative difference of loss and gradients from a float32 step with the usual kernels."""
    noise: float = 0.0
    """Relative change of loss and gradients if weights and images differ in their last digits."""
    failure: str = ""
    """Reason why the trial failed; empty if it ran."""

    @property
    def ran(self) -> bool:
        return not self.failure

    def agrees_with(self, usual: "Trial") -> bool:
        """Return whether the error is at most that of the usual kernels in this precision, up to rounding."""
        return self.ran and self.error <= 2 * max(usual.error, usual.noise) + ALIKE


@dataclass(frozen=True)
class Parcel:
    """Settings that the process needs in addition to the module and its inputs."""

    device: str
    bfloat16: bool
    threads: int
    deterministic: bool
    start: KernelChoices


def one_line(error: BaseException) -> str:
    """Return the type and message of an error in one line of at most 300 characters."""
    return " ".join(f"{type(error).__name__}: {error}".split())[:300]


def serve(file: str) -> None:
    """Answer trial requests, one line of JSON each, until standard input is closed."""
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w")
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # libraries may print, too
    _be_the_first_to_go()
    try:
        # Safe to unpickle: the parent process has just written the file, as the same user.
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
    """Make the OOM killer choose this process before its parent, end with the parent, dump no core."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent handles it
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("1000")
    with contextlib.suppress(ImportError, OSError, ValueError):
        import resource  # not on every platform

        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG, Linux only


@contextlib.contextmanager
def _alarm(seconds: int) -> Iterator[None]:
    """Kill this process if the block takes longer than ``seconds``, whatever it is doing."""
    if not hasattr(signal, "alarm"):
        yield
        return
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)


class Bench:
    """Measures training steps of a module against a float32 reference."""

    def __init__(self, module: nn.Module, inputs: tuple[Tensor, ...], parcel: Parcel) -> None:
        self.module = module
        self.inputs = inputs
        self.parcel = parcel
        self.training = len(inputs[0]) > 1  # batch norms cannot train on a single image
        self.state = {name: tensor.clone() for name, tensor in module.state_dict().items()}
        self.count = len(inputs[0])
        self.loss = self.noise = math.nan
        self.gradients: list[Tensor | None] = []

    def trial(self, kernels: KernelChoices) -> Trial:
        """Measure one choice of kernels, on fewer images if memory runs out."""
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
        """Compute loss and gradients with the usual kernels in float32, and their change under rounding."""
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
        """Choose the number of images per step."""
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
            self.module(*self.inputs).loss.item()  # as in the run's evaluations, to find crashes
        return Trial(min(times[1:]) / self.count, error, self.noise)

    def _prepare(self, kernels: KernelChoices) -> None:
        """Apply the kernels to the module and restore its initial state."""
        apply(self.module, replace(kernels, threads=kernels.threads or self.parcel.threads))
        with torch.no_grad():
            for name, tensor in self.module.state_dict().items():
                tensor.copy_(self.state[name])
        self.module.train(self.training)

    def _rounding(self) -> float:
        """Return the error of a float32 step whose weights and images are perturbed by rounding."""
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
        torch.manual_seed(0)  # for dropout and drop path
        if not self.training:
            self.module.eval()  # again: some models (LeViT, TinyViT) keep part of the graph until then
        with self._autocast(bfloat16):
            loss: Tensor = self.module(*self.inputs).loss
        loss.backward()  # type: ignore[no-untyped-call]
        return loss.item()

    def _autocast(self, bfloat16: bool) -> contextlib.AbstractContextManager[object]:
        kind = torch.device(self.parcel.device).type
        return torch.autocast(kind, torch.bfloat16) if bfloat16 else contextlib.nullcontext()

    def _error(self, loss: float) -> float:
        """Return the larger relative error of loss and gradients; infinity if one of them is not finite."""
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
