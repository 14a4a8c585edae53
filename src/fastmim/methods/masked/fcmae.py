"""FCMAE (Woo et al. 2023, arXiv 2301.00808): sparse convolutions encode, a ConvNeXt block fills in."""

from fastmim.encoders.visible.windows import find_windows
from fastmim.errors import UsageError
from fastmim.methods.masked.visible_blocks import VisibleBlocks
from fastmim.mim.decoders import ConvFillingDecoder


class FCMAE(VisibleBlocks):
    """MAE for ConvNeXt: each image has its own mask, and no convolution carries anything over masked blocks.

    Norms and MLPs are computed for visible places only, the depthwise convolutions on the whole map, with
    zeros where it is masked; the norms of ConvNeXt V2's GRN are those of the visible places.
    """

    filling = ConvFillingDecoder

    def check_size(self) -> None:
        if find_windows(self.encoder.model):
            raise UsageError(
                f"{self.encoder.model_name} attends within windows, which must be masked alike in a batch; "
                "method = fcmae masks each image differently, method = greenmim is for windows"
            )
        super().check_size()
