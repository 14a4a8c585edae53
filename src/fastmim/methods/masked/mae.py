"""MAE (He et al. 2021, arXiv 2111.06377): masked patches are dropped; mask tokens enter in the decoder."""

from functools import partial

from torch import Tensor, nn

from fastmim.encoders.adapter import Encoder
from fastmim.errors import UsageError
from fastmim.methods.base import Method, Reconstruction
from fastmim.mim.decoders import FillingDecoder
from fastmim.mim.grids import take_tokens, visible_places
from fastmim.mim.masking import masked_count
from fastmim.mim.settings import DecoderConfig, LossName, Masking
from fastmim.mim.targets import Target


class MAE(Method):
    """Drop, encode the rest, insert mask tokens, decode, compare (He et al. 2021, figure 1 and section 3).

    Masks must leave as many visible patches as those of `draw_mask`. With HOG as target and small images,
    this is FastMIM's target with MAE's encoder (recipe ``fastmim-drop``).

    Args:
        encoder: a plain vision transformer, not changed (checked by `encoders.visible.tokens`).
        target: prediction target of the dropped patches.
        masking: share of dropped patches; the mask token enters in the decoder.
        decoder: transformer blocks over all positions.
        loss_name: distance between prediction and target.
    """

    def __init__(
        self,
        encoder: Encoder,
        target: Target,
        masking: Masking,
        decoder: DecoderConfig,
        loss_name: LossName,
    ) -> None:
        check_patches(masking, encoder)
        super().__init__(encoder, target, masking, loss_name)
        self.embed = nn.Linear(encoder.width, decoder.width)
        self.decoder = FillingDecoder(decoder, self.outputs, masking.token == "learned")
        self.check_size()

    def forward(self, images_BCHW: Tensor, mask_Bhw: Tensor) -> Reconstruction:
        _, h, w = mask_Bhw.shape
        places_BK = visible_places(mask_Bhw, h * w - masked_count(h * w, self.masking.ratio))
        prefix_BPD, visible_BKD = self.encoder.forward_tokens(
            images_BCHW, places_BK, partial(take_tokens, places_BK=places_BK)
        )
        predictions = self.decoder(self.embed(visible_BKD), places_BK, (h, w), self.embed(prefix_BPD))
        return self.compare(images_BCHW, predictions, mask_Bhw)


def check_patches(masking: Masking, encoder: Encoder) -> None:
    """Raise UsageError unless masked blocks are patches of the encoder, and the encoder can drop patches."""
    encoder.dropping  # noqa: B018
    if masking.size not in (None, encoder.stride):
        raise UsageError(
            f"mask.size = {masking.size}: this method masks patches of {encoder.model_name}, "
            f"{encoder.stride} pixels; leave it out"
        )
