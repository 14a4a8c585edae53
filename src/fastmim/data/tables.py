"""Images in tables: parquet files, datasets saved by Hugging Face, and those of its hub."""

from pathlib import Path
from typing import Any

from fastmim.data.bands import first_line
from fastmim.errors import UsageError

IMAGE_COLUMNS = ("image", "img", "images", "jpg", "png", "bytes", "picture", "photo")


class TableImages:
    """The image column of a Hugging Face dataset (parquet, saved to disk, or from the hub)."""

    def __init__(self, table: Any, where: str) -> None:
        import datasets

        self._column = _image_column(table, where)
        if isinstance(table.features[self._column], datasets.Image):
            table = table.cast_column(self._column, datasets.Image(decode=False))
        self._table = table.select_columns([self._column])

    def __len__(self) -> int:
        return len(self._table)

    def name(self, index: int) -> str:
        return f"row {index}"

    def read(self, index: int) -> bytes:
        value = self._table[index][self._column]
        if isinstance(value, dict):
            if value.get("bytes") is None and value.get("path"):
                return Path(value["path"]).read_bytes()
            value = value.get("bytes")
        if not isinstance(value, bytes):
            raise OSError("the row holds no image")
        return value


def open_parquet(files: list[str], where: str) -> TableImages:
    """One or several parquet files as one source. Raises UsageError, like the others below."""
    import datasets

    datasets.disable_progress_bars()
    try:
        table = datasets.Dataset.from_parquet(files)
    except Exception as error:
        raise UsageError(f"data: {where} cannot be read as parquet: {first_line(error)}") from error
    return TableImages(table, where)


def open_saved(path: Path) -> TableImages:
    """What ``save_to_disk`` of Hugging Face's datasets wrote; of several splits the one for training."""
    import datasets

    try:
        table = datasets.load_from_disk(str(path))
    except Exception as error:
        raise UsageError(f"data: {path} cannot be read as a saved dataset: {first_line(error)}") from error
    if isinstance(table, datasets.DatasetDict):
        table = table["train"] if "train" in table else next(iter(table.values()))
    return TableImages(table, str(path))


def open_hub(spec: str) -> TableImages:
    """``hf:NAME[:SPLIT]``, a dataset of the Hugging Face hub."""
    import datasets

    name, _, split = spec.removeprefix("hf:").partition(":")
    try:
        table = datasets.load_dataset(name, split=split or "train")
    except Exception as error:
        raise UsageError(f"data: {spec} cannot be loaded: {first_line(error)}") from error
    return TableImages(table, spec)


def _image_column(table: Any, where: str) -> str:
    import datasets

    for name, feature in table.features.items():
        if isinstance(feature, datasets.Image):
            return str(name)
    for name in IMAGE_COLUMNS:
        if name in table.features:
            return name
    raise UsageError(
        f"data: {where} has no image column (columns: {', '.join(table.features)}); "
        "one of Hugging Face's Image type, or one named 'image', is needed"
    )
