"""One way of computing a step after the other, tried in a process of its own.

There a crash, a hang or a NaN costs nothing: that way is not taken, and the next one gets a new process.
"""

import contextlib
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
from dataclasses import asdict
from pathlib import Path
from typing import Self, TextIO

import torch
from torch import Tensor, nn

from fastmim.system.documents import checked, parse_json
from fastmim.train.kernels import KernelChoices
from fastmim.train.trial_process import READY, Parcel, Trial, one_line

START_SECONDS = 300.0  # until the process has loaded PyTorch and the module
USUAL_SECONDS = 1200.0  # for the usual way, which the run would take anyway
COMPILE_SECONDS = 2400.0  # for one that compiles
TIMES_USUAL = 20.0  # any other way may take so many times what the usual one took, and at least
LEAST_SECONDS = 60.0
CHILD = "import sys; from fastmim.train.trial_process import serve; serve(sys.argv[1])"


class NotTried(Exception):
    """Nothing could be tried, for a reason that has nothing to do with what was to be tried."""


class Trials:
    """Tries ways of computing ``module(*inputs).loss`` and its gradients; a context manager.

    Args:
        module: on its device; it is copied, and stays as it is. Modules whose classes stand in a script that
            was run (``__main__``) cannot be copied to another process.
        inputs: of a trial, or more: for so many images as make a step of some length, the first axis is cut.
        bfloat16: whether steps are computed in mixed precision.
        usual: what the others are compared with.
    """

    def __init__(
        self, module: nn.Module, inputs: tuple[Tensor, ...], bfloat16: bool, usual: KernelChoices
    ) -> None:
        self._what = (module, inputs)
        self._parcel = Parcel(
            str(inputs[0].device),
            bfloat16,
            torch.get_num_threads(),
            torch.are_deterministic_algorithms_enabled(),
            usual,
        )
        self._usual = usual
        self._usual_took = 0.0
        self._known: dict[KernelChoices, Trial] = {}
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

    def of(self, kernels: KernelChoices) -> Trial:
        """Try that way, unless that was done.

        Raises:
            NotTried: the module could not be copied to another process, or no process could be started.
        """
        if kernels not in self._known:
            self._known[kernels] = self._try(kernels)
        return self._known[kernels]

    def _try(self, kernels: KernelChoices) -> Trial:
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

    def _patience(self, kernels: KernelChoices) -> float:
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
            raise NotTried(one_line(error)) from error
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
