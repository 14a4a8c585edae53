"""Settings that all training runs share."""

from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from fastmim.config.settings import check_numbers
from fastmim.data.settings import MAX_PIXELS
from fastmim.data.sources.columns import Columns
from fastmim.errors import UsageError
from fastmim.system.bounds import NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt, check_bounds
from fastmim.system.size import Size
from fastmim.train.settings import KernelConfig, Precision

BatchSize = Annotated[int, Field(ge=1, le=1 << 24)]
MOST_SIDE = 1 << 12  # of a model's input, in pixels


def check_size(size: Size) -> None:
    """Raise UsageError unless both sides of an image are between 2 and `MOST_SIDE` pixels."""
    if min(size) < 2:
        raise UsageError(f"image_size = {size[0]}x{size[1]} must be at least 2 pixels a side")
    if max(size) > MOST_SIDE:
        raise UsageError(f"image_size = {size[0]}x{size[1]} must be at most {MOST_SIDE:,} pixels a side")


@dataclass(frozen=True)
class RunConfig:
    """Data, batch size, devices, logging and checkpoints of a run."""

    verb: ClassVar[str]
    """Command of fastmim that runs such a configuration."""

    data: str = ""
    """Images."""
    out: str = ""
    """Output folder of the run."""
    model: str | None = None
    """Name of the backbone."""
    model_kwargs: dict[str, Any] = field(default_factory=dict)
    """Further arguments of timm.create_model or of the factory, as JSON: '{"window_size": 8}'."""
    in_chans: Annotated[int, Field(ge=1, le=4096)] = 3
    """Image channels: 3 is RGB, 1 is grey, other numbers need images with that many channels."""
    image_size: int | tuple[int, int] | None = None
    """Size of the model's input images in pixels: side, or height and width."""
    epochs: PositiveFloat | None = None
    """Passes over the data."""
    steps: PositiveInt | None = None
    """Optimiser steps, instead of --epochs."""
    batch_size: BatchSize = 256
    """Images per optimiser step, over all devices and micro-batches (paper: 2048)."""
    micro_batch: PositiveInt | None = None
    """Images per device at a time. Default: as many as fit in memory, up to 64 on a CPU."""
    seed: NonNegativeInt = 0
    """Random seed of weights, data order, crops and masks."""
    columns: Columns = field(default_factory=Columns)
    max_unreadable: NonNegativeFloat = 0.05
    """Share of unreadable images above which the run stops."""
    max_pixels: PositiveInt = MAX_PIXELS
    """Largest image in pixels; larger ones count as unreadable."""
    workers: Annotated[int, Field(ge=0, le=1024)] | None = None
    """Loader processes per device; 0: none. Default: CPUs per device minus one, 1 to 8."""
    accelerator: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    """Type of device. auto: cuda if available, else mps, else cpu."""
    devices: Annotated[int, Field(ge=1, le=1024)] = 1
    """Devices per machine. Under torchrun or SLURM: as many as there are processes."""
    num_nodes: PositiveInt = 1
    """Number of machines."""
    precision: Precision = "auto"
    """auto: bf16-mixed if it is faster on the device, else 32-true. HOG and loss are always float32."""
    kernels: KernelConfig = field(default_factory=KernelConfig)
    activation_checkpointing: bool = False
    """Keep only each block's input and recompute its activations in the backward pass.
    Needs far less memory, and up to a third more time."""
    deterministic: bool = True
    """Use only deterministic kernels: a resumed run equals an uninterrupted one bit for bit."""
    log_every_steps: PositiveInt = 10
    """Steps between lines of metrics.jsonl."""
    checkpoint_every_minutes: NonNegativeFloat = 10.0
    """Minutes between checkpoints."""
    checkpoint_every_steps: PositiveInt | None = None
    """Steps between checkpoints, instead of minutes."""
    keep_checkpoints: PositiveInt = 1
    """Checkpoints to keep: last.ckpt and, above 1, earlier ones in checkpoints/."""

    def __post_init__(self) -> None:
        check_numbers(self)
        check_bounds(self)
        self._check_batch(self.batch_size)

    def _check_batch(self, batch_size: int) -> None:
        count = self.devices * self.num_nodes
        if batch_size % count:
            raise UsageError(f"batch_size = {batch_size} must be a multiple of the {count} devices")
