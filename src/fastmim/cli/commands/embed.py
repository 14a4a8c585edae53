"""The `fastmim embed` command."""

from dataclasses import dataclass
from typing import Annotated

import tyro

from fastmim.cli.flags import parse
from fastmim.cli.loading import announce_torch
from fastmim.cli.progress import ShownProgress, print_left_out
from fastmim.downstream.frozen.settings import EmbedConfig, check_embedding


def run(arguments: list[str]) -> int:
    """Run `fastmim embed` and return its exit code."""

    @dataclass(frozen=True)
    class Command:
        """Write the features of images to a parquet file."""

        settings: Annotated[EmbedConfig, tyro.conf.arg(name="")]
        quiet: bool = False
        """Show no progress."""
        trust_code: bool = False
        """Import and call any factory (package.module:function) that a file names.
        Default: only the one given as --model."""

    command = parse(Command, arguments, "fastmim embed", Command(EmbedConfig()))
    check_embedding(command.settings)
    announce_torch("embed", command.quiet)
    from fastmim.downstream.frozen.embed import embed

    with ShownProgress("embedded", command.quiet) as progress:
        written = embed(command.settings, command.trust_code, progress)
    print_left_out(written.notes, written.unreadable)
    print(f"{written.file}: {written.images} images, {written.width} numbers each")
    return 0
