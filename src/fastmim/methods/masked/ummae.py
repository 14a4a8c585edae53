"""UM-MAE (Li et al. 2022, arXiv 2205.10063): MAE for pyramids with uniform sampling and secondary masking."""

from functools import partial

import torch
from torch import Tensor, nn

from fastmim.encoders.adapter import Encoder
from fastmim.errors import UsageError
from fastmim.methods.base import Method, Reconstruction, size_of
from fastmim.methods.settings import UMMAEConfig
from fastmim.mim.decoders import FillingDecoder, add_mask_token
from fastmim.mim.grids import (
    depth_to_space,
    grid_of,
    map_to_tokens,
    pairs,
    pick_of_pairs,
    spread_mask,
    tokens_to_map,
)
from fastmim.mim.masking import masked_count
from fastmim.mim.settings import DecoderConfig, LossName, Masking
from fastmim.mim.targets import Target
from fastmim.system.size import Size

PAIR = 2  # patches along a side of a square, of which one patch is sampled


class UMMAE(Method):
    """Sample, mask, encode a compact image, insert mask tokens, decode, compare (Li et al. 2022).

    One patch of each 2x2 square is sampled. The sampled patches are joined to an image of half the height and
    width, which the unchanged backbone encodes like any other: windows and strides stay whole. If one feature
    covers several patches, a linear layer expands it to them.

    The loss covers the patches that were not sampled. Sampled patches that are replaced by the mask token are
    not scored, but their features still enter the decoder at their positions.

    Args:
        encoder: any backbone, at half the image's size, whose patch embedding's stride divides the patches.
        target: prediction target of the patches that are not sampled.
        masking: its size is the side of a patch; its mask token enters in the encoder and in the decoder.
        decoder: transformer blocks over all positions.
        loss_name: distance between prediction and target.
        config: share of the sampled patches that are masked.
    """

    mask_token: Tensor

    def __init__(
        self,
        encoder: Encoder,
        target: Target,
        masking: Masking,
        decoder: DecoderConfig,
        loss_name: LossName,
        config: UMMAEConfig = UMMAEConfig(),
    ) -> None:
        super().__init__(encoder, target, masking, loss_name)
        embedding = encoder.embedding
        if encoder.stride % self.block or self.block % embedding.stride:
            raise UsageError(
                f"mask.size = {self.block}: patches must be a multiple of the {embedding.stride} pixels "
                f"between the tokens of {encoder.model_name}'s patch embedding, and divide its stride of "
                f"{encoder.stride}"
            )
        self.secondary_ratio = config.secondary_ratio
        self.patches_per_feature = encoder.stride // self.block  # along a side
        self.spread = nn.Linear(encoder.width, decoder.width * self.patches_per_feature**2)
        self.decoder = FillingDecoder(decoder, self.outputs, masking.token == "learned")
        add_mask_token(self, (1, embedding.width, 1, 1), masking.token == "learned")
        self.check_size()

    @staticmethod
    def prediction_stride(encoder: Encoder, masking: Masking) -> int:
        return masking.size or encoder.stride

    @staticmethod
    def encoder_size(image_size: Size) -> Size:
        if image_size[0] % PAIR or image_size[1] % PAIR:
            raise UsageError(
                f"image_size = {image_size[0]}x{image_size[1]} must be even: half of it is encoded"
            )
        return image_size[0] // PAIR, image_size[1] // PAIR

    @property
    def image_size(self) -> Size:
        height, width = self.encoder.image_size
        return PAIR * height, PAIR * width

    def forward(self, images_BCHW: Tensor, mask_B2hw: Tensor) -> Reconstruction:
        """Encode the sampled patches, and reconstruct the others.

        Args:
            images_BCHW: normalised images.
            mask_B2hw: the patches that are not sampled, and the sampled patches that are masked.
        """
        _, _, h, w = mask_B2hw.shape
        quadrant_Bij, secondary_Bij = self._sampled(mask_B2hw)
        compact = pick_of_pairs(images_BCHW, quadrant_Bij, self.block)
        features_BDhw = self.encoder(compact, edit=partial(self._masked_tokens, secondary_Bij))
        spread = self.spread(map_to_tokens(features_BDhw))
        patches_Bdij = depth_to_space(
            tokens_to_map(spread, (features_BDhw.shape[2], features_BDhw.shape[3])), self.patches_per_feature
        )
        predictions = self.decoder(map_to_tokens(patches_Bdij), _places(quadrant_Bij, w), (h, w))
        return self.compare(images_BCHW, predictions, mask_B2hw)

    def loss_mask(self, mask_B2hw: Tensor) -> Tensor:
        return mask_B2hw[:, 0]

    def _sampled(self, mask_B2hw: Tensor) -> tuple[Tensor, Tensor]:
        """For each 2x2 square, (B, i, j): the sampled patch (0 to 3, row-major), and whether it is masked."""
        left_out_Bhw, masked_Bhw = mask_B2hw.unbind(1)
        return pairs(left_out_Bhw).byte().argmin(dim=-1), pairs(masked_Bhw).any(dim=-1)

    def _masked_tokens(self, secondary_Bij: Tensor, tokens_BDhw: Tensor) -> Tensor:
        mask_B1hw = spread_mask(
            secondary_Bij, self.block // self.encoder.embedding.stride, size_of(tokens_BDhw)
        ).unsqueeze(1)
        token_1D11 = self.mask_token
        if self.token_norm is not None:
            token_1D11 = self.token_norm(token_1D11.flatten(1)).view_as(token_1D11)
        return torch.where(mask_B1hw, token_1D11.to(tokens_BDhw.dtype), tokens_BDhw)

    @property
    def token_norm(self) -> nn.LayerNorm | None:
        """Final norm of the patch embedding, which is also applied to the mask token (released code)."""
        embedding = self.encoder.embedding
        norm = getattr(self.encoder.model.get_submodule(embedding.name), "norm", None)
        return norm if isinstance(norm, nn.LayerNorm) else None

    def draw_mask(self, generator: torch.Generator, batch: int, size: Size) -> Tensor:
        """Draw (batch, 2, h, w): the patches that are not sampled, and the sampled ones that are masked."""
        h, w = grid_of(size, self.block)
        if h % PAIR or w % PAIR:
            raise UsageError(
                f"image_size = {size[0]}x{size[1]} must be a multiple of {PAIR * self.block} pixels"
            )
        grid = (h // PAIR, w // PAIR)
        squares = grid[0] * grid[1]
        quadrant_Bij = torch.randint(PAIR**2, (batch, *grid), generator=generator)
        order = torch.rand(batch, squares, generator=generator).argsort(dim=1).argsort(dim=1)
        count = masked_count(squares, self.secondary_ratio) if self.secondary_ratio else 0
        places = _places(quadrant_Bij, w)
        mask = torch.zeros(batch, 2, h * w, dtype=torch.bool)
        mask[:, 0] = True
        mask[:, 0].scatter_(1, places, False)
        mask[:, 1].scatter_(1, places, order < count)
        return mask.view(batch, 2, h, w)

    def input_mask(self, mask_B2hw: Tensor) -> Tensor:
        """All patches except those that are sampled and not masked."""
        return mask_B2hw.any(dim=1)


def _places(quadrant_Bij: Tensor, columns: int) -> Tensor:
    """Row-major indices of the sampled patches in the whole grid: (B, i*j)."""
    _, i, j = quadrant_Bij.shape
    rows = PAIR * torch.arange(i, device=quadrant_Bij.device).view(1, -1, 1) + quadrant_Bij // PAIR
    place = PAIR * torch.arange(j, device=quadrant_Bij.device).view(1, 1, -1) + quadrant_Bij % PAIR
    return (rows * columns + place).flatten(1)
