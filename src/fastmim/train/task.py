"""All that the engine (`train.run`) asks of a task, and nothing that it knows.

Pre-training and classification are tasks; detection, segmentation or a method of another kind is one more.
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
"""Arguments of the module, on its device: tensors, or lists and dictionaries of them; and how many images."""

Loader = Callable[[int], Iterator[Iterable[MicroBatch]]]
"""First step -> for each step from there on, this process's share of the batch in micro-batches."""

Evaluate = Callable[[], dict[str, float]]
"""Measure the module, on every process alike; the numbers join the step's line of metrics.jsonl."""


@dataclass(frozen=True)
class StageSetup:
    """What one stage of a run trains."""

    module: nn.Module
    """On its device. Called with a micro-batch's arguments, it returns an object with a ``loss``."""
    optimizer: torch.optim.AdamW
    step: StepToTune
    """How the kernels are tried."""
    use: Callable[[KernelChoices], None]
    """Compute the module and the optimiser's step with these kernels."""
    forward: Callable[[int], Any]
    """Run the module on so many images, to see how much memory one takes."""


@dataclass(frozen=True)
class StageData:
    """What one stage of a run learns from, and how it is measured."""

    loader: Loader
    evaluate: Evaluate


@dataclass(frozen=True)
class Ended:
    """How the engine left a run."""

    complete: bool
    progress: Progress
    stopped_by: int | None
    """Number of the signal that ended it before its time."""


class Task(Protocol):
    """A kind of training. Every process of a run has one, and calls it alike."""

    files: tuple[str, ...]
    """Names of the files that it writes to the run's folder, besides the engine's."""
    plan: TrainingPlan

    def identity(self) -> dict[str, str]:
        """Digests that a resumed run must share with the one that began: of data, of weights."""
        ...

    def check_resumable(self, checkpoint: Checkpoint) -> None:
        """Raise UsageError unless the run would go on as it began."""
        ...

    def enter(self, stage: Stage, say: Callable[[str], None]) -> StageSetup:
        """Build or resize what trains, for a stage: the next one, or the one a resumed run stands in."""
        ...

    def load(self, stage: Stage, choices: Choices) -> StageData:
        """Build a stage's loader and evaluation, once kernels and micro-batch are known."""
        ...

    def summary(self, stage: Stage) -> Iterable[str]:
        """Lines for a person about the model and the data, before a stage's kernels are tried."""
        ...

    def progress_line(self, stage: Stage, choices: Choices) -> Iterable[str]:
        """Lines about how the stage's steps are computed."""
        ...

    def after_step(self) -> None:
        """Update whatever follows the weights: a running mean of them, a teacher."""
        ...

    def finish(self, ended: Ended, say: Callable[[str], None]) -> None:
        """Measure and write the outputs; only the first process writes, all take part."""
        ...
