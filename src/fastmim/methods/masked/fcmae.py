"""FCMAE (Woo et al. 2023, arXiv 2301.00808): a sparse convolutional encoder and a ConvNeXt decoder."""

from fastmim.encoders.visible.windows import find_windows
from fastmim.errors import UsageError
from fastmim.methods.masked.visible_blocks import VisibleBlocks
from fastmim.mim.decoders import ConvFillingDecoder


class FCMAE(VisibleBlocks):
    """MAE for ConvNeXt: each image has a different mask, and convolutions carry nothing over masked blocks.

    Norms and MLPs are computed at visible positions only, and depthwise convolutions on the whole map with
    zeros at masked positions; the norms in ConvNeXt V2's GRN are taken over the visible positions.
    """

    filling = ConvFillingDecoder

    def check_size(self) -> None:
        if find_windows(self.encoder.model):
            raise UsageError(
                f"{self.encoder.model_name} attends within windows, which must be masked alike in a batch; "
                "method = fcmae masks each image differently, method = greenmim is for windows"
            )
        super().check_size()
