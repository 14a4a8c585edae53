"""Real data that installed packages contain, so that the first run needs no download."""

from pathlib import Path
from typing import Any

import numpy as np

from fastmim.data.sources.base import ArrayImages, FileImages, ImageSource
from fastmim.errors import UsageError

# Photographs only; just one of the stereo pair, so that no held-out photo has a twin in training.
PHOTOS = (
    "skimage/data/astronaut.png",
    "skimage/data/brick.png",
    "skimage/data/camera.png",
    "skimage/data/cell.png",
    "skimage/data/chelsea.png",
    "skimage/data/coffee.png",
    "skimage/data/coins.png",
    "skimage/data/grass.png",
    "skimage/data/gravel.png",
    "skimage/data/hubble_deep_field.jpg",
    "skimage/data/ihc.png",
    "skimage/data/moon.png",
    "skimage/data/motorcycle_left.png",
    "skimage/data/retina.jpg",
    "skimage/data/rocket.jpg",
    "sklearn/datasets/images/china.jpg",
    "sklearn/datasets/images/flower.jpg",
)
NEEDS = "demo data needs scikit-image and scikit-learn: pip install 'fastmim[demo]'"


def open_demo(name: str) -> ImageSource:
    """Open ``photos``, photographs of scikit-image and scikit-learn, or ``digits``, 1,797 scans of digits.

    The digits (8x8 pixels, from the UCI optical recognition set) are enlarged twofold without smoothing.
    Raises UsageError for other names, or if the packages are not installed.
    """
    if name == "photos":
        return _photos()
    if name == "digits":
        return _digits()
    raise UsageError(f"data: demo:{name} does not exist; give demo:photos or demo:digits")


def _photos() -> ImageSource:
    try:
        import skimage
        import sklearn
    except ImportError as error:
        raise UsageError(NEEDS) from error
    root = Path(skimage.__file__).parent.parent
    names = [name for name in PHOTOS if (root / name).is_file()]
    if len(names) < len(PHOTOS) // 2 or Path(sklearn.__file__).parent.parent != root:
        raise UsageError(f"data: only {len(names)} of the {len(PHOTOS)} sample photos are under {root}")
    return FileImages(str(root), names)


def digit_labels() -> list[str]:
    """Return the digit that each image of ``demo:digits`` shows."""
    return [str(label) for label in _load_digits().target]


def _digits() -> ImageSource:
    grey = np.round(_load_digits().images * (255 / 16)).astype(np.uint8)
    large = grey.repeat(2, axis=1).repeat(2, axis=2)
    return ArrayImages(np.repeat(large[..., None], 3, axis=3), "digit")


def _load_digits() -> Any:
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise UsageError(NEEDS) from error
    return load_digits()
