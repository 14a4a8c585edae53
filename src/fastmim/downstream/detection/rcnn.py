"""Mask R-CNN and Faster R-CNN (He et al. 2017) on a feature pyramid, from torchvision's parts.

The region proposal network, the coding of boxes, non-maximum suppression and the losses are computed in
float32: in bfloat16, decoded boxes are rounded to several pixels.
"""

from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.faster_rcnn import FastRCNNConvFCHead, FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor
from torchvision.models.detection.roi_heads import RoIHeads, fastrcnn_loss, maskrcnn_inference
from torchvision.models.detection.rpn import RegionProposalNetwork, RPNHead
from torchvision.ops import FeaturePyramidNetwork, roi_align
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool

from fastmim.config.detect import RcnnConfig
from fastmim.encoders.pyramid import FeaturePyramid
from fastmim.system.size import Size

RATIOS = (0.5, 1.0, 2.0)  # of an anchor's height to its width
CANONICAL_SIDE, CANONICAL_LEVEL = 224, 4  # regions of this side are pooled from the map of stride 2**4
POOLED_LEVELS = 4  # maps that regions are pooled from: strides 4 to 32
SAMPLES = 2  # per side of a pooled cell
BOX_CELLS, MASK_CELLS = 7, 14  # per side of a pooled region
Targets = list[dict[str, Tensor]]
"""Of each image: boxes (N, 4), labels (N,) from 1 and, for masks, masks (N, H, W)."""


class RegionPool(nn.Module):
    """Pool regions from the map that suits their size: maps, boxes of each image -> (N, D, cells, cells).

    Args:
        cells: side of a pooled region.
        aligned: shift regions by half a pixel, which is exact.
    """

    def __init__(self, cells: int, aligned: bool) -> None:
        super().__init__()
        self.output_size = (cells, cells)
        self.aligned = aligned

    def forward(self, maps: dict[str, Tensor], boxes: list[Tensor], image_sizes: list[Size]) -> Tensor:
        del image_sizes  # part of torchvision's interface
        levels = list(maps.values())[:POOLED_LEVELS]
        together = torch.cat(boxes)
        numbers = [torch.full_like(part[:, :1], number) for number, part in enumerate(boxes)]
        regions = torch.cat([torch.cat(numbers), together], dim=1)
        sides = ((together[:, 2] - together[:, 0]) * (together[:, 3] - together[:, 1])).sqrt()
        first = 2  # log2 of the finest stride
        wanted = torch.floor(CANONICAL_LEVEL + torch.log2(sides / CANONICAL_SIDE) + 1e-6)
        chosen = wanted.clamp(first, first + len(levels) - 1).long() - first
        pooled = levels[0].new_zeros(len(regions), levels[0].shape[1], *self.output_size)
        for level, map_ in enumerate(levels):
            places = torch.where(chosen == level)[0]
            part = roi_align(
                map_, regions[places], self.output_size, 1 / 2 ** (first + level), SAMPLES, self.aligned
            )
            pooled = pooled.index_put((places,), part.to(pooled.dtype))
        return pooled


class RegionHeads(RoIHeads):  # type: ignore[misc] # torchvision has no types
    """torchvision's heads, with losses in float32 and, if aligned, exact targets of masks."""

    lower: torch.dtype | None = None
    """Precision in which the layers of the heads are computed, if it is lower than float32."""

    def forward(
        self,
        features: dict[str, Tensor],
        proposals: list[Tensor],
        image_shapes: list[Size],
        targets: Targets | None = None,
    ) -> tuple[Targets, dict[str, Tensor]]:
        """Return the detections of each image, or the losses if there are targets."""
        if targets is None:
            return self._detect(features, proposals, image_shapes), {}
        # Boxes and classes.
        proposals, matched, labels, deltas = self.select_training_samples(proposals, targets)
        logits, regression = self._boxes(features, proposals, image_shapes)
        class_loss, box_loss = fastrcnn_loss(logits, regression, labels, deltas)
        losses = {"loss_classifier": class_loss, "loss_box_reg": box_loss}
        # Masks of the positive regions.
        if self.has_mask():
            positive = [torch.where(part > 0)[0] for part in labels]
            regions = [part[chosen] for part, chosen in zip(proposals, positive, strict=True)]
            objects = [part[chosen] for part, chosen in zip(matched, positive, strict=True)]
            mask_logits = self._masks(features, regions, image_shapes)
            losses["loss_mask"] = self._mask_loss(mask_logits, regions, objects, targets)
        return [], losses

    def _boxes(
        self, features: dict[str, Tensor], proposals: list[Tensor], image_shapes: list[Size]
    ) -> tuple[Tensor, Tensor]:
        pooled = self.box_roi_pool(features, proposals, image_shapes)
        with self._autocast(pooled):
            logits, regression = self.box_predictor(self.box_head(pooled))
        return logits.float(), regression.float()

    def _autocast(self, values: Tensor) -> torch.autocast:
        return torch.autocast(values.device.type, self.lower, enabled=self.lower is not None)

    def _masks(self, features: dict[str, Tensor], regions: list[Tensor], image_shapes: list[Size]) -> Tensor:
        pooled = self.mask_roi_pool(features, regions, image_shapes)
        with self._autocast(pooled):
            logits: Tensor = self.mask_predictor(self.mask_head(pooled))
        return logits.float()

    def _mask_loss(
        self, logits: Tensor, regions: list[Tensor], objects: list[Tensor], targets: Targets
    ) -> Tensor:
        """Binary cross-entropy of the true class's mask, cut out of the true masks by the regions."""
        side = logits.shape[-1]
        cut, classes = [], []
        for boxes, chosen, target in zip(regions, objects, targets, strict=True):
            rois = torch.cat([chosen[:, None].to(boxes), boxes], dim=1)
            masks = target["masks"][:, None].to(boxes)
            cut.append(roi_align(masks, rois, (side, side), 1.0, -1, self.box_roi_pool.aligned)[:, 0])
            classes.append(target["labels"][chosen])
        wanted, labels = torch.cat(cut), torch.cat(classes)
        if not len(wanted):
            return logits.sum() * 0
        shown = logits[torch.arange(len(labels), device=labels.device), labels]
        return F.binary_cross_entropy_with_logits(shown, wanted)

    def _detect(
        self, features: dict[str, Tensor], proposals: list[Tensor], image_shapes: list[Size]
    ) -> Targets:
        logits, regression = self._boxes(features, proposals, image_shapes)
        boxes, scores, labels = self.postprocess_detections(logits, regression, proposals, image_shapes)
        found = [
            {"boxes": box, "scores": score, "labels": label}
            for box, score, label in zip(boxes, scores, labels, strict=True)
        ]
        if self.has_mask():
            mask_logits = self._masks(features, boxes, image_shapes)
            for row, mask in zip(found, maskrcnn_inference(mask_logits, labels), strict=True):
                row["masks"] = mask[:, 0]
        return found


class Detector(nn.Module):
    """Backbone, feature pyramid network, region proposals and heads.

    Args:
        pyramid: backbone with maps at strides 4, 8, 16 and 32: a module with ``widths``.
        classes: number of classes, without the background.
        config: settings of the heads.
        masks: whether masks are predicted.
    """

    def __init__(
        self, pyramid: FeaturePyramid | nn.Module, classes: int, config: RcnnConfig, masks: bool
    ) -> None:
        super().__init__()
        self.pyramid = pyramid
        channels, outputs = config.channels, classes + 1
        norm = nn.BatchNorm2d if config.upgraded else None
        self.fpn = FeaturePyramidNetwork(
            list(pyramid.widths),  # type: ignore[arg-type]
            channels,
            extra_blocks=LastLevelMaxPool(),
            norm_layer=norm,
        )
        anchors = AnchorGenerator(
            tuple((side,) for side in config.anchors),
            (RATIOS,) * len(config.anchors),
        )
        rpn_head = RPNHead(channels, len(RATIOS), conv_depth=2 if config.upgraded else 1)
        self.rpn = RegionProposalNetwork(
            anchors,
            rpn_head,
            fg_iou_thresh=0.7,
            bg_iou_thresh=0.3,
            batch_size_per_image=256,
            positive_fraction=0.5,
            pre_nms_top_n={"training": 2000, "testing": 1000},
            post_nms_top_n={"training": 2000, "testing": 1000},
            nms_thresh=0.7,
        )
        box_head: nn.Module
        if config.upgraded:
            shape = (channels, BOX_CELLS, BOX_CELLS)
            box_head = FastRCNNConvFCHead(shape, [channels] * 4, [config.hidden], norm)
        else:
            box_head = TwoMLPHead(channels * BOX_CELLS**2, config.hidden)
        mask_parts: dict[str, Any] = {}
        if masks:
            mask_parts = {
                "mask_roi_pool": RegionPool(MASK_CELLS, config.aligned),
                "mask_head": MaskRCNNHeads(channels, [channels] * 4, 1, norm),
                "mask_predictor": MaskRCNNPredictor(channels, channels, outputs),
            }
        self.heads = RegionHeads(
            RegionPool(BOX_CELLS, config.aligned),
            box_head,
            FastRCNNPredictor(config.hidden, outputs),
            fg_iou_thresh=0.5,
            bg_iou_thresh=0.5,
            batch_size_per_image=config.regions,
            positive_fraction=0.25,
            bbox_reg_weights=None,
            score_thresh=config.score,
            nms_thresh=config.overlap,
            detections_per_img=config.detections,
            **mask_parts,
        )

    def forward(
        self, images_BCHW: Tensor, sizes: Sequence[Size], targets: Targets | None = None
    ) -> tuple[Targets, dict[str, Tensor]]:
        """Return the detections of each image, or the losses by name if there are targets.

        Args:
            images_BCHW: normalised images on their canvases.
            sizes: (h, w) of each image on its canvas.
            targets: true objects. With them, losses are computed in evaluation mode as well.
        """
        maps = self.pyramid(images_BCHW)
        features = self.fpn(OrderedDict((str(level), map_) for level, map_ in enumerate(maps)))
        whole = [(int(height), int(width)) for height, width in sizes]
        device = images_BCHW.device.type
        self.heads.lower = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else None
        with torch.autocast(device, enabled=False):
            exact = OrderedDict((name, map_.float()) for name, map_ in features.items())
            listed = ImageList(images_BCHW, whole)
            self.rpn.training = targets is not None  # its own switch, not that of its batch norms
            proposals, rpn_losses = self.rpn(listed, exact, targets)
            found, head_losses = self.heads(exact, proposals, whole, targets)
        return found, {**rpn_losses, **head_losses}
