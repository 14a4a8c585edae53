"""Export the segmenter or detector of a run as ONNX; it is read back and compared."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fastmim.downstream.load_model import load_model
from fastmim.errors import RunError
from fastmim.export.export import TOLERANCE, Exported
from fastmim.export.model_card import dense_card
from fastmim.export.new_folder import new_folder
from fastmim.export.onnx_file import ONNX, write_onnx, write_traced_onnx
from fastmim.export.usage import check_export
from fastmim.system.size import Size
from fastmim.weights.model_file import ModelDescription, read_model_description

SAME_SCORE = 1e-4  # detections whose scores differ by less may change places or fall below the least score
OBJECTS = {
    "boxes": "(N, 4): x1, y1, x2, y2 in pixels of the input",
    "scores": "(N,): in descending order, 0..1",
    "labels": "(N,): class numbers from 0",
    "masks": "(N, 28, 28): probability of the object in the cells of its box",
}


class _Objects(nn.Module):
    """An image (1, C, H, W) -> boxes, scores, class numbers from 0 and, if the detector has them, masks."""

    def __init__(self, detector: nn.Module) -> None:
        super().__init__()
        self.detector = detector

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        height, width = images.shape[2:]
        (found,), _ = self.detector(images, [(height, width)])
        parts = (found["boxes"], found["scores"], found["labels"] - 1)
        return (*parts, found["masks"]) if "masks" in found else parts


def export_model(
    run: str | Path,
    out: str | Path,
    images: Tensor | None = None,
    overwrite: bool = False,
    model: str | None = None,
    trust_code: bool = False,
) -> Exported:
    """Export the whole model of a segmentation or detection run as ONNX, with a model card, to a new folder.

    A segmenter takes batches of windows; a detector takes one image at a time.

    Args:
        run: the run's folder, or its model.safetensors.
        out: the folder; it is created only if the export succeeds.
        images: normalised images (B, C, H, W) to compare outputs on. Default: two images of noise.
        overwrite: replace an earlier export in ``out``.
        model: the factory that the run's file names, which is not imported otherwise.
        trust_code: import and call any factory that the file names.

    Raises:
        UsageError: there is no such model, a package is missing, or ``out`` is not free.
        RunError: the outputs differ, or the files cannot be written.
    """
    folder = check_export(out, "onnx", overwrite)
    _, described = read_model_description(run)
    loaded = load_model(run, "cpu", model, trust_code)
    sample = images if images is not None else noise(described.in_chans, described.image_size)
    write = _segmenter if described.task == "segment" else _detector
    with new_folder(folder) as part:
        outputs, difference = write(loaded.model, described, part / ONNX, sample, folder)
        kind = "images of noise" if images is None else "real images"
        found = f"{len(sample)} {kind}, the outputs differ by at most {difference:.1e} of the largest"
        card = dense_card(described, outputs, folder.name, found)
        (part / "README.md").write_text(card, encoding="utf-8")
        files = sorted(file.name for file in part.iterdir())
    return Exported(folder, files, difference)


def noise(channels: int, size: Size) -> Tensor:
    """Return two images of noise: (2, C, H, W)."""
    return torch.randn(2, channels, *size, generator=torch.Generator().manual_seed(0))


Written = tuple[dict[str, str], float]
"""Outputs with their meaning, and the largest difference relative to the largest value."""


def _segmenter(
    model: nn.Module, described: ModelDescription, file: Path, sample: Tensor, folder: Path
) -> Written:
    run = write_onnx(model, ["logits"], described.model, file, sample)
    with torch.no_grad():
        expected = model(sample)
    (found,) = run(sample)
    difference = _relative(expected, found)
    _check(difference, folder)
    height, width = described.image_size
    shape = f"(B, {len(described.classes)}, {height}, {width})"
    return {"logits": f"{shape}: of the classes at each pixel"}, difference


def _detector(
    model: nn.Module, described: ModelDescription, file: Path, sample: Tensor, folder: Path
) -> Written:
    traced = _Objects(model).eval()
    names = [name for name in OBJECTS if name != "masks" or described.settings["masks"]]
    dynamic: dict[str, Any] = {name: {0: "objects"} for name in names}
    run = write_traced_onnx(traced, names, described.model, file, sample[:1], dynamic)
    differences: list[float] = []
    for number in range(len(sample)):
        image = sample[number : number + 1]
        with torch.no_grad():
            expected = traced(image)
        differences.append(same_objects(expected, run(image), image.shape[2:]))
    difference = float(np.max(differences))  # NaN if one is
    _check(difference, folder)
    return {name: OBJECTS[name] for name in names}, difference


def same_objects(expected: tuple[Tensor, ...], found: list[Tensor], size: tuple[int, ...]) -> float:
    """Compare detections, in any order where scores are equal, and return the largest relative difference.

    Boxes are compared relative to the image's larger side. Returns 1 if the numbers of objects differ,
    not counting those whose scores are so near to the least one that they may have been left out; NaN if a
    value is not finite.

    Args:
        expected, found: boxes, scores, labels and, for masks, probabilities.
        size: (H, W) of the image.
    """
    if not all(bool(torch.isfinite(part).all()) for part in (*expected, *found)):
        return math.nan
    least = min((float(part[1].min()) for part in (expected, found) if len(part[1])), default=0.0)
    counts = [int((part[1] >= least + SAME_SCORE).sum()) for part in (expected, found)]
    if counts[0] != counts[1]:
        return 1.0
    largest = 0.0
    for ours, theirs in ((expected, found), (found, expected)):
        for number in range(len(ours[1])):
            gaps = torch.zeros(len(theirs[1]))
            gaps[theirs[2] != ours[2][number]] = 1.0
            gaps = gaps.maximum((theirs[0] - ours[0][number]).abs().amax(1) / max(size))
            gaps = gaps.maximum((theirs[1] - ours[1][number]).abs())
            if len(ours) > 3:
                gaps = gaps.maximum((theirs[3] - ours[3][number]).abs().flatten(1).amax(1))
            gap = float(gaps.min()) if len(gaps) else 1.0
            if gap > SAME_SCORE and float(ours[1][number]) < least + SAME_SCORE:
                continue
            largest = max(largest, gap)
    return largest


def _relative(expected: Tensor, found: Tensor) -> float:
    return float((expected - found).abs().max() / expected.abs().max().clamp(min=1e-12))


def _check(difference: float, folder: Path) -> None:
    if not difference <= TOLERANCE:  # true also for NaN
        raise RunError(
            f"read back from format onnx, the outputs differ by {difference:.2g} of the largest; nothing was "
            f"written to {folder}"
        )
