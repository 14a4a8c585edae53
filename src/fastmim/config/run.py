"""What every run that trains is told, whatever it trains."""

from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from pydantic import Field

from fastmim.config.settings import check_numbers
from fastmim.data.settings import MAX_PIXELS
from fastmim.data.sources.columns import Columns
from fastmim.errors import UsageError
from fastmim.system.bounds import NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt, check_bounds
from fastmim.system.size import Size
from fastmim.train.settings import KernelConfig, Precision

BatchSize = Annotated[int, Field(ge=1, le=1 << 24)]
MOST_SIDE = 1 << 12  # pixels of a model's input


def check_size(size: Size) -> None:
    """Raise UsageError unless images of that size can be meant."""
    if min(size) < 2:
        raise UsageError(f"image_size = {size[0]}x{size[1]} must be at least 2 pixels a side")
    if max(size) > MOST_SIDE:
        raise UsageError(f"image_size = {size[0]}x{size[1]} must be at most {MOST_SIDE:,} pixels a side")


@dataclass(frozen=True)
class RunConfig:
    """Data, batch, devices, and what is written when."""

    data: str = ""
    """Images."""
    out: str = ""
    """Folder that the run is written to."""
    model: str | None = None
    """Name of the backbone."""
    model_kwargs: dict[str, Any] = field(default_factory=dict)
    """Further arguments of timm.create_model or of the factory, as JSON: '{"window_size": 8}'."""
    in_chans: Annotated[int, Field(ge=1, le=4096)] = 3
    """Channels of the images: 3 is RGB, 1 is grey, any other number needs images that have it."""
    image_size: int | tuple[int, int] | None = None
    """Side, or height and width, of the images that the model sees, in pixels."""
    epochs: PositiveFloat | None = None
    """Passes over the data."""
    steps: PositiveInt | None = None
    """Optimiser steps, in place of --epochs."""
    batch_size: BatchSize = 256
    """Images an optimiser step, over all devices and micro-batches (paper: 2048)."""
    micro_batch: PositiveInt | None = None
    """Images a device holds at a time. Default: what fits, up to 64 on a CPU."""
    seed: NonNegativeInt = 0
    """Fixes everything that is drawn: weights, order, crops, masks."""
    columns: Columns = field(default_factory=Columns)
    max_unreadable: NonNegativeFloat = 0.05
    """Share of the images that may be unreadable before the run stops."""
    max_pixels: PositiveInt = MAX_PIXELS
    """Most pixels of an image; larger ones count as unreadable."""
    workers: Annotated[int, Field(ge=0, le=1024)] | None = None
    """Loader processes a device. Default: this machine's CPUs, less one, at most 8. 0: none."""
    accelerator: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    """Kind of device."""
    devices: Annotated[int, Field(ge=1, le=1024)] = 1
    """Devices on each machine. Under torchrun or SLURM: as many as there are processes."""
    num_nodes: PositiveInt = 1
    """Machines."""
    precision: Precision = "auto"
    """auto: bf16-mixed where the device is faster in it, else 32-true. HOG and loss are always float32."""
    kernels: KernelConfig = field(default_factory=KernelConfig)
    activation_checkpointing: bool = False
    """Keep of each block only its input, and compute the rest anew in the backward pass: far less memory,
    up to a third more time."""
    deterministic: bool = True
    """Only deterministic kernels, so that a resumed run ends bit for bit as one that never stopped."""
    log_every_steps: PositiveInt = 10
    """Steps between two lines of metrics.jsonl."""
    checkpoint_every_minutes: NonNegativeFloat = 10.0
    """Minutes between two checkpoints."""
    checkpoint_every_steps: PositiveInt | None = None
    """Steps between two checkpoints, in place of minutes."""
    keep_checkpoints: PositiveInt = 1
    """Checkpoints kept: last.ckpt and, above 1, the ones before it in checkpoints/."""

    def __post_init__(self) -> None:
        check_numbers(self)
        check_bounds(self)
        self._check_batch(self.batch_size)

    def _check_batch(self, batch_size: int) -> None:
        count = self.devices * self.num_nodes
        if batch_size % count:
            raise UsageError(f"batch_size = {batch_size} must be a multiple of the {count} devices")
