"""FastMIM: blocks of the input's pixels are replaced, the whole image goes through the backbone."""

from functools import partial

import torch
from torch import Tensor, nn

from fastmim.decoders import Decoder, DecoderConfig
from fastmim.encoders.adapter import Encoder
from fastmim.encoders.resize import Carry
from fastmim.errors import UsageError
from fastmim.grids import Size, channels_per_token, mask_to_cells, mask_to_pixels, tokens_to_cells
from fastmim.losses import LossName, masked_loss
from fastmim.masking import Masking, random_block_mask
from fastmim.methods.base import Reconstruction
from fastmim.targets import Target

ENCODER = "encoder.model."  # what the names of the backbone's parameters begin with


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
        self.place = masking.place
        self.ratio = masking.ratio
        channels = target.channels(encoder.in_chans)
        self.channel_weights = target.channel_weights(encoder.in_chans)
        self.decoder = Decoder(
            decoder, encoder.width, channels_per_token(channels, encoder.stride, target.cell)
        )
        width = encoder.in_chans
        if self.place == "patch":
            embedding = encoder.embedding
            width = embedding.width
            if self.block % embedding.stride:
                raise UsageError(
                    f"mask.size = {self.block}: with mask.place = patch it must be a multiple of the "
                    f"{embedding.stride} pixels between the tokens of the patch embedding"
                )
        token = torch.zeros(1, width, 1, 1)
        if masking.token == "learned":
            self.mask_token = nn.Parameter(token.normal_(std=0.02))
        else:
            self.register_buffer("mask_token", token)
        self._check_mask_size()

    def forward(self, images_BCHW: Tensor, mask_Bhw: Tensor) -> Reconstruction:
        if self.place == "image":
            features_BDhw = self.encoder(self._masked(images_BCHW, mask_Bhw, self.block))
        else:
            features_BDhw = self.encoder(images_BCHW, edit=partial(self._masked_tokens, mask_Bhw))
        predictions = self.decoder(features_BDhw)
        prediction = tokens_to_cells(predictions, self.encoder.stride, self.target.cell)

        target = self.target(images_BCHW)
        mask = mask_to_cells(mask_Bhw, self.block, self.target.cell, _size(images_BCHW))
        loss = masked_loss(self.loss_name, prediction, target, mask, self.channel_weights)
        return Reconstruction(loss, prediction, target, mask)

    def masked_images(self, images_BCHW: Tensor, mask_Bhw: Tensor) -> Tensor:
        if self.place == "image":
            return self._masked(images_BCHW, mask_Bhw, self.block)
        hidden_B1HW = mask_to_pixels(mask_Bhw, self.block, _size(images_BCHW)).unsqueeze(1)
        return images_BCHW.masked_fill(hidden_B1HW, 0)  # the token is no colour

    def set_image_size(self, image_size: Size) -> Carry:
        """Go on at another size (paper: section 3.3, FastMIM-P).

        Returns:
            What brings other tensors with the names of this module's parameters to their new shapes.

        Raises:
            UsageError: the encoder cannot have that size.
        """
        stride = self.encoder.stride
        carry_encoder = self.encoder.set_image_size(image_size)
        if self.encoder.stride != stride:
            raise UsageError(
                f"{self.encoder.model_name} has a stride of {stride} pixels at first, and of "
                f"{self.encoder.stride} at {image_size[0]}x{image_size[1]}: its size cannot change in a run"
            )
        self._check_mask_size()

        def carry(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
            inside = {
                name.removeprefix(ENCODER): tensor
                for name, tensor in tensors.items()
                if name.startswith(ENCODER)
            }
            return tensors | {ENCODER + name: tensor for name, tensor in carry_encoder(inside).items()}

        return carry

    def _masked(self, values_BCHW: Tensor, mask_Bhw: Tensor, block: int) -> Tensor:
        """X * S + [M] * (1 - S): masked places are replaced by the mask token."""
        mask_B1HW = mask_to_pixels(mask_Bhw, block, _size(values_BCHW)).unsqueeze(1)
        return torch.where(mask_B1HW, self.mask_token.to(values_BCHW.dtype), values_BCHW)

    def _masked_tokens(self, mask_Bhw: Tensor, tokens_BDhw: Tensor) -> Tensor:
        return self._masked(tokens_BDhw, mask_Bhw, self.block // self.encoder.embedding.stride)

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
