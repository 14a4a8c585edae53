"""GreenMIM (Huang et al. 2022, arXiv 2205.13515): a pyramid computes visible windows only."""

import torch
from torch import Tensor

from fastmim.methods.base import Reconstruction
from fastmim.methods.masked.shared_mask import SharedMask, on_host
from fastmim.methods.masked.visible_blocks import VisibleBlocks
from fastmim.mim.decoders import FillingDecoder
from fastmim.system.size import Size


class GreenMIM(VisibleBlocks):
    """MAE for Swin: one mask a batch, its uneven windows attend in groups (`encoders.visible.windows`).

    All processes of a step draw the same mask, which is a function of the seed and the step.
    """

    filling = FillingDecoder

    @torch.compiler.disable  # type: ignore[untyped-decorator]  # groups differ in size from mask to mask
    def forward(self, images_BCHW: Tensor, mask_Bhw: Tensor) -> Reconstruction:
        return super().forward(images_BCHW, mask_Bhw)

    def mask_on_host(self, mask_Bhw: Tensor) -> Tensor | None:
        return on_host(mask_Bhw)

    def draw_mask(self, generator: torch.Generator, batch: int, size: Size) -> Tensor:
        """The same mask for each image: windows are grouped once for all (arXiv 2205.13515, section 3.1)."""
        return super().draw_mask(generator, 1, size).repeat(batch, 1, 1).as_subclass(SharedMask)
