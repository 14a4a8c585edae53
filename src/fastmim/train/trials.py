"""One way of computing a step after the other, tried in a process of its own.

There a crash, a hang or a NaN costs nothing: that way is not taken, and the next one gets a new process.
"""

import contextlib
import ctypes
import json
import math
import os
import queue
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Self, TextIO

import torch
from torch import Tensor, nn

from fastmim.system.documents import checked, parse_json
from fastmim.system.hardware import keep_freed_memory
from fastmim.train.kernels import Kernels, apply

SECONDS = 1.0  # of steps that are timed, for each way, after its first call
CALLS = 5  # at most
FEWEST_IMAGES = 8  # of a step on a CPU, and more where it is shorter than
SHORT_STEP = 0.25  # seconds; on a GPU, all images that there are
START_SECONDS = 300.0  # until the process has loaded PyTorch and the module
USUAL_SECONDS = 1200.0  # for the usual way, which the run would take anyway
COMPILE_SECONDS = 2400.0  # for one that compiles
TIMES_USUAL = 20.0  # any other way may take so many times what the usual one took, and at least
LEAST_SECONDS = 60.0
ALIKE = 1e-3  # relative: what another order of summation explains
LAST_DIGITS = 1e-6  # relative, of float32
READY = "ready"
CHILD = "import sys; from fastmim.train.trials import serve; serve(sys.argv[1])"


class NotTried(Exception):
    """Nothing could be tried, for a reason that has nothing to do with what was to be tried."""


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
class _Parcel:
    """What the process needs, beside the module and its inputs."""

    device: str
    bfloat16: bool
    threads: int
    deterministic: bool
    start: Kernels


class Trials:
    """Tries ways of computing ``module(*inputs).loss`` and its gradients; a context manager.

    Args:
        module: on its device; it is copied, and stays as it is. Modules whose classes stand in a script that
            was run (``__main__``) cannot be copied to another process.
        inputs: of a trial, or more: for so many images as make a step of some length, the first axis is cut.
        bfloat16: whether steps are computed in mixed precision.
        usual: what the others are compared with.
    """

    def __init__(self, module: nn.Module, inputs: tuple[Tensor, ...], bfloat16: bool, usual: Kernels) -> None:
        self._what = (module, inputs)
        self._parcel = _Parcel(
            str(inputs[0].device),
            bfloat16,
            torch.get_num_threads(),
            torch.are_deterministic_algorithms_enabled(),
            usual,
        )
        self._usual = usual
        self._usual_took = 0.0
        self._known: dict[Kernels, Trial] = {}
        self._folder: tempfile.TemporaryDirectory[str] | None = None
        self._process: subprocess.Popen[str] | None = None
        self._answers: queue.Queue[str] = queue.Queue()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._end()
        if self._folder is not None:
            self._folder.cleanup()
            self._folder = None

    def of(self, kernels: Kernels) -> Trial:
        """Try that way, unless that was done.

        Raises:
            NotTried: the module could not be copied to another process, or no process could be started.
        """
        if kernels not in self._known:
            self._known[kernels] = self._try(kernels)
        return self._known[kernels]

    def _try(self, kernels: Kernels) -> Trial:
        start = time.monotonic()
        process = self._running()
        seconds = self._patience(kernels)
        try:
            assert process.stdin is not None
            asked = {"kernels": asdict(kernels), "seconds": math.ceil(seconds)}
            print(json.dumps(asked), file=process.stdin, flush=True)
            answer = self._answer(seconds)
        except (TimeoutError, OSError) as error:
            return Trial(failure=self._why(error))
        trial = checked(Trial, parse_json(answer, "the trial's answer"), "the trial's answer")
        if kernels == self._usual:
            self._usual_took = time.monotonic() - start
        return trial

    def _patience(self, kernels: Kernels) -> float:
        if kernels.compile in ("model", "cudagraphs"):
            return COMPILE_SECONDS
        if kernels == self._usual or not self._usual_took:
            return USUAL_SECONDS
        return max(LEAST_SECONDS, TIMES_USUAL * self._usual_took)

    def _running(self) -> subprocess.Popen[str]:
        """The process, once it has the module."""
        if self._process is not None:
            return self._process
        if not sys.executable:
            raise NotTried("this Python has no executable of its own")
        try:
            file = self._packed()
            process = subprocess.Popen(
                [sys.executable, "-c", CHILD, str(file)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                text=True,
                env=os.environ | {"PYTHONPATH": os.pathsep.join(path or os.getcwd() for path in sys.path)},
            )
        except Exception as error:
            raise NotTried(_line(error)) from error
        self._process, self._answers = process, queue.Queue()
        threading.Thread(target=_pass_lines, args=(process.stdout, self._answers), daemon=True).start()
        try:
            answer = self._answer(START_SECONDS)
        except (TimeoutError, OSError) as error:
            raise NotTried(f"the process for it {self._why(error)}") from error
        if answer != READY:
            self._end()
            raise NotTried(answer)
        return process

    def _packed(self) -> Path:
        if self._folder is None:
            folder = tempfile.TemporaryDirectory(prefix="fastmim-trials-")
            try:
                torch.save((self._parcel, *self._what), Path(folder.name) / "step")
            except BaseException:
                folder.cleanup()
                raise
            self._folder = folder
        return Path(self._folder.name) / "step"

    def _answer(self, seconds: float) -> str:
        """The next line of the process. Raises TimeoutError, or OSError where it has ended."""
        try:
            line = self._answers.get(timeout=seconds)
        except queue.Empty:
            raise TimeoutError from None
        if not line:
            raise OSError
        return line.rstrip("\n")

    def _why(self, error: Exception) -> str:
        """What became of the process, which is ended."""
        if isinstance(error, TimeoutError):
            self._end()
            return "did not end"
        assert self._process is not None
        code = self._process.wait()
        self._end()
        if code == -getattr(signal, "SIGALRM", 0):
            return "did not end"
        return f"crashed ({signal.Signals(-code).name})" if code < 0 else f"ended with code {code}"

    def _end(self) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        process.kill()
        process.wait()
        for stream in (process.stdin, process.stdout):
            with contextlib.suppress(OSError):
                if stream is not None:
                    stream.close()


def _pass_lines(stream: TextIO, answers: "queue.Queue[str]") -> None:
    """Each line of the stream as it comes, and an empty one at its end."""
    with contextlib.suppress(OSError, ValueError):
        for line in stream:
            answers.put(line)
    answers.put("")


def _line(error: BaseException) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:300]


# ---- in the process


def serve(file: str) -> None:
    """Try what is asked for, a line of JSON a trial, until nobody asks any more."""
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w")
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # what libraries print is no answer
    _be_the_first_to_go()
    try:
        # The file is this user's, written a moment ago by the process that waits for this one.
        parcel, module, inputs = torch.load(file, weights_only=False)
    except Exception as error:
        print(_line(error), file=answers, flush=True)
        return
    torch.set_num_threads(parcel.threads)
    if parcel.deterministic:
        torch.use_deterministic_algorithms(True, warn_only=True)
        torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    if parcel.device == "cpu":
        keep_freed_memory()
    bench = _Bench(module, inputs, parcel)
    print(READY, file=answers, flush=True)
    for line in sys.stdin:
        asked = json.loads(line)
        with _alarm(asked["seconds"]):
            trial = bench.trial(Kernels(**asked["kernels"]))
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


class _Bench:
    """A module, what it is tried on, and the answers of the usual way in float32."""

    def __init__(self, module: nn.Module, inputs: tuple[Tensor, ...], parcel: _Parcel) -> None:
        self.module = module
        self.inputs = inputs
        self.parcel = parcel
        self.training = len(inputs[0]) > 1  # batch norms cannot be trained by one image
        self.state = {name: tensor.clone() for name, tensor in module.state_dict().items()}
        self.count = len(inputs[0])
        self.loss = self.noise = math.nan
        self.gradients: list[Tensor | None] = []

    def trial(self, kernels: Kernels) -> Trial:
        try:
            if not self.gradients:
                self._prepare(self.parcel.start)
                self._cut()
                self._prepare(self.parcel.start)
                self.loss = self._step(bfloat16=False)
                self.gradients = [parameter.grad for parameter in self.module.parameters()]
                self.module.zero_grad(set_to_none=True)
                self.noise = self._rounding()
            return self._measured(kernels)
        except Exception as error:
            self.module.zero_grad(set_to_none=True)
            return Trial(failure=f"failed ({_line(error)})")

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
        self.count = min(most, FEWEST_IMAGES * max(1, times))
        self.inputs = tuple(tensor[: self.count] for tensor in everything)

    def _measured(self, kernels: Kernels) -> Trial:
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

    def _prepare(self, kernels: Kernels) -> None:
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
