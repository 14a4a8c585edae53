"""UperNet (Xiao et al. 2018, "Unified Perceptual Parsing for Scene Understanding"), with auxiliary head."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastmim.config.segment import UperNetConfig
from fastmim.encoders.pyramid import FeaturePyramid
from fastmim.system.size import Size

POOLED = (1, 2, 3, 6)  # cells a side, of the pyramid pooling module
AUX_LEVEL = 2  # map of stride 16, from which the auxiliary head predicts


def conv_norm(inputs: int, outputs: int, kernel: int) -> nn.Sequential:
    """Build a convolution without bias, batch norm and ReLU."""
    convolution = nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(outputs), nn.ReLU(inplace=True))


def resized(map_BDhw: Tensor, size: Size) -> Tensor:
    """Resize a map, bilinear."""
    return F.interpolate(map_BDhw, size, mode="bilinear", align_corners=False)


class UperNetHead(nn.Module):
    """Four maps (B, D_i, h_i, w_i), the finest first -> logits (B, classes, h_0, w_0)."""

    def __init__(self, widths: Sequence[int], channels: int, classes: int, dropout: float) -> None:
        super().__init__()
        self.pools = nn.ModuleList(
            nn.Sequential(nn.AdaptiveAvgPool2d(cells), conv_norm(widths[-1], channels, 1)) for cells in POOLED
        )
        self.pooled = conv_norm(widths[-1] + len(POOLED) * channels, channels, 3)
        self.lateral = nn.ModuleList(conv_norm(width, channels, 1) for width in widths[:-1])
        self.smooth = nn.ModuleList(conv_norm(channels, channels, 3) for _ in widths[:-1])
        self.fuse = conv_norm(len(widths) * channels, channels, 3)
        self.dropout = nn.Dropout2d(dropout)
        self.classify = nn.Conv2d(channels, classes, 1)

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        # Pyramid pooling of the coarsest map.
        coarsest = maps[-1]
        pools = [resized(pool(coarsest), _size(coarsest)) for pool in self.pools]
        levels = [lateral(map_) for lateral, map_ in zip(self.lateral, maps[:-1], strict=True)]
        levels.append(self.pooled(torch.cat([coarsest, *pools], dim=1)))
        # Top-down path of the feature pyramid.
        for number in range(len(levels) - 1, 0, -1):
            finer = levels[number - 1]
            levels[number - 1] = finer + resized(levels[number], _size(finer))
        # Fuse all levels at the finest resolution.
        smooth = [convolution(level) for convolution, level in zip(self.smooth, levels[:-1], strict=True)]
        finest = _size(smooth[0])
        fused = torch.cat(
            [smooth[0], *(resized(level, finest) for level in (*smooth[1:], levels[-1]))], dim=1
        )
        logits: Tensor = self.classify(self.dropout(self.fuse(fused)))
        return logits


class FcnHead(nn.Module):
    """Auxiliary head (Long et al. 2015): a map (B, D, h, w) -> logits (B, classes, h, w)."""

    def __init__(self, width: int, channels: int, classes: int, dropout: float) -> None:
        super().__init__()
        self.convolution = conv_norm(width, channels, 3)
        self.dropout = nn.Dropout2d(dropout)
        self.classify = nn.Conv2d(channels, classes, 1)

    def forward(self, map_BDhw: Tensor) -> Tensor:
        logits: Tensor = self.classify(self.dropout(self.convolution(map_BDhw)))
        return logits


class Segmenter(nn.Module):
    """Images (B, C, H, W) -> logits (B, classes, H, W).

    Args:
        pyramid: backbone with maps at four strides.
        classes: number of classes.
        config: widths of the heads.
    """

    def __init__(self, pyramid: FeaturePyramid, classes: int, config: UperNetConfig) -> None:
        super().__init__()
        self.pyramid = pyramid
        self.head = UperNetHead(pyramid.widths, config.channels, classes, config.dropout)
        self.aux_head: FcnHead | None = None
        if config.aux_weight:
            width = pyramid.widths[AUX_LEVEL]
            self.aux_head = FcnHead(width, config.aux_channels, classes, config.dropout)

    def forward(self, images_BCHW: Tensor) -> Tensor:
        return self._at_full_size(self.head(self.pyramid(images_BCHW)), images_BCHW)

    def with_auxiliary(self, images_BCHW: Tensor) -> tuple[Tensor, Tensor | None]:
        """Compute the logits, and those of the auxiliary head or None."""
        maps = self.pyramid(images_BCHW)
        auxiliary = None
        if self.aux_head is not None:
            auxiliary = self._at_full_size(self.aux_head(maps[AUX_LEVEL]), images_BCHW)
        return self._at_full_size(self.head(maps), images_BCHW), auxiliary

    def _at_full_size(self, logits: Tensor, images_BCHW: Tensor) -> Tensor:
        return resized(logits.float(), _size(images_BCHW))


def _size(map_: Tensor) -> Size:
    return (map_.shape[2], map_.shape[3])
