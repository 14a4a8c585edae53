"""Compare training crops of original files and of packs with Pillow's crops of the full-size files."""

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD

from fastmim.bench.measure import Figure
from fastmim.data.decode.image import decode
from fastmim.data.decode.resize import Box
from fastmim.data.loading.dataset import Batch, BatchRequest, CropDataset, to_images
from fastmim.data.packing.pack import pack
from fastmim.data.settings import CropConfig
from fastmim.data.sources.base import ImageSource
from fastmim.data.sources.open import open_images
from fastmim.data.transforms.crops import draw_crops
from fastmim.mim.hog_features import hog
from fastmim.system.hardware import available_cpus

BATCH, SIZE = 64, 128
SHORT_SIDES = (144, 160, 192, 224, 256)
QUALITIES = (75, 85, 95)
PSNR_TARGET, HOG_TARGET = 40.0, 0.004
REFERENCE = "Pillow's bicubic crops of the whole files"


class Nearness(NamedTuple):
    """Similarity of crops to the reference crops, over all crops."""

    psnr: float
    """Mean over the crops, dB."""
    hog: float
    """Mean square difference of the HOG targets of the normalised crops (paper: section 4.1)."""
    gradient: float
    """Energy of the gradients as a share of the reference's; below 1 means blurred."""


class CropMaker(Protocol):
    """Any maker of the crops of a batch, such as `CropDataset`."""

    def __getitem__(self, request: BatchRequest) -> Batch: ...


def nearness(
    source: ImageSource,
    part: ImageSource,
    config: CropConfig | None = None,
    maker: CropMaker | None = None,
) -> Nearness:
    """Compare crops of ``part`` with the same regions of the images of ``source``, resized by Pillow.

    Args:
        source: full-size files.
        part: the same images in the same order, possibly packed.
        config: crop settings.
        maker: makes the crops of ``part``; default: the loader's own code.
    """
    config = config or CropConfig()
    crops = maker or CropDataset(part, np.arange(len(part)), config, (SIZE, SIZE), 3)
    psnr: list[float] = []
    squares, energies, truths = [], 0.0, 0.0
    mean, std = torch.tensor(IMAGENET_DEFAULT_MEAN), torch.tensor(IMAGENET_DEFAULT_STD)
    for step, indices in enumerate(batches(len(source))):
        draws = draw_crops(config, len(indices), (0, step))
        batch = crops[BatchRequest(indices, (0, step))]
        if len(batch.unreadable):
            raise ValueError(f"{batch.unreadable[0].name}: {batch.unreadable[0].reason}")
        truth = np.empty(batch.pixels_BHWC.shape, np.uint8)
        for row, index in enumerate(indices.tolist()):
            height, width = decode(part.read(index)).shape[:2]
            box = draws.box(row, height, width)
            whole = ImageOps.exif_transpose(open_whole(source, index)).convert("RGB")
            truth[row] = _reference(whole, box, height, width)
        ours = batch.pixels_BHWC.numpy()
        errors = np.mean((ours.astype(np.float64) - truth) ** 2, axis=(1, 2, 3))
        psnr += (10 * np.log10(255**2 / np.maximum(errors, 1e-6))).tolist()
        wanted = Batch(torch.from_numpy(truth), batch.flips_B, indices, indices, [])
        targets = [hog(to_images(some, mean, std)) for some in (batch, wanted)]
        squares += ((targets[0] - targets[1]) ** 2).mean((1, 2, 3)).tolist()
        energies, truths = energies + _gradients(ours), truths + _gradients(truth)
    return Nearness(float(np.mean(psnr)), float(np.mean(squares)), energies / truths)


def bench_packs(source: ImageSource, folder: Path, say: Callable[[str], None]) -> list[Figure]:
    """Compare crops of packs with crops of the files, by short side and encoding.

    Args:
        source: full-size files.
        folder: holds the files in ``files``; packs are written to it.
        say: prints a line.
    """
    say(
        f"packs: {len(source)} images, crops of {SIZE}x{SIZE} against {REFERENCE}; HOG differs: mean square "
        "difference of the targets"
    )
    lines = []
    for name, config in {
        "files": CropConfig(),
        "files, --crop.decode fast": CropConfig(decode="fast"),
    }.items():
        size = sum(len(source.read(index)) for index in range(len(source)))
        near = nearness(source, source, config)
        lines.append(_line(name, near, size / len(source), wanted=config.decode == "full"))
    for side in SHORT_SIDES:
        encodings: list[tuple[str, Any, int | None]] = [(f"JPEG {q}", "jpeg", q) for q in QUALITIES]
        for name, encoding, quality in [*encodings, ("raw", "raw", None)]:
            out = folder / f"{encoding}{side}-{quality}"
            manifest = pack(str(folder / "files"), out, side, encoding, quality, workers=available_cpus())
            size = sum(shard.bytes for shard in manifest.shards)
            near = nearness(source, open_images(str(out)))
            lines.append(_line(f"short side {side}, {name}", near, size / len(source), wanted=False))
    return lines


def _line(name: str, near: Nearness, size: float, wanted: bool) -> Figure:
    return Figure(
        name,
        near.hog,
        "HOG differs by",
        f"Pillow's: {near.psnr:.1f} dB, gradient energy {near.gradient:.2f}; {size / 1000:.1f} kB an image",
        target=f"at most {HOG_TARGET:g}" if wanted else "",
        met=near.hog <= HOG_TARGET if wanted else None,
    )


def batches(count: int) -> list[NDArray[np.int64]]:
    """Return the indices of all images, in batches and in a fixed random order."""
    order = np.random.default_rng(0).permutation(count)
    return [order[start : start + BATCH] for start in range(0, count, BATCH)]


def open_whole(source: ImageSource, index: int) -> Image.Image:
    """Open an image at full size with Pillow."""
    data = source.read(index)
    return Image.fromarray(data) if isinstance(data, np.ndarray) else Image.open(io.BytesIO(data))


def _reference(whole: Image.Image, box: Box, height: int, width: int) -> NDArray[np.uint8]:
    """Crop the full-size image to a box that is given for an image of ``height`` x ``width``."""
    down, across = whole.height / height, whole.width / width
    bottom, right = (box.top + box.height) * down, (box.left + box.width) * across
    edges = (box.left * across, box.top * down, min(right, whole.width), min(bottom, whole.height))
    if (height, width) == (whole.height, whole.width):  # as in training: pixels outside the box do not count
        part = whole.crop((box.left, box.top, box.left + box.width, box.top + box.height))
        return np.asarray(part.resize((SIZE, SIZE), Image.Resampling.BICUBIC))
    return np.asarray(whole.resize((SIZE, SIZE), Image.Resampling.BICUBIC, edges))


def _gradients(pixels: NDArray[np.uint8]) -> float:
    """Return the energy of the differences between neighbouring pixels of (B, H, W, C) images."""
    values = pixels.astype(np.float64)
    return float((np.diff(values, axis=1) ** 2).sum() + (np.diff(values, axis=2) ** 2).sum())
