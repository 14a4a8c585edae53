"""Find the objects in whole images."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from faster_coco_eval import mask as coco_mask
from numpy.typing import NDArray
from torch import Tensor, nn

from fastmim.data.loading.dataset import UnreadableRecord
from fastmim.data.loading.dense import EvalDense, EvalImage, EvalSamples, Sample, collate, to_device
from fastmim.data.loading.workers import answers
from fastmim.report.objects import Detections
from fastmim.system.size import Size

MASK_THRESHOLD = 0.5  # probability above which a pixel belongs to an object
PASTED = 16  # masks that are enlarged at a time


@dataclass(frozen=True)
class DetectionPredictor:
    """Find the objects in whole images.

    Args:
        model: the detector.
        canvas: (H, W) of its input.
        mean, std: of the channels, on the device of the model.
    """

    model: nn.Module
    canvas: Size
    mean: Tensor
    std: Tensor

    @torch.no_grad()
    def __call__(self, images: Sequence[EvalImage]) -> list[Detections]:
        none = np.zeros(0, np.int64)
        samples = [Sample(image.pixels_HWC[0].numpy(), {}) for image in images]
        batch = collate(samples, self.canvas, self.mean.tolist(), none, none, [])
        found, _ = self.model(to_device(batch.pixels_BHWC, self.mean, self.std), batch.sizes)
        return [
            to_original(row, size, image.original)
            for row, size, image in zip(found, batch.sizes, images, strict=True)
        ]


def to_original(found: dict[str, Tensor], size: Size, original: Size) -> Detections:
    """Map detections from the canvas to the image.

    Args:
        found: boxes, scores, labels from 1 and, for masks, probabilities (N, h, w).
        size: (h, w) of the image on its canvas.
        original: (H, W) of the image.
    """
    factors = found["boxes"].new_tensor([original[1] / size[1], original[0] / size[0]] * 2)
    boxes = found["boxes"] * factors
    masks = None
    if "masks" in found:
        masks = pasted(found["masks"], boxes, original).cpu().numpy()
    return Detections(
        boxes.cpu().numpy(), found["scores"].cpu().numpy(), (found["labels"] - 1).cpu().numpy(), masks
    )


def pasted(masks_Nhw: Tensor, boxes_N4: Tensor, size: Size) -> Tensor:
    """Enlarge masks to their boxes in an image: (N, H, W), bool.

    A mask covers its box exactly: the centre of its first cell lies half a cell inside the box.
    """
    height, width = size
    whole = torch.zeros(len(masks_Nhw), height, width, dtype=torch.bool, device=masks_Nhw.device)
    rows = torch.arange(height, device=masks_Nhw.device) + 0.5
    columns = torch.arange(width, device=masks_Nhw.device) + 0.5
    for start in range(0, len(masks_Nhw), PASTED):
        part = slice(start, start + PASTED)
        x1, y1, x2, y2 = boxes_N4[part].float().unbind(1)
        x = (columns - x1[:, None]) / (x2 - x1)[:, None].clamp(min=1e-6) * 2 - 1
        y = (rows - y1[:, None]) / (y2 - y1)[:, None].clamp(min=1e-6) * 2 - 1
        grid = torch.stack(
            [x[:, None, :].expand(-1, height, -1), y[:, :, None].expand(-1, -1, width)], dim=-1
        )
        masks = masks_Nhw[part, None].float()
        enlarged = F.grid_sample(masks, grid, mode="bilinear", padding_mode="zeros", align_corners=False)
        whole[part] = enlarged[:, 0] >= MASK_THRESHOLD
    return whole


def detect_all(
    predictor: DetectionPredictor,
    samples: EvalSamples,
    indices: NDArray[np.int64],
    batch: int,
    workers: int,
) -> Iterator[tuple[EvalImage | UnreadableRecord, Detections | None]]:
    """Yield each image of ``indices`` with its detections; unreadable images as records, without any."""
    questions = [indices[place : place + batch] for place in range(0, len(indices), batch)]
    for found in answers(EvalDense(samples), questions, min(workers, len(questions))):
        yield from ((record, None) for record in found.unreadable)
        if found.images:
            yield from zip(found.images, predictor(found.images), strict=True)


def as_results(found: Detections, image_id: int, category_ids: Sequence[int]) -> list[dict[str, Any]]:
    """Return detections as rows of COCO's results JSON."""
    rows: list[dict[str, Any]] = []
    for number, (box, confidence, label) in enumerate(
        zip(found.boxes, found.scores, found.labels, strict=True)
    ):
        x1, y1, x2, y2 = (float(value) for value in box)
        row = {
            "image_id": image_id,
            "category_id": category_ids[label],
            "bbox": [x1, y1, x2 - x1, y2 - y1],
            "score": float(confidence),
        }
        if found.masks is not None:
            encoded = coco_mask.encode(np.asfortranarray(found.masks[number].astype(np.uint8)))
            counts = encoded["counts"]
            text = counts.decode() if isinstance(counts, bytes) else counts
            row["segmentation"] = {"size": list(encoded["size"]), "counts": text}
        rows.append(row)
    return rows
