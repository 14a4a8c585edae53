"""Settings of optimiser, schedule, kernels and training loop. This module needs no torch."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from fastmim.system.bounds import NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt, check_bounds

Decay = Annotated[float, Field(ge=0, lt=1)]
Precision = Literal["auto", "bf16-mixed", "32-true"]
Resume = bool | Literal["or-begin"]
"""False: start a new run. True: resume, which needs a run. or-begin: resume a run if there is one."""


@dataclass(frozen=True)
class OptimConfig:
    """AdamW optimiser (paper: table 11)."""

    base_lr: PositiveFloat = 1.5e-4
    """Learning rate for a batch of 256 images; the rate in use is base_lr * batch_size / 256."""
    weight_decay: NonNegativeFloat = 0.05
    """Weight decay of matrices and kernels; 1-D parameters (biases, norms) have none."""
    betas: tuple[Decay, Decay] = (0.9, 0.95)
    """Decay rates of AdamW's first and second moments."""
    clip_norm: PositiveFloat | None = None
    """Gradient clipping: largest L2 norm of the whole gradient. Default: no clipping."""
    bad_steps: PositiveInt = 10
    """Steps in a row with a non-finite loss or gradient before a rollback; each is skipped."""
    rollbacks: NonNegativeInt = 3
    """Rollbacks to the last checkpoint, each at half the learning rate, before the run fails."""

    def __post_init__(self) -> None:
        check_bounds(self, "optim")


@dataclass(frozen=True)
class ScheduleConfig:
    """Learning rate schedule (paper: table 11)."""

    name: Literal["cosine", "linear", "step"] = "cosine"
    """cosine, linear: down to --schedule.min-lr. step: a tenth every --schedule.decay-epochs (paper: Swin-L),
    or at --schedule.milestones."""
    warmup_epochs: NonNegativeFloat | None = None
    """Epochs of linear warm-up. Default: 10 as in the paper (fine-tuning: 5), at most a tenth of the run."""
    warmup_steps: NonNegativeInt | None = None
    """Steps of linear warm-up, instead of --schedule.warmup-epochs (paper, dense tasks: 1500)."""
    decay_epochs: PositiveFloat = 30.0
    """Epochs after which the step schedule divides the learning rate by ten."""
    milestones: tuple[PositiveFloat, ...] = ()
    """Epochs at which the step schedule divides the learning rate by ten, instead of every
    --schedule.decay-epochs."""
    min_lr: NonNegativeFloat = 0.0
    """Learning rate at the end of the cosine and linear schedules."""

    def __post_init__(self) -> None:
        check_bounds(self, "schedule")


@dataclass(frozen=True)
class KernelConfig:
    """Kernels of a training step. auto: the fastest on this device, measured once and cached."""

    attention: Literal["auto", "fused", "plain"] = "auto"
    """Attention of timm models: fused (PyTorch's kernel) or plain (matrix products and a softmax)."""
    memory_format: Literal["auto", "contiguous", "channels-last"] = "auto"
    """Memory layout of images and convolutions."""
    compile: Literal["auto", "none", "target", "model", "cudagraphs"] = "auto"
    """torch.compile: nothing, the target (HOG) only, the whole model, or the model with CUDA graphs.
    auto: try the model if the run takes half an hour or more."""
    optimizer: Literal["auto", "fused", "foreach"] = "auto"
    """AdamW kernel: fused, or foreach (tensor by tensor), which waits for the device once per step."""
    threads: NonNegativeInt = 0
    """CPU threads. 0: OMP_NUM_THREADS if set, else the fewest that are as fast as all of them.
    For small models, that is often one."""

    def __post_init__(self) -> None:
        check_bounds(self, "kernels")

    @property
    def told(self) -> dict[str, Any]:
        """Return the settings that are not left to automatic choice."""
        return {name: value for name, value in asdict(self).items() if value not in ("auto", 0)}


@dataclass(frozen=True)
class LoopConfig:
    """Seed, and when the loop logs, saves and evaluates."""

    seed: int
    log_every_steps: int
    checkpoint_every_steps: int | None
    checkpoint_every_minutes: float
    keep_checkpoints: int
    evaluations: int
    """Maximum number of evaluations, evenly spaced over the run."""


@dataclass(frozen=True)
class StartMode:
    """How a run is started, in addition to its configuration."""

    resume: Resume = False
    overwrite: bool = False
    """Delete an earlier run in the folder."""
    quiet: bool = False
    """Print nothing."""


NEW_RUN = StartMode()


@dataclass(frozen=True)
class RunSettings:
    """The part of a run's configuration that the engine uses."""

    out: Path
    """The run's folder."""
    config_text: str
    """Contents of config.yaml, which a new run writes."""
    resume_flags: str
    """Flags that resume the run, shown when it is stopped."""
    start: StartMode
    loop: LoopConfig
    optim: OptimConfig
    schedule: ScheduleConfig
    kernels: KernelConfig
    deterministic: bool
