"""Settings of training. This module needs no torch."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from fastmim.system.bounds import NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt, check_bounds

Decay = Annotated[float, Field(ge=0, lt=1)]
Precision = Literal["auto", "bf16-mixed", "32-true"]
Resume = bool | Literal["or-begin"]
"""Whether to go on with a run: no; yes, so that there must be one; or where there is one."""


@dataclass(frozen=True)
class OptimConfig:
    """AdamW (paper: table 11)."""

    base_lr: PositiveFloat = 1.5e-4
    """Learning rate for a batch of 256 images; the real one is base_lr * batch_size / 256."""
    weight_decay: NonNegativeFloat = 0.05
    """Decay of weight matrices and kernels; 1-D parameters (biases, norms) have none."""
    betas: tuple[Decay, Decay] = (0.9, 0.95)
    """Decay rates of AdamW's two running means."""
    clip_norm: PositiveFloat | None = None
    """Largest L2 norm of the whole gradient; longer ones are scaled down. Default: no clipping."""
    bad_steps: PositiveInt = 10
    """Steps in a row with a non-finite loss or gradient (each is skipped) after which the run goes back."""
    rollbacks: NonNegativeInt = 3
    """How often a run goes back to its last checkpoint, at half the learning rate, before it fails."""

    def __post_init__(self) -> None:
        check_bounds(self, "optim")


@dataclass(frozen=True)
class ScheduleConfig:
    """How the learning rate changes during a run (paper: table 11)."""

    name: Literal["cosine", "step"] = "cosine"
    """Cosine to --schedule.min-lr, or a tenth every --schedule.decay-epochs (the paper's for Swin-L)."""
    warmup_epochs: NonNegativeFloat | None = None
    """Epochs of linear warm-up. Default: the paper's 10 (fine-tuning: 5), but at most a tenth of the run."""
    decay_epochs: PositiveFloat = 30.0
    """Epochs after which the step schedule divides the learning rate by ten."""
    min_lr: NonNegativeFloat = 0.0
    """Learning rate at the end of the cosine."""

    def __post_init__(self) -> None:
        check_bounds(self, "schedule")


@dataclass(frozen=True)
class KernelConfig:
    """How a step is computed. auto: the fastest way on this device, measured once and remembered."""

    attention: Literal["auto", "fused", "plain"] = "auto"
    """timm's attention: PyTorch's fused kernel, or matrix products and a softmax."""
    memory_format: Literal["auto", "contiguous", "channels-last"] = "auto"
    """Layout of images and convolutions in memory."""
    compile: Literal["auto", "none", "target", "model", "cudagraphs"] = "auto"
    """torch.compile: of nothing, of the target (HOG) alone, of the whole model, or that with CUDA graphs.
    auto tries the model where the run takes half an hour or more."""
    optimizer: Literal["auto", "fused", "foreach"] = "auto"
    """AdamW in one kernel, or tensor by tensor; foreach waits for the device once a step."""
    threads: NonNegativeInt = 0
    """Of a CPU's computations. 0: the fewest that are as fast as all, which is for small models often one;
    where OMP_NUM_THREADS is set, that many."""

    def __post_init__(self) -> None:
        check_bounds(self, "kernels")

    @property
    def told(self) -> dict[str, Any]:
        """What is not left open."""
        return {name: value for name, value in asdict(self).items() if value not in ("auto", 0)}


@dataclass(frozen=True)
class LoopConfig:
    """When the loop logs, saves and measures."""

    seed: int
    log_every_steps: int
    checkpoint_every_steps: int | None
    checkpoint_every_minutes: float
    keep_checkpoints: int
    evaluations: int
    """How often at most, evenly over the run, the task is measured."""


@dataclass(frozen=True)
class StartMode:
    """How a run is started, besides its configuration."""

    resume: Resume = False
    overwrite: bool = False
    """Delete the run that lies in the folder."""
    quiet: bool = False
    """Print nothing."""


NEW_RUN = StartMode()


@dataclass(frozen=True)
class RunSettings:
    """What the engine heeds of a run's configuration."""

    out: Path
    """The run's folder."""
    config_text: str
    """What a new run writes to config.yaml."""
    resume_flags: str
    """The flags that resume the run, for the message of a stopped one."""
    start: StartMode
    loop: LoopConfig
    optim: OptimConfig
    schedule: ScheduleConfig
    kernels: KernelConfig
    deterministic: bool
