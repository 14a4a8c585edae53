"""`fastmim embed`."""

from fastmim.flags import parse
from fastmim.transfer.embed import EmbedConfig, embed

SHOWN = 5


def run(arguments: list[str]) -> int:
    written = embed(parse(EmbedConfig, arguments, "fastmim embed", EmbedConfig()))
    for note in written.notes:
        print(f"data: {note}")
    for line in written.unreadable[:SHOWN]:
        print(f"left out: {line}")
    if len(written.unreadable) > SHOWN:
        print(f"left out: {len(written.unreadable) - SHOWN} more")
    print(f"{written.file}: {written.images} images, {written.width} numbers each")
    return 0
