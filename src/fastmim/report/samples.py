"""samples.png: what went in, what was hidden, what was asked for, what came out."""

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
from fastmim.mim.targets import Hog, Pixels, Target, Weighted

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
    views = _views(samples)
    count = len(samples.images)
    height, width = samples.images.shape[2:]
    columns = ["original", "masked input"]
    for name, _, _, _ in views:
        columns += [f"target: {name}", f"prediction: {name}"]
    cell = 2.1
    figure = Figure(
        figsize=(cell * len(columns), cell * count * height / width + 0.7), dpi=100, layout="constrained"
    )
    figure.suptitle(title, fontsize=9, color=INK)
    axes = figure.subplots(count, len(columns), squeeze=False)
    for row in range(count):
        _show(axes[row][0], to_display(samples.images[row], samples))
        _show(axes[row][1], to_display(samples.masked[row], samples))
        for place, (_, target, prediction, kind) in enumerate(views):
            mask = samples.mask[row]
            left, right = axes[row][2 + 2 * place], axes[row][3 + 2 * place]
            if isinstance(kind, Hog):
                draw_glyphs(left, [(target[row], INK)], kind)
                # Visible cells show the target, faintly: only masked ones are predicted.
                visible = torch.where(mask, 0, target[row])
                predicted = torch.where(mask, prediction[row], 0)
                draw_glyphs(right, [(visible, FAINT), (predicted, ACCENT)], kind)
            else:
                _show(left, target_to_display(target[row], target[row], samples, kind))
                pixels = mask_to_pixels(mask[None], height // mask.shape[0], (height, width))[0]
                merged = torch.where(pixels, prediction[row], target[row])
                _show(right, target_to_display(merged, target[row], samples, kind))
    for column, name in enumerate(columns):
        axes[0][column].set_title(name, fontsize=8, color=INK)
    buffer = io.BytesIO()
    with matplotlib.rc_context({"axes.unicode_minus": False}):
        figure.savefig(buffer, format="png", facecolor="white")
    return buffer.getvalue()


def _views(samples: Samples) -> list[tuple[str, Tensor, Tensor, Any]]:
    """(name, target, prediction, kind) of each part of the target."""
    kinds = [part for part, _ in samples.kind.parts] if isinstance(samples.kind, Weighted) else [samples.kind]
    if isinstance(samples.kind, Weighted):
        channels = samples.images.shape[1]
        targets = samples.kind.split(samples.target, channels)
        predictions = samples.kind.split(samples.prediction, channels)
    else:
        targets, predictions = [samples.target], [samples.prediction]
    return [
        (_name(kind), target, prediction, kind)
        for kind, target, prediction in zip(kinds, targets, predictions, strict=True)
    ]


def _name(kind: Target) -> str:
    if isinstance(kind, Hog):
        return "HOG"
    return "pixels" if isinstance(kind, Pixels) and kind.patch is None else "normalised pixels"


def to_display(image_CHW: Tensor, samples: Samples) -> np.ndarray:
    """Undo the normalisation: (H, W, 3), 0..1."""
    mean = torch.tensor(samples.mean).view(-1, 1, 1)
    std = torch.tensor(samples.std).view(-1, 1, 1)
    values = (image_CHW * std + mean).clamp(0, 1)
    return _three_channels(values)


def _three_channels(values_CHW: Tensor) -> np.ndarray:
    values = values_CHW if values_CHW.shape[0] >= 3 else values_CHW[:1].expand(3, -1, -1)
    return np.asarray(values[:3].permute(1, 2, 0))


def target_to_display(
    values_CHW: Tensor, reference_CHW: Tensor, samples: Samples, kind: Pixels
) -> np.ndarray:
    """Raw pixels as colours; normalised ones with the reference's middle 98 % spread over 0..1."""
    if kind.patch is None:
        return to_display(values_CHW, samples)
    low, high = np.quantile(reference_CHW.numpy(), [0.01, 0.99])
    return _three_channels(((values_CHW - float(low)) / max(float(high - low), 1e-6)).clamp(0, 1))


def _show(axes: Axes, image: np.ndarray) -> None:
    axes.imshow(image, interpolation="nearest")
    axes.set_axis_off()


def draw_glyphs(axes: Axes, layers: Sequence[tuple[Tensor, str]], kind: Hog) -> None:
    """Each bin of a cell as a line along the edge it stands for, as long as its share of the cell.

    Args:
        layers: features (T, h, w) on the same grid, each with its colour.
    """
    for hog_Thw, color in layers:
        _add_lines(axes, hog_Thw, kind, color)
    h, w = layers[0][0].shape[1:]
    axes.set_xlim(-0.5, w - 0.5)
    axes.set_ylim(h - 0.5, -0.5)
    axes.set_aspect("equal")
    axes.set_xticks([])
    axes.set_yticks([])
    for spine in axes.spines.values():
        spine.set_color(FAINT)


def _add_lines(axes: Axes, hog_Thw: Tensor, kind: Hog, color: str) -> None:
    cells = (
        hog_Thw.reshape(-1, kind.bins, *hog_Thw.shape[1:]).clamp(min=0).mean(dim=0)
    )  # over the colour channels
    cells = cells / cells.amax().clamp(min=1e-6)
    segments, widths = [], []
    for bin_number in range(kind.bins):
        # The angle is atan2(gx, gy); an edge runs across its gradient: along (-gy, gx).
        angle = math.pi * (bin_number + 0.5) / kind.bins
        dx, dy = -math.cos(angle), math.sin(angle)
        rows, columns = np.nonzero(cells[bin_number].numpy() > 0.05)
        for y, x in zip(rows.tolist(), columns.tolist(), strict=True):
            length = 0.5 * float(cells[bin_number, y, x])
            segments.append([(x - dx * length, y - dy * length), (x + dx * length, y + dy * length)])
            widths.append(0.4 + 0.8 * float(cells[bin_number, y, x]))
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
