"""Colours of classes, and pictures of masks."""

from typing import Any

import numpy as np
from matplotlib import colormaps
from numpy.typing import NDArray

from fastmim.data.annotations.masks import IGNORED


def class_colours(classes: int) -> NDArray[np.uint8]:
    """Return a colour for each class, (classes, 3)."""
    if classes <= 20:
        table: NDArray[np.uint8] = colormaps["tab20"](np.arange(classes), bytes=True)[:, :3]
        return table
    shades = colormaps["gist_ncar"](np.linspace(0.02, 0.96, classes))[:, :3]
    order = np.random.default_rng(0).permutation(classes)
    spread: NDArray[np.uint8] = np.rint(shades[order] * 255).astype(np.uint8)
    return spread


def coloured(mask_HW: NDArray[np.uint8], colours: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Colour class numbers: (H, W, 3); ignored pixels are white."""
    table = np.full((IGNORED + 1, 3), 255, np.uint8)
    table[: len(colours)] = colours
    return table[mask_HW]


def displayed(pixels_HWC: NDArray[Any]) -> NDArray[np.uint8]:
    """Convert pixels of any number of channels to an RGB picture: the first three, or grey."""
    shown = pixels_HWC[..., :3] if pixels_HWC.shape[2] >= 3 else np.repeat(pixels_HWC[..., :1], 3, axis=2)
    if shown.dtype == np.uint8:
        return shown
    low, high = float(shown.min()), float(shown.max())
    return np.rint((shown - low) / max(high - low, 1e-9) * 255).astype(np.uint8)
