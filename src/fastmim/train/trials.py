"""Measure kernel choices for a training step in a child process.

A crash, a hang or a NaN only rejects the choice; after a crash or a hang, the next trial gets a new process.
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

START_SECONDS = 300.0  # for the process to load PyTorch and the module
USUAL_SECONDS = 1200.0  # for the usual kernels, which the run would use anyway
COMPILE_SECONDS = 2400.0  # for kernels that are compiled
TIMES_USUAL = 20.0  # limit for other kernels, relative to the usual ones' time; at least
LEAST_SECONDS = 60.0
CHILD = "import sys; from fastmim.train.trial_process import serve; serve(sys.argv[1])"


class NotTried(Exception):
    """No trial was possible, for a reason unrelated to the kernels."""


class Trials:
    """Measures kernel choices for ``module(*inputs).loss`` and its gradients; a context manager.

    Args:
        module: on its device; it is copied and not changed. Modules whose classes are defined in the script
            that is run (``__main__``) cannot be copied to another process.
        inputs: arguments of the module, for at least as many images as a trial uses; the first axis is cut to
            the number that gives a step of some length.
        bfloat16: whether steps are computed in mixed precision.
        usual: the kernels that others are compared with.
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
        """Return the trial of a choice of kernels, measured at the first request.

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
        """Return the child process, started if necessary, once it has loaded the module."""
        if self._process is not None:
            return self._process
        if not sys.executable:
            raise NotTried("this Python has no executable")
        try:
            file = self._packed()
            process = subprocess.Popen(
                [sys.executable, "-c", CHILD, str(file)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                text=True,
                env=os.environ
                | {"PYTHONPATH": os.pathsep.join(path or str(Path.cwd()) for path in sys.path)},
            )
        except Exception as error:
            raise NotTried(one_line(error)) from error
        self._process, self._answers = process, queue.Queue()
        threading.Thread(target=_pass_lines, args=(process.stdout, self._answers), daemon=True).start()
        try:
            answer = self._answer(START_SECONDS)
        except (TimeoutError, OSError) as error:
            raise NotTried(f"the process {self._why(error)}") from error
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
        """Return the child's next line. Raises TimeoutError, or OSError if the child has ended."""
        try:
            line = self._answers.get(timeout=seconds)
        except queue.Empty:
            raise TimeoutError from None
        if not line:
            raise OSError
        return line.rstrip("\n")

    def _why(self, error: Exception) -> str:
        """End the child process and describe how it failed."""
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
    """Put each line of the stream in the queue as it arrives, and an empty one at its end."""
    with contextlib.suppress(OSError, ValueError):
        for line in stream:
            answers.put(line)
    answers.put("")
