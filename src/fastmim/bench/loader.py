"""Compare the loader with torchvision's, from the file to a batch of pixels, in one process."""

import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import simplejpeg
import torch
from PIL import Image

from fastmim.bench.crops import (
    BATCH,
    HOG_TARGET,
    PSNR_TARGET,
    REFERENCE,
    SIZE,
    CropMaker,
    batches,
    bench_packs,
    nearness,
    open_whole,
)
from fastmim.bench.measure import Figure, medians, side_by_side
from fastmim.bench.vips import VipsCrops, has_vips, one_thread
from fastmim.data.decode import jpeg
from fastmim.data.decode.image import decode
from fastmim.data.loading.dataset import BatchRequest, CropDataset
from fastmim.data.packing.pack import pack
from fastmim.data.settings import MAX_PIXELS, CropConfig
from fastmim.data.sources.base import FileImages, ImageSource, Subset
from fastmim.data.sources.open import open_images
from fastmim.system.hardware import available_cpus

MOST_IMAGES = 5 * BATCH
MADE_SIDES = (375, 500)  # height and width of generated images: ImageNet's median
MADE_QUALITY = 98  # about 100 kB per image, as in ImageNet
BASELINE = "torchvision: Pillow, RandomResizedCrop bicubic, flip"
# Packs: name, shorter side, encoding, and target speed as a multiple of torchvision's.
PACKS: tuple[tuple[str, int, Any, float], ...] = (
    ("packed, JPEG 144", 144, "jpeg", 12.0),
    ("packed, JPEG 192", 192, "jpeg", 7.0),
    ("packed, raw 144", 144, "raw", 40.0),
)
FILES, FILES_TARGET, ACCESS_TARGET = "files as they are", 2.2, 50.0
FAST = "files as they are, --crop.decode fast"
# libvips reading the same files: the whole of each, or made smaller while it is decoded.
VIPS = {"files as they are, by pyvips": None, "files as they are, by pyvips, shrunk on load": 1.0}


def bench_loader(data: str | None, rounds: int, say: Callable[[str], None]) -> list[Figure]:
    """Measure images per second of torchvision's pipeline and ours, crop similarity, and random access.

    Args:
        data: JPEGs, see `open_images`, of which up to 320 are used; None: generated from the embedded photos.
        rounds: measured passes over the images for each contestant.
        say: prints a line.
    """
    with tempfile.TemporaryDirectory(prefix="fastmim-bench-") as name, _one_thread():
        # Open the images, and pack them.
        folder = Path(name)
        source = _some_of(open_images(data)) if data is not None else make_images(folder / "made")
        what = data if data is not None else "parts of the embedded photos, 500x375"
        sources: dict[str, ImageSource] = {FILES: source}
        size = _copy(source, folder / "files") / len(source)
        say(
            f"loader: {len(source)} JPEGs of {size / 1000:.0f} kB ({what}); crops of {SIZE}x{SIZE}, batches "
            f"of {BATCH}, one process; the share is that of the speed of only decoding each file to an eighth"
        )
        for title, short_side, encoding, _ in PACKS:
            place = folder / f"{encoding}{short_side}"
            pack(str(folder / "files"), place, short_side, encoding, workers=available_cpus())
            sources[title] = open_images(str(place))
        # Measure the speeds.
        contestants: dict[str, Callable[[], Any]] = {"torchvision": _torchvision(source)}
        contestants |= {title: _ours(part) for title, part in sources.items()}
        contestants[FAST] = _ours(source, CropConfig(decode="fast"))
        ways = VIPS if has_vips() else {}
        vips = {title: VipsCrops(source, (SIZE, SIZE), margin) for title, margin in ways.items()}
        contestants |= {title: _passes(crops, source) for title, crops in vips.items()}
        contestants["least"] = _least(source)
        seconds = medians(side_by_side(contestants, torch.device("cpu"), rounds))
        speeds = {title: len(source) / seconds[title] for title in contestants}
        targets = {FILES: FILES_TARGET, FAST: None, **{title: target for title, _, _, target in PACKS}}
        targets |= dict.fromkeys(vips)
        lines = [
            Figure(
                title,
                speeds[title],
                "images/s",
                BASELINE,
                speeds["torchvision"],
                speeds[title] / speeds["torchvision"],
                target=f"at least {target:g} times" if target else "",
                share=speeds[title] / speeds["least"] if title == FILES else None,
                limit="decoding all files to an eighth" if title == FILES else "",
                met=speeds[title] >= target * speeds["torchvision"] if target else None,
            )
            for title, target in targets.items()
        ]
        # Compare the crops.
        crops = {title: nearness(source, part) for title, part in sources.items()}
        crops[FAST] = nearness(source, source, CropConfig(decode="fast"))
        crops |= {title: nearness(source, source, maker=maker) for title, maker in vips.items()}
        for title, near in crops.items():
            wanted = title == FILES
            lines += [
                Figure(
                    f"crops, {title}",
                    near.psnr,
                    "dB",
                    REFERENCE,
                    target=f"at least {PSNR_TARGET:g} dB" if wanted else "",
                    met=near.psnr >= PSNR_TARGET if wanted else None,
                ),
                Figure(
                    f"crops, {title}",
                    near.hog,
                    "HOG differs by",
                    f"{REFERENCE}; gradient energy {near.gradient:.2f}",
                    target=f"at most {HOG_TARGET:g}" if wanted else "",
                    met=near.hog <= HOG_TARGET if wanted else None,
                ),
            ]
        # Measure random access.
        lines += _access(folder / "jpeg144", "JPEG 144") + _access(folder / "raw144", "raw 144")
    return lines


def bench_pack_quality(data: str | None, say: Callable[[str], None]) -> list[Figure]:
    """Compare crops of packs with crops of full-size files; see `bench_loader` and `bench_packs`."""
    with tempfile.TemporaryDirectory(prefix="fastmim-bench-") as name:
        folder = Path(name)
        source = _some_of(open_images(data)) if data is not None else make_images(folder / "made")
        _copy(source, folder / "files")
        return bench_packs(source, folder, say)


def make_images(folder: Path, count: int = MOST_IMAGES) -> FileImages:
    """Write ``count`` JPEGs of 500x375: regions of the embedded photos, drawn with a fixed seed."""
    photos = open_images("demo:photos")
    generator = np.random.default_rng(0)
    folder.mkdir(parents=True)
    names = [f"{number:04d}.jpg" for number in range(count)]
    for number, name in enumerate(names):
        whole = decode(photos.read(number % len(photos)))
        height, width = whole.shape[:2]
        share = generator.uniform(0.6, 1.0)
        scale = share * min(height / MADE_SIDES[0], width / MADE_SIDES[1])
        h, w = int(scale * MADE_SIDES[0]), int(scale * MADE_SIDES[1])
        top, left = generator.integers(0, height - h + 1), generator.integers(0, width - w + 1)
        part = Image.fromarray(whole[top : top + h, left : left + w])
        pixels = np.asarray(part.resize(MADE_SIDES[::-1], Image.Resampling.BICUBIC))
        encoded = simplejpeg.encode_jpeg(pixels, quality=MADE_QUALITY, colorsubsampling="420")
        (folder / name).write_bytes(encoded)
    return FileImages(str(folder), names)


def _some_of(source: ImageSource) -> ImageSource:
    indices = np.linspace(0, len(source) - 1, min(len(source), MOST_IMAGES)).astype(np.int64)
    return Subset(source, indices)


def _copy(source: ImageSource, folder: Path) -> int:
    """Write the images as files, in order, for packing; return their total size in bytes."""
    folder.mkdir()
    size = 0
    for index in range(len(source)):
        data = source.read(index)
        if isinstance(data, np.ndarray):
            data = simplejpeg.encode_jpeg(np.ascontiguousarray(data))
        (folder / f"{index:04d}{Path(source.name(index)).suffix or '.jpg'}").write_bytes(data)
        size += len(data)
    return size


def _torchvision(source: ImageSource) -> Callable[[], None]:
    from torchvision import transforms as T

    transform = T.Compose(
        [
            T.RandomResizedCrop(SIZE, CropConfig().scale, interpolation=T.InterpolationMode.BICUBIC),
            T.RandomHorizontalFlip(),
            T.PILToTensor(),
        ]
    )

    def run() -> None:
        for indices in batches(len(source)):
            torch.stack([transform(open_whole(source, index).convert("RGB")) for index in indices.tolist()])

    return run


def _ours(source: ImageSource, config: CropConfig | None = None) -> Callable[[], None]:
    crops = CropDataset(source, np.arange(len(source)), config or CropConfig(), (SIZE, SIZE), 3)
    return _passes(crops, source)


def _passes(crops: CropMaker, source: ImageSource) -> Callable[[], None]:
    """Return one pass over all images."""

    def run() -> None:
        for step, indices in enumerate(batches(len(source))):
            crops[BatchRequest(indices, (0, step))]

    return run


def _least(source: ImageSource) -> Callable[[], None]:
    """Return the least work that any crop needs: decoding each file to an eighth, its smallest image."""

    def run() -> None:
        for index in range(len(source)):
            data = source.read(index)
            if isinstance(data, bytes) and data.startswith(jpeg.MAGIC):
                header = jpeg.read_header(data, MAX_PIXELS)
                if header is not None:
                    jpeg.decode_reduced(data, header, 1, 3, keep=False)

    return run


def _access(folder: Path, title: str) -> list[Figure]:
    """Measure microseconds per image in random order, for datasets and for fastmim."""
    import datasets

    table = datasets.load_from_disk(str(folder))
    if "image" in table.features:
        table = table.cast_column("image", datasets.Image(decode=False))
    source = open_images(str(folder))
    order = np.random.default_rng(0).permutation(len(source)).tolist()
    contestants: dict[str, Callable[[], Any]] = {
        "datasets.load_from_disk": partial(_visit, table.__getitem__, order),
        "fastmim": partial(_visit, source.read, order),
    }
    seconds = medians(side_by_side(contestants, torch.device("cpu")))
    return [
        Figure(
            f"random access to {title}, {name}",
            1e6 * seconds[name] / len(order),
            "us/image",
            target=f"under {ACCESS_TARGET:g} us",
            met=1e6 * seconds[name] / len(order) < ACCESS_TARGET,
        )
        for name in contestants
    ]


def _visit(read: Callable[[int], Any], order: list[int]) -> None:
    for index in order:
        read(index)


@contextmanager
def _one_thread() -> Iterator[None]:
    """Limit OpenCV and PyTorch to one thread within the block, as in a loader's worker."""
    before = cv2.getNumThreads(), torch.get_num_threads()
    cv2.setNumThreads(0)
    torch.set_num_threads(1)
    try:
        with one_thread() if has_vips() else nullcontext():
            yield
    finally:
        cv2.setNumThreads(before[0])
        torch.set_num_threads(before[1])
