"""Small images with masks and boxes, drawn by the tests of dense tasks."""

import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from conftest import USUAL

SEGMENT: dict[str, Any] = {
    "encoder": "none",
    "model": "resnet10t",
    "image_size": 32,
    "batch_size": 4,
    "steps": 4,
    "workers": 0,
    "log_every_steps": 2,
    "evaluations": 2,
    "head": {"channels": 16, "aux_channels": 8},
    "accelerator": "cpu",
    "kernels": USUAL,
    "quiet": True,
}

DETECT: dict[str, Any] = {
    "encoder": "none",
    "model": "resnet10t",
    "image_size": 64,
    "batch_size": 2,
    "steps": 4,
    "workers": 0,
    "log_every_steps": 2,
    "evaluations": 2,
    "head": {"channels": 16, "hidden": 32, "anchors": [8, 16, 32, 64, 128], "regions": 64},
    "accelerator": "cpu",
    "kernels": USUAL,
    "quiet": True,
}


def scene(seed: int, size: int = 40) -> tuple[np.ndarray, np.ndarray]:
    """A bright square (class 1) and a dark disc (class 2) on noise (class 0), and a strip without a class."""
    generator = np.random.default_rng(seed)
    image = generator.integers(100, 156, (size, size, 3), np.uint8)
    mask = np.zeros((size, size), np.uint8)
    top, left = generator.integers(0, size - 16, 2)
    image[top : top + 14, left : left + 14], mask[top : top + 14, left : left + 14] = 250, 1
    rows, columns = np.mgrid[:size, :size]
    y, x = generator.integers(8, size - 8, 2)
    disc = (rows - y) ** 2 + (columns - x) ** 2 < 49
    image[disc], mask[disc] = 5, 2
    mask[:2] = 255
    return image, mask


def write_scenes(folder: Path) -> None:
    """Write eight scenes to train on and four for validation, with their masks."""
    for split, numbers in (("train", range(8)), ("val", range(8, 12))):
        for kind in ("images", "masks"):
            (folder / kind / split).mkdir(parents=True)
        for number in numbers:
            image, mask = scene(number)
            Image.fromarray(image).save(folder / "images" / split / f"{number}.png")
            Image.fromarray(mask).save(folder / "masks" / split / f"{number}.png")


def write_squares(folder: Path) -> None:
    """Write red and blue squares on grey, in COCO's layout."""
    (folder / "annotations").mkdir()
    for split, count in (("train2017", 8), ("val2017", 4)):
        (folder / split).mkdir()
        content: dict[str, Any] = {"categories": [{"id": 1, "name": "red"}, {"id": 2, "name": "blue"}]}
        content |= {"images": [], "annotations": []}
        for number in range(count):
            generator = np.random.default_rng([number, count])
            pixels = generator.integers(110, 146, (64, 64, 3), np.uint8)
            for half, category in ((0, 1), (32, 2)):
                side = int(generator.integers(14, 24))
                top, left = (
                    int(generator.integers(0, 64 - side)),
                    half + int(generator.integers(0, 31 - side)),
                )
                pixels[top : top + side, left : left + side] = (250, 0, 0) if category == 1 else (0, 0, 250)
                corners = [left, top, left + side, top, left + side, top + side, left, top + side]
                content["annotations"].append(
                    {"id": len(content["annotations"]) + 1, "image_id": number, "category_id": category}
                    | {"bbox": [left, top, side, side], "area": side * side, "iscrowd": 0}
                    | {"segmentation": [corners]}
                )
            Image.fromarray(pixels).save(folder / split / f"{number}.png")
            row = {"id": number, "file_name": f"{number}.png", "height": 64, "width": 64}
            content["images"].append(row)
        (folder / "annotations" / f"instances_{split}.json").write_text(json.dumps(content))
