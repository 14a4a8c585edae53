"""MAE (He et al. 2021, arXiv 2111.06377): masked patches are dropped, mask tokens enter at the decoder."""

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
    """Drop, encode what is left, fill in, decode, compare (He et al. 2021, figure 1 and section 3).

    Masks must leave as many patches as those that `draw_mask` draws. With HOG as target and small images this
    is FastMIM's target for MAE's encoder (recipe ``fastmim-drop``).

    Args:
        encoder: a plain vision transformer; it is not changed; `encoders.visible.tokens` looks at
            what it needs of it.
        target: what is predicted, for dropped patches only.
        masking: share of the patches that is dropped; its token is the decoder's.
        decoder: transformer blocks over all places.
        loss_name: how prediction and target are compared.
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
    """Raise UsageError unless what is masked is a patch of the encoder's, and it can leave patches out."""
    encoder.dropping  # noqa: B018
    if masking.size not in (None, encoder.stride):
        raise UsageError(
            f"mask.size = {masking.size}: this method masks patches of {encoder.model_name}, "
            f"{encoder.stride} pixels; leave it out"
        )
