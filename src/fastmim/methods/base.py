"""What every pre-training method is: it draws its masks and turns images into a Reconstruction."""

from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from fastmim.encoders.adapter import Encoder
from fastmim.grids import Size
from fastmim.losses import LossName, masked_loss, trivial_prediction
from fastmim.targets import Target


class Reconstruction(NamedTuple):
    """What a method made of a batch, on the target's grid of cells."""

    loss: Tensor
    """Scalar, float32."""
    prediction: Tensor
    """(B, T, H/cell, W/cell)."""
    target: Tensor
    """(B, T, H/cell, W/cell), from the unmasked images, float32."""
    mask: Tensor
    """(B, H/cell, W/cell), True where a cell is masked and scored."""


class Method(Protocol):
    """A torch module: forward(images_BCHW, mask_Bhw) -> Reconstruction."""

    encoder: Encoder
    target: Target
    loss_name: LossName

    def draw_mask(self, generator: torch.Generator, batch: int, size: Size) -> Tensor:
        """A batch of masks for images of ``size`` = (H, W), on the CPU: boolean, True = masked."""
        ...

    def masked_images(self, images_BCHW: Tensor, mask_Bhw: Tensor) -> Tensor:
        """What the encoder gets to see, (B, C, H, W); for pictures."""
        ...

    def forward(self, images_BCHW: Tensor, mask_Bhw: Tensor) -> Reconstruction: ...

    def __call__(self, images_BCHW: Tensor, mask_Bhw: Tensor) -> Reconstruction: ...


def trivial_loss(method: Method, reconstruction: Reconstruction) -> float:
    """Loss of the trivial predictor: per channel, the mean target over the masked cells given.

    It sees the answers it is scored on, so no constant can do better (under l2).
    """
    constant = trivial_prediction(reconstruction.target, reconstruction.mask)
    weights = method.target.channel_weights(method.encoder.in_chans)
    loss = masked_loss(method.loss_name, constant, reconstruction.target, reconstruction.mask, weights)
    return float(loss)
