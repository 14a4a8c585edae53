"""Settings of studies, and what of them can be checked first. This module needs no torch."""

from dataclasses import dataclass
from importlib.util import find_spec
from typing import Annotated

from pydantic import Field

from fastmim.config.finetune import PAPERS_LAYER_DECAY, PAPERS_LR, SCRATCH, FinetuneConfig
from fastmim.config.usage import check_finetuning
from fastmim.errors import UsageError
from fastmim.system.bounds import PositiveFloat, PositiveInt, check_bounds

OURS, FROM_SCRATCH, LONGER = "pre-trained", "scratch", "scratch, equal total time"

Point = tuple[int, int]
"""Steps from the centre: of the learning rate, of the layer decay."""


@dataclass(frozen=True)
class PayoffConfig:
    """What is compared."""

    shares: tuple[str, ...] = ("0.01", "0.1", "1")
    """Labels that are used: shares of each class (0.01), or numbers of each (10/class)."""
    seeds: PositiveInt = 3
    """Fine-tuning runs of each arm, 3 or more for a verdict: each draws its labels, order, augmentations and
    new weights anew."""
    against: tuple[str, ...] = ()
    """Further starting points: other runs, or timm:NAME for timm's own weights."""
    equal_time: bool = True
    """Also train from scratch, on the most labels, for as long as pre-training and fine-tuning took."""
    scratch_lr: PositiveFloat | None = None
    """Base learning rate from scratch. Default: that of fine-tuning."""
    processes: PositiveInt = 1
    """Runs at a time, on a CPU."""

    def __post_init__(self) -> None:
        check_bounds(self)
        for name in self.against:
            if name in (OURS, FROM_SCRATCH, LONGER, SCRATCH):
                raise UsageError(f"against = {name}: an arm has this name already; give a path, as ./{name}")
        if len(set(self.shares)) < len(self.shares):
            raise UsageError(f"shares = {' '.join(self.shares)}: each only once")
        if not self.shares:
            raise UsageError("shares is empty: give shares of the labels, as 0.01 0.1 1")


@dataclass(frozen=True)
class SweepConfig:
    """The grid."""

    centre_lr: PositiveFloat | None = None
    """Base learning rate in the middle of the first grid. Default: optim.base-lr (paper: 1e-3)."""
    centre_decay: Annotated[float, Field(gt=0, le=1)] | None = None
    """Layer decay there. Default: layer-decay (paper: 0.75)."""
    lr_factor: Annotated[float, Field(gt=1)] = 2.0
    """From one base learning rate to the next."""
    decay_step: PositiveFloat = 0.05
    """From one layer decay to the next."""
    max_trials: Annotated[int, Field(ge=9)] = 25
    """Points at most, 9 or more: a grid that wants more stops growing."""
    storage: str | None = None
    """Where the study lives, as optuna's URL (postgresql://..., sqlite:///...): give all machines the same.
    Default: sweep.db in --out."""
    study: str = "fastmim"
    """Name of the study in its storage."""

    def __post_init__(self) -> None:
        check_bounds(self)

    def at(self, point: Point) -> tuple[float, float]:
        """(base_lr, layer_decay) of a point, rounded so that the same point is the same number."""
        rate = (self.centre_lr or PAPERS_LR) * self.lr_factor ** point[0]
        decay = min(1.0, (self.centre_decay or PAPERS_LAYER_DECAY) + self.decay_step * point[1])
        return float(f"{rate:.6g}"), round(decay, 6)


def check_payoff(config: FinetuneConfig) -> None:
    """Raise UsageError where a comparison cannot be begun with these settings of fine-tuning."""
    if config.labels is not None:
        raise UsageError(f"labels = {config.labels}: payoff takes --shares")
    if config.encoder in ("", SCRATCH):
        raise UsageError("encoder is missing: give the run, or the encoder.safetensors, that is to be judged")
    if not config.out:
        raise UsageError("out is missing: give a folder for the runs and the comparison")
    check_finetuning(config)


def check_sweep(config: FinetuneConfig) -> None:
    """Raise UsageError where a search cannot be begun with these settings of fine-tuning."""
    if not config.out:
        raise UsageError("out is missing: give a folder for the runs and the heat map")
    check_finetuning(config)
    if find_spec("optuna") is None:
        raise UsageError("a sweep needs optuna: pip install 'fastmim[sweep]'")
