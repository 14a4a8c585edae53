"""FastMIM: blocks of the input's pixels are replaced, the whole image goes through the backbone."""

import torch
from torch import Tensor, nn

from fastmim.decoders import Decoder, DecoderConfig
from fastmim.encoders.adapter import Encoder
from fastmim.errors import UsageError
from fastmim.grids import Size, channels_per_token, mask_to_cells, mask_to_pixels, tokens_to_cells
from fastmim.losses import LossName, masked_loss
from fastmim.masking import Masking, random_block_mask
from fastmim.methods.base import Reconstruction
from fastmim.targets import Target


class InputMasking(nn.Module):
    """Mask, encode, decode, compare (paper: figure 1 and section 3).

    Args:
        encoder: any backbone; it is not changed.
        target: what is predicted, for masked cells only.
        masking: share and side of the masked blocks, and what replaces their pixels.
        decoder: the small network between features and predictions.
        loss_name: how prediction and target are compared.
    """

    def __init__(
        self,
        encoder: Encoder,
        target: Target,
        masking: Masking,
        decoder: DecoderConfig,
        loss_name: LossName = "l2",
    ) -> None:
        super().__init__()
        self.encoder = encoder
        self.target = target
        self.loss_name = loss_name
        self.block = masking.size or encoder.stride
        self.ratio = masking.ratio
        channels = target.channels(encoder.in_chans)
        self.channel_weights = target.channel_weights(encoder.in_chans)
        self.decoder = Decoder(
            decoder, encoder.width, channels_per_token(channels, encoder.stride, target.cell)
        )
        token = torch.zeros(1, encoder.in_chans, 1, 1)
        if masking.token == "learned":
            self.mask_token = nn.Parameter(token.normal_(std=0.02))
        else:
            self.register_buffer("mask_token", token)
        self._check_mask_size()

    def forward(self, images_BCHW: Tensor, mask_Bhw: Tensor) -> Reconstruction:
        masked_BCHW = self.masked_images(images_BCHW, mask_Bhw)
        features_BDhw = self.encoder(masked_BCHW)
        predictions = self.decoder(features_BDhw)
        prediction = tokens_to_cells(predictions, self.encoder.stride, self.target.cell)

        target = self.target(images_BCHW)
        mask = mask_to_cells(mask_Bhw, self.block, self.target.cell, _size(images_BCHW))
        loss = masked_loss(self.loss_name, prediction, target, mask, self.channel_weights)
        return Reconstruction(loss, prediction, target, mask)

    def masked_images(self, images_BCHW: Tensor, mask_Bhw: Tensor) -> Tensor:
        """X * S + [M] * (1 - S): masked pixels are replaced by the mask token."""
        mask_B1HW = mask_to_pixels(mask_Bhw, self.block, _size(images_BCHW)).unsqueeze(1)
        return torch.where(mask_B1HW, self.mask_token.to(images_BCHW.dtype), images_BCHW)

    def draw_mask(self, generator: torch.Generator, batch: int, size: Size) -> Tensor:
        return random_block_mask(generator, batch, size, self.block, self.ratio)

    def _check_mask_size(self) -> None:
        """Fail now, not after hours, if the mask leaves nothing to see or nothing to score."""
        mask = self.draw_mask(torch.Generator().manual_seed(0), 64, self.encoder.image_size)
        if not mask_to_cells(mask, self.block, self.target.cell, self.encoder.image_size).any():
            raise UsageError(
                f"mask.size = {self.block} pixels hides no whole target cell of {self.target.cell} pixels: "
                "use a larger mask.size, a larger mask.ratio or a smaller target.cell"
            )


def _size(images_BCHW: Tensor) -> Size:
    return images_BCHW.shape[2], images_BCHW.shape[3]
