"""What GreenMIM and FCMAE have in common: of an image only the visible blocks go through a pyramid."""

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
    """Leave blocks out, encode the others, fill in, decode, compare.

    Args:
        encoder: a pyramid; it is not changed (`encoders.visible.blocks` asks it for what is needed).
        target: what is predicted, for blocks that are left out only.
        masking: share and side of the blocks; its token is the decoder's.
        decoder: blocks over all places.
        loss_name: how prediction and target are compared.
    """

    supports_activation_checkpointing = (
        False  # stand-ins tell the encoder where its blocks are, for the time of a forward pass
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
        """Return the mask (h, w) of all images on the CPU; None where it is not needed or not known there."""
        return None

    def check_size(self) -> None:
        if any(side % self.block for side in self.image_size):
            raise UsageError(
                f"image_size = {self.image_size[0]}x{self.image_size[1]} must be a multiple of the masked "
                f"blocks of {self.block} pixels with this method"
            )
        super().check_size()
        self.encoder.check_visible()
