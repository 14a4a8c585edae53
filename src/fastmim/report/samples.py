"""Draw samples.png (image, masked input, target, prediction) and the loss curve."""

import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from torch import Tensor

from fastmim.mim.grids import mask_to_pixels
from fastmim.mim.targets import Image, Lines, Target, denormalize

INK, ACCENT, FAINT = "#1b1f24", "#c2410c", "#c9ced6"


@dataclass(frozen=True)
class Samples:
    """A few held-out images with everything that a sheet shows; all on the CPU, float32."""

    images: Tensor  # (B, C, H, W), normalised
    masked: Tensor  # (B, C, H, W), as the encoder saw them
    target: Tensor  # (B, T, h, w)
    prediction: Tensor  # (B, T, h, w)
    mask: Tensor  # (B, h, w), True = masked and scored
    kind: Target
    mean: tuple[float, ...]
    std: tuple[float, ...]


def draw_samples(samples: Samples, title: str) -> bytes:
    """One row an image: original, masked input, target, prediction. Returns a PNG."""
    chans, height, width = samples.images.shape[1:]
    targets = samples.kind.parts_of(samples.target, chans)
    predictions = samples.kind.parts_of(samples.prediction, chans)
    count = len(samples.images)
    columns = ["original", "masked input"]
    for part, _ in targets:
        columns += [f"target: {part.title}", f"prediction: {part.title}"]
    cell = 2.1
    figure = Figure(
        figsize=(cell * len(columns), cell * count * height / width + 0.7), dpi=100, layout="constrained"
    )
    figure.suptitle(title, fontsize=9, color=INK)
    axes = figure.subplots(count, len(columns), squeeze=False)
    for row in range(count):
        _show(axes[row][0], to_display(samples.images[row], samples))
        _show(axes[row][1], to_display(samples.masked[row], samples))
        for place, ((part, target), (_, prediction)) in enumerate(zip(targets, predictions, strict=True)):
            pair = axes[row][2 + 2 * place : 4 + 2 * place]
            _show_part(pair, part, target[row], prediction[row], samples.mask[row], samples)
    for column, name in enumerate(columns):
        axes[0][column].set_title(name, fontsize=8, color=INK)
    buffer = io.BytesIO()
    with matplotlib.rc_context({"axes.unicode_minus": False}):
        figure.savefig(buffer, format="png", facecolor="white")
    return buffer.getvalue()


def _show_part(
    pair: Sequence[Axes], part: Target, target: Tensor, prediction: Tensor, mask: Tensor, samples: Samples
) -> None:
    """A target, and next to it the prediction where the image is masked, with the target elsewhere."""
    whole = part.draw(target, target, samples.mean, samples.std)
    if isinstance(whole, Lines):
        # Visible cells show the target, faintly: only masked ones are predicted.
        visible = _lines(part, torch.where(mask, 0, target), target, samples)
        predicted = _lines(part, torch.where(mask, prediction, 0), target, samples)
        draw_lines(pair[0], [(whole, INK)])
        draw_lines(pair[1], [(visible, FAINT), (predicted, ACCENT)])
        return
    height, width = target.shape[1:]
    pixels = mask_to_pixels(mask[None], height // mask.shape[0], (height, width))[0]
    merged = part.draw(torch.where(pixels, prediction, target), target, samples.mean, samples.std)
    assert isinstance(merged, Image)
    _show(pair[0], _three_channels(whole.values_CHW))
    _show(pair[1], _three_channels(merged.values_CHW))


def _lines(part: Target, values: Tensor, reference: Tensor, samples: Samples) -> Lines:
    picture = part.draw(values, reference, samples.mean, samples.std)
    assert isinstance(picture, Lines)
    return picture


def to_display(image_CHW: Tensor, samples: Samples) -> np.ndarray:
    """Undo the normalisation: (H, W, 3), 0..1."""
    return _three_channels(denormalize(image_CHW, samples.mean, samples.std))


def _three_channels(values_CHW: Tensor) -> np.ndarray:
    values = values_CHW if values_CHW.shape[0] >= 3 else values_CHW[:1].expand(3, -1, -1)
    return np.asarray(values[:3].permute(1, 2, 0))


def target_to_display(values_CHW: Tensor, reference_CHW: Tensor, samples: Samples) -> np.ndarray:
    """A target of pixels: (H, W, 3), 0..1."""
    picture = samples.kind.draw(values_CHW, reference_CHW, samples.mean, samples.std)
    assert isinstance(picture, Image)
    return _three_channels(picture.values_CHW)


def _show(axes: Axes, image: np.ndarray) -> None:
    axes.imshow(image, interpolation="nearest")
    axes.set_axis_off()


def draw_lines(axes: Axes, layers: Sequence[tuple[Lines, str]]) -> None:
    """Each angle of a cell as a line along the edge that it stands for, as long as its share of the cell.

    Args:
        layers: pictures on the same grid, each with its colour.
    """
    for lines, color in layers:
        _add_lines(axes, lines.lengths_Ahw, color)
    h, w = layers[0][0].lengths_Ahw.shape[1:]
    axes.set_xlim(-0.5, w - 0.5)
    axes.set_ylim(h - 0.5, -0.5)
    axes.set_aspect("equal")
    axes.set_xticks([])
    axes.set_yticks([])
    for spine in axes.spines.values():
        spine.set_color(FAINT)


def _add_lines(axes: Axes, lengths_Ahw: Tensor, color: str) -> None:
    cells = lengths_Ahw / lengths_Ahw.amax().clamp(min=1e-6)
    segments, widths = [], []
    for number in range(len(cells)):
        # The angle is atan2(gx, gy); an edge runs across its gradient: along (-gy, gx).
        angle = math.pi * (number + 0.5) / len(cells)
        dx, dy = -math.cos(angle), math.sin(angle)
        rows, columns = np.nonzero(cells[number].numpy() > 0.05)
        for y, x in zip(rows.tolist(), columns.tolist(), strict=True):
            length = 0.5 * float(cells[number, y, x])
            segments.append([(x - dx * length, y - dy * length), (x + dx * length, y + dy * length)])
            widths.append(0.4 + 0.8 * float(cells[number, y, x]))
    axes.add_collection(LineCollection(segments, colors=color, linewidths=widths))


def draw_losses(metrics: list[dict[str, Any]], trivial: float) -> bytes:
    """Training and held-out loss over the epochs beside the constant baseline's. Returns a PNG."""
    figure = Figure(figsize=(7, 3.2), dpi=110, layout="constrained")
    axes = figure.subplots()
    known = [line for line in metrics if line.get("loss") is not None]
    if not any("held_out_distillation_loss" in line for line in metrics):  # else it holds that, too
        axes.plot(
            [line["epoch"] for line in known],
            [line["loss"] for line in known],
            color=FAINT,
            lw=1.2,
            label="training",
        )
    measured = [line for line in metrics if line.get("held_out_loss") is not None]
    axes.plot(
        [line["epoch"] for line in measured],
        [line["held_out_loss"] for line in measured],
        color=ACCENT,
        marker=".",
        label="held-out",
    )
    # Each image size has a constant baseline of its own.
    axes.step(
        [0.0, *(line["epoch"] for line in measured)],
        [*(line["trivial_loss"] for line in measured), trivial],
        where="post",
        color=INK,
        ls="--",
        lw=1,
        label="constant baseline, held-out",
    )
    low = min([line["held_out_loss"] for line in measured] + [trivial], default=trivial)
    axes.set_ylim(min(0.9 * low, low), 1.35 * trivial)
    axes.set_xlabel("epoch")
    axes.set_ylabel("loss on masked cells")
    axes.legend(frameon=False, fontsize=8)
    axes.spines[["top", "right"]].set_visible(False)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", facecolor="white")
    return buffer.getvalue()
