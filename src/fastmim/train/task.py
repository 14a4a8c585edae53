"""The interface between the engine (`train.run`) and a task.

Pre-training and classification are tasks; detection or segmentation would be further ones.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import nn

from fastmim.train.autotune import StepToTune
from fastmim.train.checkpoint import Checkpoint, Choices, Progress
from fastmim.train.kernels import KernelChoices
from fastmim.train.stages import Stage, TrainingPlan

MicroBatch = tuple[tuple[Any, ...], int]
"""Arguments of the module on its device (tensors, or lists or dictionaries of them), and number of images."""

Loader = Callable[[int], Iterator[Iterable[MicroBatch]]]
"""First step -> for each step from there on, this process's share of the batch in micro-batches."""

Evaluate = Callable[[], dict[str, float]]
"""Evaluate the module, in every process; the numbers join the step's line in metrics.jsonl.

It sets up the precision (`fabric.autocast`) itself; the engine returns the module to training mode."""


@dataclass(frozen=True)
class StageSetup:
    """Module, optimiser and kernel settings of one stage."""

    module: nn.Module
    """On its device. Called with a micro-batch's arguments, it returns an object with a ``loss``."""
    optimizer: torch.optim.AdamW
    step: StepToTune
    """The training step on which kernels are measured."""
    use: Callable[[KernelChoices], None]
    """Apply kernels to the module and the optimiser."""
    forward: Callable[[int], Any]
    """Run the module on a given number of images, to measure memory per image."""


@dataclass(frozen=True)
class StageData:
    """Loader and evaluation of one stage."""

    loader: Loader
    evaluate: Evaluate


@dataclass(frozen=True)
class Ended:
    """State of a run when the engine returns."""

    complete: bool
    progress: Progress
    stopped_by: int | None
    """Number of the signal that stopped the run early."""


class Task(Protocol):
    """A kind of training. Every process of a run has an instance, and all make the same calls.

    The order of the calls: the constructor, which writes nothing, since the run's folder is neither created
    nor locked; `identity`, and `check_resumable` if the run is resumed; for each stage `enter`, `summary`,
    `load` and `progress_line`, then the steps; at the end, also of a run that was stopped, `finish`. A class
    that names this protocol as its base inherits the methods that have a body here.
    """

    files: tuple[str, ...]
    """Names of the files that the task writes to the run's folder, in addition to the engine's."""
    plan: TrainingPlan

    def identity(self) -> dict[str, str]:
        """Return digests of data and initial weights, which a resumed run must share with the original."""
        ...

    def check_resumable(self, checkpoint: Checkpoint) -> None:
        """Raise UsageError unless the run would continue as it began."""
        ...

    def enter(self, stage: Stage, say: Callable[[str], None]) -> StageSetup:
        """Build the model for a stage, or resize it: the next stage, or the one a resumed run is in."""
        ...

    def load(self, stage: Stage, choices: Choices) -> StageData:
        """Build a stage's loader and evaluation, once kernels and micro-batch size are known."""
        ...

    def summary(self, stage: Stage) -> Iterable[str]:
        """Return lines that describe the model and the data, before a stage's kernels are measured."""
        return ()

    def progress_line(self, stage: Stage, choices: Choices) -> Iterable[str]:
        """Return lines that describe how the stage's steps are computed."""
        return ()

    def after_step(self) -> None:
        """Update state that follows the weights, such as a running mean or a teacher."""
        return

    def finish(self, ended: Ended, say: Callable[[str], None]) -> None:
        """Evaluate and write the outputs; all processes take part, and only the first one writes."""
        ...
