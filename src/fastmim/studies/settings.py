"""Settings of studies, and checks that need no torch."""

from dataclasses import dataclass
from importlib.util import find_spec
from typing import Annotated, Literal, NamedTuple

from pydantic import Field

from fastmim.config.detect import DetectConfig
from fastmim.config.finetune import FinetuneConfig
from fastmim.config.segment import SegmentConfig
from fastmim.config.transfer import PAPERS_LAYER_DECAY, PAPERS_LR, TransferConfig
from fastmim.config.usage import check_transfer
from fastmim.data.settings import images_wanted, parse_labels
from fastmim.errors import UsageError
from fastmim.system.bounds import PositiveFloat, PositiveInt, check_bounds
from fastmim.weights.spec import SCRATCH, check_source, parse_weights

OURS, FROM_SCRATCH, LONGER = "pre-trained", "scratch", "scratch, equal total time"
TASKS: dict[str, type[TransferConfig]] = {
    "classify": FinetuneConfig,
    "detect": DetectConfig,
    "segment": SegmentConfig,
}
"""Task of `fastmim payoff` -> its settings."""


class Metric(NamedTuple):
    """A score in per cent, and where results.json has it."""

    name: str
    keys: tuple[str, ...]
    """Keys of results.json, one a level."""
    share_of_images: bool = False
    """Whether it is the share of the images whose answer is right, so that its sampling error is binomial."""


TOP1, MIOU = Metric("top-1", ("top1",), True), Metric("mIoU", ("miou",))
BOX_AP, MASK_AP = Metric("box AP", ("box", "AP")), Metric("mask AP", ("mask", "AP"))

Point = tuple[int, int]
"""Steps of the grid from the centre: (learning rate, layer decay)."""


@dataclass(frozen=True)
class PayoffConfig:
    """Arms, labels and seeds of the comparison."""

    shares: tuple[str, ...] = ("0.01", "0.1", "1")
    """Labels to use. classify: shares of each class (0.01), or numbers per class (10/class). detect, segment:
    shares of the images (0.1), or numbers above 1 (20)."""
    seeds: PositiveInt = 3
    """Runs of each arm, 3 or more for a verdict; each seed draws different labels, order, augmentations and
    new weights."""
    score: Literal["box", "mask"] = "box"
    """detect: whether the AP of boxes or that of masks is compared."""
    against: tuple[str, ...] = ()
    """Further starting points: other runs, or timm:NAME for timm's own weights."""
    equal_time: bool = True
    """Also train from scratch, on the largest share, for as long as pre-training and fine-tuning took."""
    scratch_lr: PositiveFloat | None = None
    """Base learning rate of training from scratch. Default: that of fine-tuning."""
    processes: PositiveInt = 1
    """Number of parallel runs, on a CPU."""

    def __post_init__(self) -> None:
        check_bounds(self)
        for name in self.against:
            if name in (OURS, FROM_SCRATCH, LONGER, SCRATCH):
                raise UsageError(
                    f"against = {name}: an arm already has this name; give a path, such as ./{name}"
                )
        if len(set(self.shares)) < len(self.shares):
            raise UsageError(f"shares = {' '.join(self.shares)}: give each only once")
        if not self.shares:
            raise UsageError("shares is empty: give shares of the labels, such as 0.01 0.1 1")


@dataclass(frozen=True)
class SweepConfig:
    """Grid and storage of the search."""

    centre_lr: PositiveFloat | None = None
    """Base learning rate at the centre of the first grid. Default: optim.base-lr (paper: 1e-3)."""
    centre_decay: Annotated[float, Field(gt=0, le=1)] | None = None
    """Layer decay at the centre of the first grid. Default: layer-decay (paper: 0.75)."""
    lr_factor: Annotated[float, Field(gt=1)] = 2.0
    """Factor between neighbouring base learning rates."""
    decay_step: PositiveFloat = 0.05
    """Difference between neighbouring layer decays."""
    max_trials: Annotated[int, Field(ge=9)] = 25
    """Maximum number of points, 9 or more; a grid that would need more stops growing."""
    storage: str | None = None
    """URL of the optuna storage (postgresql://..., sqlite:///...); machines with the same storage share the
    search. Default: sweep.db in --out."""
    study: str = "fastmim"
    """Name of the study in the storage."""

    def __post_init__(self) -> None:
        check_bounds(self)

    def at(self, point: Point) -> tuple[float, float]:
        """Return (base_lr, layer_decay) of a point, rounded so that equal points give equal numbers."""
        rate = (self.centre_lr or PAPERS_LR) * self.lr_factor ** point[0]
        decay = min(1.0, (self.centre_decay or PAPERS_LAYER_DECAY) + self.decay_step * point[1])
        return float(f"{rate:.6g}"), round(decay, 6)


def metric_of(config: TransferConfig, what: PayoffConfig) -> Metric:
    """Return the score that a comparison of runs with these settings is about."""
    if isinstance(config, DetectConfig):
        return BOX_AP if what.score == "box" else MASK_AP
    return MIOU if isinstance(config, SegmentConfig) else TOP1


def check_payoff(config: TransferConfig, what: PayoffConfig) -> None:
    """Raise UsageError if a comparison cannot start with these settings of a task."""
    if config.labels is not None:
        raise UsageError(f"labels = {config.labels}: payoff takes --shares")
    for share in what.shares:
        try:
            parse_labels(share) if isinstance(config, FinetuneConfig) else images_wanted(share, 1)
        except UsageError as error:
            raise UsageError(f"shares: {str(error).removeprefix('labels = ')}") from error
    if what.score == "mask" and not (isinstance(config, DetectConfig) and config.head.masks != "no"):
        raise UsageError("score = mask: it goes with --task detect, and not with --head.masks no")
    if not parse_weights(config.encoder).has_weights:
        raise UsageError("encoder is missing: give a run's folder or an encoder.safetensors to compare")
    if not config.out:
        raise UsageError("out is missing: give a folder for the runs and the comparison")
    check_transfer(config)
    for source in what.against:
        check_source(source, "against")


def check_sweep(config: FinetuneConfig) -> None:
    """Raise UsageError if a search cannot start with these fine-tuning settings."""
    if not config.out:
        raise UsageError("out is missing: give a folder for the runs and the heat map")
    check_transfer(config)
    if find_spec("optuna") is None:
        raise UsageError("a sweep needs optuna: pip install 'fastmim[sweep]'")
