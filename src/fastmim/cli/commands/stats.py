"""The `fastmim stats` command."""

import json
import sys
from dataclasses import dataclass, field

from fastmim.cli.flags import parse
from fastmim.data.settings import MAX_PIXELS
from fastmim.data.sources.columns import Columns
from fastmim.data.sources.files import check_data
from fastmim.errors import UsageError
from fastmim.system.bounds import NonNegativeInt, PositiveInt


def run(arguments: list[str]) -> int:
    """Run `fastmim stats` and return its exit code."""

    @dataclass(frozen=True)
    class Command:
        """Measure the mean and standard deviation of each channel of a data set."""

        data: str = ""
        """Images, as for `fastmim pretrain`."""
        columns: Columns = field(default_factory=Columns)
        in_chans: PositiveInt = 3
        """Image channels."""
        image_size: PositiveInt = 128
        """Side in pixels to which images are resized before they are measured."""
        count: NonNegativeInt = 1024
        """Number of images to measure, drawn by --seed; 0: all."""
        seed: NonNegativeInt = 0
        """Random seed of the images to measure."""
        workers: NonNegativeInt = 0
        """Processes that read images; 0: this process."""
        max_pixels: PositiveInt = MAX_PIXELS
        """Largest image in pixels; larger ones are skipped."""
        json: bool = False
        """Print one JSON object."""

    # Parse and check the flags, before torch is loaded.
    command = parse(Command, arguments, "fastmim stats", Command())
    if not command.data:
        raise UsageError("data is missing: give a folder of images")
    check_data(command.data)
    from fastmim.data.loading.channel_stats import fill_note, measure_stats
    from fastmim.data.sources.base import notes_of
    from fastmim.data.sources.open import open_images

    # Measure.
    size = (command.image_size, command.image_size)
    source = open_images(command.data, command.columns)
    for note in notes_of(source):  # stdout may be saved to a file for --config
        print(f"data: {note}", file=sys.stderr)
    stats = measure_stats(
        source,
        command.in_chans,
        size,
        command.count or None,
        command.seed,
        command.workers,
        command.max_pixels,
    )
    filled = fill_note(source, command.in_chans, command.seed, command.max_pixels)
    if filled:
        print(f"data: {filled}", file=sys.stderr)
    # Print the result, as JSON or as YAML.
    mean, std = ([round(value, 6) for value in values] for values in (stats.mean, stats.std))
    if command.json:
        print(json.dumps({"mean": mean, "std": std, "images": stats.images, "unreadable": stats.unreadable}))
        return 0
    print(f"# {stats.images} images, {stats.unreadable} unreadable; 8-bit values as 0..1")
    print(f"crop:\n  mean: {mean}\n  std: {std}")
    print(f"# or: --crop.mean {' '.join(map(str, mean))} --crop.std {' '.join(map(str, std))}")
    return 0
