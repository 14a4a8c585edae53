"""FastMIM, SimMIM and MaskFeat: masked regions are replaced by a mask token, and the whole image is encoded.

The three methods differ only in their settings (`recipes/methods.py`): insertion point of the mask
token, target, and sizes of the image and of the masked blocks.
"""

from functools import partial

import torch
from torch import Tensor

from fastmim.encoders.adapter import Encoder
from fastmim.errors import UsageError
from fastmim.methods.base import Method, Reconstruction, size_of
from fastmim.mim.decoders import Decoder, add_mask_token
from fastmim.mim.grids import grid_of, mask_to_pixels, spread_mask, visible_places
from fastmim.mim.masking import masked_count
from fastmim.mim.settings import DecoderConfig, LossName, Masking
from fastmim.mim.targets import Target
from fastmim.system.size import Size


class InputMasking(Method):
    """Mask, encode, decode, compare (paper: figure 5 and section 4.1).

    Args:
        encoder: any backbone; its architecture is not changed.
        target: prediction target of the masked cells.
        masking: ratio and side of the masked blocks, and the mask token that replaces their pixels.
        decoder: lightweight network between features and predictions.
        loss_name: distance between prediction and target.
    """

    mask_token: Tensor

    def __init__(
        self,
        encoder: Encoder,
        target: Target,
        masking: Masking,
        decoder: DecoderConfig,
        loss_name: LossName,
    ) -> None:
        super().__init__(encoder, target, masking, loss_name)
        self.decoder = Decoder(decoder, encoder.width, self.outputs)
        width = encoder.in_chans
        if masking.place == "patch":
            embedding = encoder.embedding
            width = embedding.width
            if self.block % embedding.stride:
                raise UsageError(
                    f"mask.size = {self.block}: with mask.place = patch it must be a multiple of the "
                    f"{embedding.stride} pixels between the tokens of the patch embedding"
                )
        add_mask_token(self, (1, width, 1, 1), masking.token == "learned")
        self.check_size()

    def forward(self, images_BCHW: Tensor, mask_Bhw: Tensor) -> Reconstruction:
        if self.masking.place == "image":
            masked = self._masked(images_BCHW, mask_Bhw, self.block)
            features_BDhw, prefix_BPD = self.encoder.with_prefix(masked)
        else:
            edit = partial(self._masked_tokens, mask_Bhw)
            features_BDhw, prefix_BPD = self.encoder.with_prefix(images_BCHW, edit)
        wanted = self._wanted(mask_Bhw, size_of(images_BCHW))
        predictions = self.decoder(features_BDhw, wanted, prefix_BPD)
        return self.compare(images_BCHW, predictions, mask_Bhw)

    def _wanted(self, mask_Bhw: Tensor, size: Size) -> Tensor | None:
        """Indices (B, K) of the tokens that enter the loss; None: all, also if a selection saves no time."""
        stride = self.stride
        whole = self.block % stride == 0 and not any(side % self.block for side in size)
        if not (self.training and whole and self.decoder.choosing_pays):
            return None
        blocks, tokens = self.masked_blocks(mask_Bhw[0].numel()), self.block // stride
        if blocks is None:
            return None
        return visible_places(~spread_mask(mask_Bhw, tokens, grid_of(size, stride)), blocks * tokens**2)

    def masked_blocks(self, blocks: int) -> int | None:
        """Return how many of an image's ``blocks`` are masked; None if that differs between masks.

        A subclass that overrides `draw_mask` overrides this method as well: counting the blocks of a mask on
        the device would wait for it, and tokens beyond this number would be predicted as 0.
        """
        return masked_count(blocks, self.masking.ratio, self.masking.pattern)

    def masked_images(self, images_BCHW: Tensor, mask_Bhw: Tensor) -> Tensor:
        if self.masking.place == "image":
            return self._masked(images_BCHW, mask_Bhw, self.block)
        return super().masked_images(images_BCHW, mask_Bhw)  # the mask token is not a colour

    def _masked(self, values_BCHW: Tensor, mask_Bhw: Tensor, block: int) -> Tensor:
        """Replace masked positions by the mask token: X * S + [M] * (1 - S)."""
        mask_B1HW = mask_to_pixels(mask_Bhw, block, size_of(values_BCHW)).unsqueeze(1)
        return torch.where(mask_B1HW, self.mask_token.to(values_BCHW.dtype), values_BCHW)

    def _masked_tokens(self, mask_Bhw: Tensor, tokens_BDhw: Tensor) -> Tensor:
        return self._masked(tokens_BDhw, mask_Bhw, self.block // self.encoder.embedding.stride)
