"""Base class of the pre-training methods, which draw masks and turn images into a Reconstruction."""

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, ClassVar, NamedTuple, Protocol, Self

import torch
from torch import Tensor, nn

from fastmim.encoders.adapter import Encoder
from fastmim.encoders.resize import Resampler, carry_inside
from fastmim.errors import UsageError
from fastmim.methods.settings import TRAITS, MethodName
from fastmim.mim.grids import channels_per_token, mask_to_cells, mask_to_pixels, tokens_to_cells
from fastmim.mim.losses import constant_prediction, masked_loss
from fastmim.mim.masking import draw_blocks
from fastmim.mim.settings import DecoderConfig, LossName, Masking, TargetConfig
from fastmim.mim.targets import Target, build_target
from fastmim.system.size import Size

if TYPE_CHECKING:
    from collections.abc import Callable

ENCODER = "encoder.model."  # prefix of the names of the backbone's parameters


class Reconstruction(NamedTuple):
    """Output of a method for a batch, on the target's grid of cells."""

    loss: Tensor
    """Training loss, a float32 scalar."""
    prediction: Tensor
    """(B, T, H/cell, W/cell)."""
    target: Tensor
    """(B, T, H/cell, W/cell), from the unmasked images, float32."""
    mask: Tensor
    """(B, H/cell, W/cell), True where a cell enters the loss, or the number of times that it does."""


class Settings(Protocol):
    """Settings of a method; the configuration of a run implements this protocol."""

    @property
    def method(self) -> MethodName: ...
    @property
    def mask(self) -> Masking: ...
    @property
    def target(self) -> TargetConfig: ...
    @property
    def decoder(self) -> DecoderConfig: ...


class Method(nn.Module, ABC):
    """Pre-training method: draws masks, and turns images and masks into a Reconstruction by `forward`.

    Args:
        encoder: the backbone; its architecture is not changed.
        target: prediction target of the masked region.
        masking: ratio and side of the masked blocks (default: the encoder's stride), and their mask token.
        loss_name: distance between prediction and target.

    The constructor of a subclass takes (encoder, target, masking, decoder, loss_name), and the method's group
    of settings if it has one (`methods.settings.TRAITS`).
    """

    supports_activation_checkpointing: ClassVar[bool] = True
    """Whether activations can be recomputed in the backward pass, after `forward` has returned."""

    def __init__(
        self,
        encoder: Encoder,
        target: Target,
        masking: Masking,
        loss_name: LossName,
    ) -> None:
        super().__init__()
        self.encoder = encoder
        self.target = target
        self.masking = masking
        self.loss_name = loss_name
        self.block = masking.size or encoder.stride
        self.stride = self.prediction_stride(encoder, masking)
        self.outputs = channels_per_token(target.channels(encoder.in_chans), self.stride, target.cell)
        self.channel_weights = target.channel_weights(encoder.in_chans)

    @classmethod
    def build(cls, encoder: Encoder, settings: Settings) -> Self:
        """Build the method from the settings of a run.

        Raises:
            UsageError: the encoder or the settings do not fit the method.
        """
        target = build_target(settings.target, cls.prediction_stride(encoder, settings.mask))
        group = TRAITS[settings.method].config_group
        config_group = (getattr(settings, group),) if group else ()
        make: Callable[..., Self] = cls
        return make(encoder, target, settings.mask, settings.decoder, settings.target.loss, *config_group)

    @staticmethod
    def prediction_stride(encoder: Encoder, masking: Masking) -> int:
        """Pixels between predictions, along each side."""
        return encoder.stride

    @staticmethod
    def encoder_size(image_size: Size) -> Size:
        """(H, W) of the encoder's input, for images of ``image_size``."""
        return image_size

    @property
    def image_size(self) -> Size:
        """(H, W) of the images, at the encoder's current size."""
        return self.encoder.image_size

    @abstractmethod
    def forward(self, images_BCHW: Tensor, mask: Tensor) -> Reconstruction: ...

    def draw_mask(self, generator: torch.Generator, batch: int, size: Size) -> Tensor:
        """Draw masks for images of ``size`` = (H, W) on the CPU: boolean, (batch, h, w), True = masked.

        Methods with more than one mask per image insert further axes after the first.
        """
        return draw_blocks(self.masking, generator, batch, size, self.block)

    def loss_mask(self, mask: Tensor) -> Tensor:
        """Blocks that enter the loss, (B, h, w), from the output of `draw_mask`."""
        return mask

    def input_mask(self, mask: Tensor) -> Tensor:
        """Blocks that are hidden from the encoder, (B, h, w), from the output of `draw_mask`."""
        return mask

    def masked_images(self, images_BCHW: Tensor, mask: Tensor) -> Tensor:
        """Masked images for display, (B, C, H, W): the encoder's input, with the mean colour elsewhere."""
        hidden_B1HW = mask_to_pixels(self.input_mask(mask), self.block, size_of(images_BCHW)).unsqueeze(1)
        return images_BCHW.masked_fill(hidden_B1HW, 0)

    def check_size(self) -> None:
        """Raise UsageError unless the method works at the encoder's current size."""
        size = self.image_size
        mask = self.draw_mask(torch.Generator().manual_seed(0), 64, size)
        if not mask_to_cells(self.loss_mask(mask), self.block, self.target.cell, size).any():
            raise UsageError(
                f"mask.size = {self.block} pixels hides no whole target cell of {self.target.cell} pixels: "
                "use a larger mask.size, a larger mask.ratio or a smaller target.cell"
            )

    def compare(self, images_BCHW: Tensor, predictions: Tensor, mask: Tensor) -> Reconstruction:
        """Compare token predictions with the target, over the blocks that enter the loss."""
        prediction = tokens_to_cells(predictions, self.stride, self.target.cell)
        target = self.target(images_BCHW)
        cells = mask_to_cells(self.loss_mask(mask), self.block, self.target.cell, size_of(images_BCHW))
        loss = masked_loss(self.loss_name, prediction, target, cells, self.channel_weights)
        return Reconstruction(loss, prediction, target, cells)

    def set_image_size(self, image_size: Size) -> Resampler:
        """Change the image size (paper: section 4.2, FastMIM-P).

        Returns:
            A function that resamples tensors keyed by parameter name (e.g. AdamW's moments) to new shapes.

        Raises:
            UsageError: the encoder cannot have that size.
        """
        stride = self.encoder.stride
        carry_encoder = self.encoder.set_image_size(self.encoder_size(image_size))
        if self.encoder.stride != stride:
            raise UsageError(
                f"{self.encoder.model_name} has a stride of {stride} pixels at first, and of "
                f"{self.encoder.stride} at {image_size[0]}x{image_size[1]}: its size cannot change in a run"
            )
        self.check_size()
        return carry_inside(ENCODER, carry_encoder)


def size_of(images_BCHW: Tensor) -> Size:
    """Return (H, W) of images (B, C, H, W)."""
    return images_BCHW.shape[2], images_BCHW.shape[3]


def trivial_loss(method: Method, reconstruction: Reconstruction) -> float:
    """Loss of the constant baseline, which predicts each channel's mean target over the masked cells.

    The mean is taken over the same cells that are scored, so no constant has a smaller loss under l2.
    """
    constant = constant_prediction(reconstruction.target, reconstruction.mask)
    loss = masked_loss(
        method.loss_name, constant, reconstruction.target, reconstruction.mask, method.channel_weights
    )
    return float(loss)
