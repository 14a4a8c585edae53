"""The `fastmim pack` command."""

import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from fastmim.cli.flags import parse
from fastmim.cli.progress import ShownProgress
from fastmim.data.settings import MAX_PIXELS
from fastmim.data.sources.columns import Columns
from fastmim.data.sources.files import check_data
from fastmim.errors import RunError, UsageError
from fastmim.system.bounds import NonNegativeInt, PositiveInt

if TYPE_CHECKING:
    from fastmim.data.sources.packed import Manifest

SHOWN = 20  # damaged rows


@dataclass(frozen=True)
class PackCommand:
    """Write a resized copy of a data set, which training reads several times as fast.

    A pack keeps order, paths and classes; every verb takes its folder as --data, and so does
    datasets.load_from_disk. The same command resumes a pack that was stopped.

    For training at 128 pixels:  fastmim pack --data photos/ --out packed/

    The fastest, 9 times the space:  fastmim pack --data photos/ --out packed/ --encoding raw

    To share:  fastmim pack --data photos/ --out packed/ --format parquet

    To verify it:  fastmim pack --out packed/ --verify
    """

    data: str = ""
    """Images, as for `fastmim pretrain`."""
    out: str = ""
    """Output folder."""
    short_side: int = 192
    """Largest shorter side in pixels: 192 to train at 128, 256 at 160, 336 at 224 (1.5 times or more).
    Smaller values blur the crops; smaller images are not enlarged."""
    encoding: Literal["jpeg", "raw"] = "jpeg"
    """Encoding of the pack: JPEG, or raw pixels."""
    quality: int | None = None
    """JPEG quality, 1 to 100. Default: 85. JPEGs that are already small are kept unchanged."""
    format: Literal["arrow", "parquet"] = "arrow"
    """arrow: fast random access. parquet: for exchange, JPEG only."""
    in_chans: int = 3
    """3: RGB, 1: grey. 16-bit images are reduced to 8 bits where the reader does so, else skipped."""
    max_pixels: PositiveInt = MAX_PIXELS
    """Largest image in pixels; larger ones are skipped."""
    workers: NonNegativeInt | None = None
    """Worker processes. Default: the CPUs that this process may use."""
    columns: Columns = field(default_factory=Columns)
    overwrite: bool = False
    """Replace another pack in --out."""
    quiet: bool = False
    """Show only the result."""
    verify: bool = False
    """Read and decode every row again and compare. Without --data: verify an existing pack."""


def run(arguments: list[str]) -> int:
    """Run `fastmim pack` and return its exit code."""
    command = parse(PackCommand, arguments, "fastmim pack", PackCommand())
    if not command.out:
        raise UsageError("out is missing: give a folder to write")
    if not command.data and not command.verify:
        raise UsageError("data is missing: give a folder of images")
    if command.data:
        check_data(command.data)
    from fastmim.data.packing.pack import pack
    from fastmim.system.hardware import available_cpus

    workers = command.workers if command.workers is not None else available_cpus()
    if command.data:
        started = time.monotonic()
        with ShownProgress("packed", command.quiet) as progress:
            manifest = pack(
                command.data,
                command.out,
                command.short_side,
                command.encoding,
                command.quality,
                command.format,
                command.in_chans,
                workers,
                command.overwrite,
                progress,
                command.max_pixels,
                command.columns,
                print,
            )
        print(_summary(manifest, command.out, time.monotonic() - started))
    return _verify(command.out, workers, command.quiet) if command.verify else 0


def _summary(manifest: "Manifest", out: str, seconds: float) -> str:
    from fastmim.data.packing.pack import SKIPPED

    rows = sum(shard.rows for shard in manifest.shards)
    size = sum(shard.bytes for shard in manifest.shards)
    before = sum(shard.source_bytes for shard in manifest.shards)
    skipped = manifest.settings.images - rows
    told = f", {skipped} skipped ({Path(out) / SKIPPED} lists them)" if skipped else ", none skipped"
    return (
        f"{out}: {rows} images, {size / 1e6:.1f} MB, {size / max(before, 1):.2f} of the original size"
        f"{told}; {seconds:.0f} s"
    )


def _verify(out: str, workers: int, quiet: bool) -> int:
    from fastmim.data.packing.pack import verify

    with ShownProgress("verified", quiet) as progress:
        damages = verify(out, workers, progress)
    if not damages:
        print(f"{out}: all rows are intact")
        return 0
    for damage in damages[:SHOWN]:
        print(damage)
    raise RunError(f"{out}: {len(damages)} of its rows or files are damaged; the first is {damages[0]}")
