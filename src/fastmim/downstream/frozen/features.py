"""Compute features of images with a frozen backbone: one vector per image, or the whole map."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from lightning_fabric import Fabric
from numpy.typing import NDArray
from torch import Tensor, nn

from fastmim.data.loading.dataset import UnreadableRecord
from fastmim.data.loading.eval_loader import EvalLoader
from fastmim.data.settings import MAX_PIXELS
from fastmim.data.sources.base import ImageSource
from fastmim.downstream.frozen.settings import check_encoder
from fastmim.encoders.adapter import Encoder
from fastmim.system.hardware import loader_workers
from fastmim.system.size import Size
from fastmim.train.distributed import build_fabric
from fastmim.weights.load import load
from fastmim.weights.loaded import replace_classifier

BATCH = 64


class Features(NamedTuple):
    """Features of a batch, see `Extractor.features`."""

    values: Tensor
    """(B, D) or (B, D, h, w), float32, on the CPU."""
    indices: NDArray[np.int64]
    unreadable: list[UnreadableRecord]


@dataclass(frozen=True)
class Extractor:
    """Frozen backbone, and the size and normalisation of its images."""

    encoder: Encoder
    metadata: dict[str, Any]
    mean: Tensor
    std: Tensor
    fabric: Fabric
    workers: int | None = None
    max_pixels: int = MAX_PIXELS

    @property
    def size(self) -> Size:
        return self.encoder.image_size

    def features(
        self, source: ImageSource, indices: NDArray[np.int64], pooled: bool = True
    ) -> Iterator[Features]:
        """Yield the features of each image once, in order; with ``pooled``, means over the maps."""
        views = EvalLoader(
            source,
            indices,
            self.size,
            self.encoder.in_chans,
            BATCH,
            loader_workers(self.workers, 1),
            self.mean,
            self.std,
            self.max_pixels,
        )
        for images, shown, unreadable in views:
            with torch.no_grad(), self.fabric.autocast():
                maps_BDhw = self.encoder(images)
            values = maps_BDhw.float()
            yield Features((values.mean((2, 3)) if pooled else values).cpu(), shown, unreadable)


def build_extractor(
    encoder: str,
    image_size: int | Size | None = None,
    accelerator: str = "auto",
    precision: Any = "auto",
    workers: int | None = None,
    model: nn.Module | str | None = None,
    trust_code: bool = False,
    max_pixels: int = MAX_PIXELS,
) -> Extractor:
    """Load a backbone without its classifier, frozen, on the device.

    Args:
        encoder: a run's folder, an encoder.safetensors, ``timm:NAME``, or another source that
            `weights.load` accepts.
        image_size: pixels; default: that of the weights.
        model: the module, if the run pre-trained a module; the factory that the file names; or the timm name
            of the backbone, if the source does not name it.
        trust_code: import and call any factory that the file names.
        max_pixels: pixels of the largest image; larger ones count as unreadable.

    Raises:
        UsageError: the weights cannot be loaded, or do not match the size.
    """
    check_encoder(encoder)
    loaded = load(encoder, image_size, model, trust_code=trust_code)
    if hasattr(loaded.model, "reset_classifier"):
        replace_classifier(loaded, 0)
    size = loaded.size
    fabric = build_fabric(accelerator, 1, 1, precision)
    frozen = Encoder(loaded.model, loaded.name, loaded.kwargs, size, loaded.metadata["in_chans"])
    frozen = frozen.eval().requires_grad_(False).to(fabric.device)
    mean, std = (torch.tensor(loaded.metadata[name], device=fabric.device) for name in ("mean", "std"))
    return Extractor(frozen, {"from": encoder, **loaded.metadata}, mean, std, fabric, workers, max_pixels)
