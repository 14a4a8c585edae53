"""The `fastmim embed` command."""

from dataclasses import dataclass
from typing import Annotated

import tyro

from fastmim.cli.flags import parse
from fastmim.downstream.frozen.settings import EmbedConfig, check_embedding

SHOWN = 5


def run(arguments: list[str]) -> int:
    """Run `fastmim embed` and return its exit code."""

    @dataclass(frozen=True)
    class Command:
        """Write the features of images to a parquet file."""

        settings: Annotated[EmbedConfig, tyro.conf.arg(name="")]
        trust_code: bool = False
        """Import and call any factory (package.module:function) that a file names.
        Default: only the one given as --model."""

    command = parse(Command, arguments, "fastmim embed", Command(EmbedConfig()))
    check_embedding(command.settings)
    from fastmim.downstream.frozen.embed import embed

    written = embed(command.settings, command.trust_code)
    for note in written.notes:
        print(f"data: {note}")
    for line in written.unreadable[:SHOWN]:
        print(f"left out: {line}")
    if len(written.unreadable) > SHOWN:
        print(f"left out: {len(written.unreadable) - SHOWN} more")
    print(f"{written.file}: {written.images} images, {written.width} numbers each")
    return 0
