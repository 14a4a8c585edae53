"""LoMaR (Chen et al. 2022, arXiv 2206.00790): windows of an image are reconstructed independently."""

from fractions import Fraction

import torch
from torch import Tensor

from fastmim.encoders.adapter import Encoder
from fastmim.errors import UsageError
from fastmim.methods.base import Method, Reconstruction
from fastmim.methods.masked.mae import check_patches
from fastmim.methods.settings import LoMaRConfig
from fastmim.mim.decoders import Decoder, add_mask_token
from fastmim.mim.grids import (
    grid_of,
    map_to_tokens,
    put_tokens,
    space_to_depth,
    spread_mask,
    take_tokens,
    tokens_to_cells,
    tokens_to_map,
    visible_places,
)
from fastmim.mim.losses import masked_loss
from fastmim.mim.settings import DecoderConfig, LossName, Masking
from fastmim.mim.targets import Target
from fastmim.system.size import Size


class LoMaR(Method):
    """Take windows, mask patches in them, encode each window, predict, compare (Chen et al. 2022).

    As in LoMaR's released code, floor(ratio * patches) of a window are masked (39 of 49), and no two windows
    of an image begin in the same row or column, as long as there are enough rows and columns.

    LoMaR's ViT has relative position encodings. Here the backbone is not changed: the tokens of a window have
    the model's position embeddings in the image, absolute ones or, in models that have them, rotary ones,
    which are relative.

    Args:
        encoder: a plain vision transformer (checked by `encoders.visible.tokens`).
        target: prediction target of the masked patches of a window.
        masking: share of masked patches in a window, and the mask token.
        decoder: decoder of one window; LoMaR's is a simple head, depth 0.
        loss_name: distance between prediction and target.
        config: number and size of the windows.
    """

    mask_token: Tensor

    def __init__(
        self,
        encoder: Encoder,
        target: Target,
        masking: Masking,
        decoder: DecoderConfig,
        loss_name: LossName,
        config: LoMaRConfig = LoMaRConfig(),
    ) -> None:
        check_patches(masking, encoder)
        super().__init__(encoder, target, masking, loss_name)
        if encoder.stride % target.cell:
            raise UsageError(
                f"target.cell = {target.cell} must divide the patches of {encoder.stride} pixels here: "
                "windows are made of patches"
            )
        self.config = config
        self.decoder = Decoder(decoder, encoder.width, self.outputs)
        add_mask_token(self, (1, encoder.embedding.width, 1, 1), masking.token == "learned")
        self.check_size()

    def forward(self, images_BCHW: Tensor, mask_BW2hw: Tensor) -> Reconstruction:
        """Reconstruct the masked patches of each window.

        Args:
            images_BCHW: normalised images.
            mask_BW2hw: for each of W windows, its patches and those of them that are masked.
        """
        side = (self.config.window, self.config.window)
        within_BWhw, hidden_BWhw = mask_BW2hw.unbind(2)
        places_BK = visible_places(
            ~within_BWhw.flatten(0, 1), side[0] * side[1]
        )  # from here on, B counts windows
        hidden_BK = hidden_BWhw.flatten(0, 1).flatten(1).gather(1, places_BK)

        def choose(tokens_BND: Tensor) -> Tensor:
            seen, blank = (_in_windows(tokens, places_BK) for tokens in tokens_BND.chunk(2))
            return torch.where(hidden_BK.unsqueeze(-1), blank, seen)

        _, tokens_BKD = self.encoder.forward_tokens(images_BCHW, places_BK, choose, edit=self._and_blank)
        predictions = self.decoder(tokens_to_map(tokens_BKD, side))
        prediction = tokens_to_cells(predictions, self.block, self.target.cell)

        target = self.target(images_BCHW)
        cells = self.block // self.target.cell
        target_BKT = _in_windows(map_to_tokens(space_to_depth(target, cells)), places_BK)
        wanted = tokens_to_cells(tokens_to_map(target_BKT, side), self.block, self.target.cell)
        hidden = spread_mask(hidden_BK.view(-1, *side), cells, (cells * side[0], cells * side[1]))
        loss = masked_loss(self.loss_name, prediction, wanted, hidden, self.channel_weights)
        whole = self._whole(predictions, places_BK, hidden_BWhw)
        return Reconstruction(loss, whole, target, _counts(hidden_BWhw, cells))

    def _and_blank(self, tokens_BDhw: Tensor) -> Tensor:
        """Append mask tokens at all positions to the tokens, so that each window can select either."""
        return torch.cat([tokens_BDhw, self.mask_token.to(tokens_BDhw.dtype).expand_as(tokens_BDhw)])

    @torch.no_grad()
    def _whole(self, predictions: Tensor, places_BK: Tensor, hidden_BWhw: Tensor) -> Tensor:
        """Merge the predictions of the windows: the mean over the windows that mask a patch, elsewhere 0."""
        images, windows, h, w = hidden_BWhw.shape
        tokens = map_to_tokens(predictions.float())
        total = tokens.new_zeros(images, h * w, tokens.shape[2])
        hidden_BWN = hidden_BWhw.flatten(2)
        for window in range(windows):
            part = slice(window, None, windows)
            placed = put_tokens(tokens[part], places_BK[part], tokens.new_zeros(1), h * w)
            total += placed * hidden_BWN[:, window].unsqueeze(-1)
        mean = total / hidden_BWN.sum(dim=1).clamp(min=1).unsqueeze(-1)
        return tokens_to_cells(tokens_to_map(mean, (h, w)), self.block, self.target.cell)

    def draw_mask(self, generator: torch.Generator, batch: int, size: Size) -> Tensor:
        """Draw (batch, W, 2, h, w): for each of W windows, its patches and those of them that are masked."""
        (h, w), side = grid_of(size, self.block), self.config.window
        if min(h, w) < side:
            raise UsageError(
                f"lomar.window = {side} patches of {self.block} pixels do not fit into images of "
                f"{size[0]}x{size[1]}: {side * self.block} pixels would do, or a smaller lomar.window"
            )
        windows = batch * self.config.windows
        top = _offsets(h - side + 1, batch, self.config.windows, generator)
        left = _offsets(w - side + 1, batch, self.config.windows, generator)
        steps = torch.arange(side)
        places = ((top + steps.view(1, -1, 1)) * w + left + steps).flatten(1)
        order = torch.rand(windows, side * side, generator=generator).argsort(dim=1).argsort(dim=1)
        masked = order < min(max(int(side * side * Fraction(str(self.masking.ratio))), 1), side * side - 1)
        mask = torch.zeros(windows, 2, h * w, dtype=torch.bool)
        mask[:, 0].scatter_(1, places, True)
        mask[:, 1].scatter_(1, places, masked)
        return mask.view(batch, self.config.windows, 2, h, w)

    def check_size(self) -> None:
        self.draw_mask(torch.Generator().manual_seed(0), 1, self.encoder.image_size)

    def input_mask(self, mask_BW2hw: Tensor) -> Tensor:
        """Patches that are visible in no window."""
        within_BWhw, masked_BWhw = mask_BW2hw.unbind(2)
        return ~(within_BWhw & ~masked_BWhw).any(dim=1)


def _offsets(choices: int, batch: int, windows: int, generator: torch.Generator) -> Tensor:
    """Draw offsets of windows along one side, (batch * windows, 1, 1), distinct in an image if possible."""
    rounds = -(-windows // choices)
    order = torch.rand(batch, rounds, choices, generator=generator).argsort(dim=2)
    return order.flatten(1)[:, :windows].reshape(-1, 1, 1)


def _in_windows(tokens_BND: Tensor, places_BK: Tensor) -> Tensor:
    """Select the tokens of each window from the tokens (B, N, D) of the images: (windows, K, D)."""
    taken = take_tokens(tokens_BND, places_BK.reshape(len(tokens_BND), -1))
    return taken.reshape(*places_BK.shape, -1)


def _counts(hidden_BWhw: Tensor, cells: int) -> Tensor:
    """Count how often each cell enters the loss, (B, H/cell, W/cell)."""
    _, _, h, w = hidden_BWhw.shape
    return spread_mask(hidden_BWhw.sum(dim=1), cells, (h * cells, w * cells))
