"""Score detections by COCO's metric."""

import contextlib
import io
from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

import numpy as np
from faster_coco_eval import COCO, COCOeval_faster
from numpy.typing import NDArray

from fastmim.data.annotations.instances import InstanceImages
from fastmim.data.loading.dataset import UnreadableRecord
from fastmim.system.size import Size

METRICS = (
    *("AP", "AP50", "AP75", "AP_small", "AP_medium", "AP_large"),
    *("AR_1", "AR_10", "AR_100", "AR_small", "AR_medium", "AR_large"),
)
RECALLS = np.linspace(0, 1, 101)  # of the precision-recall curve, as COCO's


class DetectionScores(NamedTuple):
    """Scores of the validation images by COCO's metric, per cent."""

    box: dict[str, float]
    mask: dict[str, float] | None
    per_class: dict[str, dict[str, float | None]]
    """Class -> AP of boxes and masks; None for a class without objects."""
    precision: dict[str, list[float]]
    """Kind -> precision at each of `RECALLS`, at an IoU of 0.5, mean over the classes."""
    images: int
    unreadable: int
    example: UnreadableRecord | None
    results: list[dict[str, Any]]
    """Detections as COCO's results JSON: image_id, category_id, bbox, score and, for masks, segmentation."""
    image_ap: dict[int, float]
    """Index of an image -> share of its objects that are found at an IoU of 0.5, minus wrong detections."""


def ground_truth(data: InstanceImages, sizes: dict[int, Size]) -> dict[str, Any]:
    """Return the objects of the images in ``sizes`` as COCO's JSON."""
    annotations: list[dict[str, Any]] = []
    for index in sizes:
        objects = data.objects[index]
        for number, box in enumerate(objects.boxes.tolist()):
            x1, y1, x2, y2 = box
            row = {
                "id": len(annotations) + 1,
                "image_id": data.image_ids[index],
                "category_id": data.category_ids[objects.labels[number]],
                "bbox": [x1, y1, x2 - x1, y2 - y1],
                "area": float(objects.areas[number]),
                "iscrowd": int(objects.crowd[number]),
            }
            segmentation = objects.segmentations[number]
            if segmentation is not None:
                if isinstance(segmentation, Mapping):
                    row["segmentation"] = dict(segmentation)
                else:
                    row["segmentation"] = [points.reshape(-1).tolist() for points in segmentation]
            annotations.append(row)
    return {
        "images": [
            {"id": data.image_ids[index], "height": height, "width": width}
            for index, (height, width) in sizes.items()
        ],
        "annotations": annotations,
        "categories": [
            {"id": category, "name": name}
            for category, name in zip(data.category_ids, data.classes, strict=True)
        ],
    }


def score(
    results: list[dict[str, Any]],
    data: InstanceImages,
    sizes: dict[int, Size],
    unreadable: list[UnreadableRecord],
    masks: bool,
) -> DetectionScores:
    """Score detections by COCO's metric, for boxes and masks."""
    truth = ground_truth(data, sizes)
    kinds: dict[str, tuple[Literal["bbox", "segm"], str]]
    kinds = {"box": ("bbox", "bbox"), **({"mask": ("segm", "segmentation")} if masks else {})}
    figures: dict[str, dict[str, float]] = {}
    per_class: dict[str, dict[str, float | None]] = {name: {} for name in data.classes}
    precision: dict[str, list[float]] = {}
    for kind, (iou_type, key) in kinds.items():
        # Results with a box and a mask would take the box's area for that of the mask.
        rows = [
            {**{k: row[k] for k in ("image_id", "category_id", "score")}, key: row[key]} for row in results
        ]
        figures[kind], curve = coco_figures(truth, rows, iou_type)
        precision[kind] = _mean_over(curve[0].T)
        for number, name in enumerate(data.classes):
            values = curve[:, :, number]
            known = values[values > -1]
            per_class[name][kind] = 100 * float(known.mean()) if known.size else None
    return DetectionScores(
        figures["box"],
        figures.get("mask"),
        per_class,
        precision,
        len(sizes),
        len(unreadable),
        unreadable[0] if unreadable else None,
        results,
        _found_shares(results, data, sizes),
    )


def coco_figures(
    truth: dict[str, Any], rows: list[dict[str, Any]], iou_type: Literal["bbox", "segm"]
) -> tuple[dict[str, float], NDArray[np.float64]]:
    """Return the twelve figures of COCO, per cent, and the precision at each IoU, recall and class.

    A figure without objects, such as AP_large where there are only small ones, is NaN.
    """
    with contextlib.redirect_stdout(io.StringIO()):
        known = COCO(truth)
        judge: Any = COCOeval_faster(known, known.loadRes(rows), iou_type, print_function=lambda *_: None)
        judge.evaluate()
        judge.accumulate()
        judge.summarize()
    stats = [float(value) for value in judge.stats[: len(METRICS)]]
    named = {
        name: 100 * value if value > -1 else float("nan") for name, value in zip(METRICS, stats, strict=True)
    }
    curve = np.asarray(judge.eval["precision"], np.float64)  # IoU, recall, class, area, most detections
    return named, curve.reshape(judge.eval["counts"])[:, :, :, 0, -1]


def _mean_over(curves: NDArray[np.float64]) -> list[float]:
    """Return the mean over the classes that have objects, at each recall."""
    known = curves[(curves > -1).all(1)]
    return known.mean(0).tolist() if len(known) else []


def _found_shares(
    results: list[dict[str, Any]], data: InstanceImages, sizes: dict[int, Size]
) -> dict[int, float]:
    """Return, for each image, the F1 score of its detections above a score of 0.5, at an IoU of 0.5."""
    by_image: dict[int, list[dict[str, Any]]] = {}
    for row in results:
        if row["score"] >= 0.5:
            by_image.setdefault(row["image_id"], []).append(row)
    shares = {}
    for index in sizes:
        objects = data.objects[index]
        rows = sorted(by_image.get(data.image_ids[index], []), key=lambda row: -row["score"])
        kept = ~objects.crowd
        boxes, labels = objects.boxes[kept], objects.labels[kept]
        free = np.ones(len(boxes), bool)
        right = 0
        for row in rows:
            left, top, width, height = row["bbox"]
            overlaps = _iou(np.array([left, top, left + width, top + height]), boxes)
            overlaps[~free | (np.array(data.category_ids)[labels] != row["category_id"])] = 0
            if overlaps.size and overlaps.max() >= 0.5:
                free[overlaps.argmax()] = False
                right += 1
        total = len(rows) + len(boxes)
        shares[index] = 2 * right / total if total else 1.0
    return shares


def _iou(box: NDArray[np.float64], boxes: NDArray[np.float32]) -> NDArray[np.float64]:
    corner, far = np.maximum(box[:2], boxes[:, :2]), np.minimum(box[2:], boxes[:, 2:])
    shared = np.prod(np.clip(far - corner, 0, None), axis=1)
    areas = np.prod(boxes[:, 2:] - boxes[:, :2], axis=1) + np.prod(box[2:] - box[:2])
    result: NDArray[np.float64] = shared / np.maximum(areas - shared, 1e-9)
    return result
