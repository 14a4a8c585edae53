"""Base class of GreenMIM and FCMAE: a pyramid encodes only the visible blocks of an image."""

from typing import ClassVar

from torch import Tensor, nn

from fastmim.encoders.adapter import Encoder
from fastmim.errors import UsageError
from fastmim.methods.base import Method, Reconstruction
from fastmim.mim.decoders import ConvFillingDecoder, FillingDecoder
from fastmim.mim.grids import spread_mask, visible_places
from fastmim.mim.masking import masked_count
from fastmim.mim.settings import DecoderConfig, LossName, Masking
from fastmim.mim.targets import Target


class VisibleBlocks(Method):
    """Drop blocks, encode the others, insert mask tokens, decode, compare.

    Args:
        encoder: a pyramid, not changed (checked by `encoders.visible.blocks`).
        target: prediction target of the dropped blocks.
        masking: share and side of the dropped blocks; the mask token enters in the decoder.
        decoder: decoder blocks over all positions.
        loss_name: distance between prediction and target.
    """

    supports_activation_checkpointing = (
        False  # the encoder is adapted to the blocks only during the forward pass
    )
    filling: ClassVar[type[FillingDecoder | ConvFillingDecoder]]

    def __init__(
        self,
        encoder: Encoder,
        target: Target,
        masking: Masking,
        decoder: DecoderConfig,
        loss_name: LossName,
    ) -> None:
        super().__init__(encoder, target, masking, loss_name)
        if self.block % encoder.stride:
            raise UsageError(
                f"mask.size = {self.block}: {encoder.model_name} has a stride of {encoder.stride} pixels; "
                "with this method mask.size must be a multiple of that"
            )
        self.embed = nn.Linear(encoder.width, decoder.width)
        self.decoder = self.filling(decoder, self.outputs, masking.token == "learned")
        self.check_size()

    def forward(self, images_BCHW: Tensor, mask_Bhw: Tensor) -> Reconstruction:
        _, h, w = mask_Bhw.shape
        finer = self.block // self.stride
        grid = (h * finer, w * finer)
        visible = (h * w - masked_count(h * w, self.masking.ratio)) * finer**2
        places_BV = visible_places(spread_mask(mask_Bhw, finer, grid), visible)
        places_V = None
        if (mask_hw := self.mask_on_host(mask_Bhw)) is not None:
            places_V = visible_places(spread_mask(mask_hw.unsqueeze(0), finer, grid), visible)[0]
        features_BVD = self.encoder.forward_blocks(images_BCHW, places_BV, places_V)
        predictions = self.decoder(self.embed(features_BVD), places_BV, grid)
        return self.compare(images_BCHW, predictions, mask_Bhw)

    def mask_on_host(self, mask_Bhw: Tensor) -> Tensor | None:
        """Return the mask (h, w) of all images on the CPU; None if it is not needed or not known there."""
        return None

    def check_size(self) -> None:
        if any(side % self.block for side in self.image_size):
            raise UsageError(
                f"image_size = {self.image_size[0]}x{self.image_size[1]} must be a multiple of the masked "
                f"blocks of {self.block} pixels with this method"
            )
        super().check_size()
        self.encoder.check_visible()
