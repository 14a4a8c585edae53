"""Images in tables: parquet files, saved Hugging Face datasets, and datasets of the Hugging Face hub."""

from pathlib import Path
from typing import Any

from fastmim.data.decode.pixels import first_line
from fastmim.data.sources.columns import Columns, choose_image, choose_label, taken
from fastmim.data.sources.files import read_regular, why_not_regular
from fastmim.data.sources.packed import Manifest, check_files
from fastmim.data.sources.rows import NOT_WHOLE, checksum
from fastmim.data.splits import choose_split
from fastmim.errors import UsageError


class TableImages:
    """The image column of a Hugging Face dataset (parquet, saved to disk, or from the hub)."""

    def __init__(
        self, table: Any, where: str, columns: Columns | None = None, notes: tuple[str, ...] = ()
    ) -> None:
        import datasets

        self._chosen = columns or Columns()
        self._column, others = choose_image(table.features, self._chosen, where)
        self.notes = (*notes, *taken("images", self._column, others))
        labels = [name for name in table.features if name != self._column]
        if isinstance(table.features[self._column], datasets.Image):
            table = table.cast_column(self._column, datasets.Image(decode=False))
        self._table = table.select_columns([self._column])
        self._labels = table.select_columns(labels)

    def __len__(self) -> int:
        return len(self._table)

    def name(self, index: int) -> str:
        return f"row {index}"

    def labels(self, where: str) -> list[str]:
        """Return the class name of each row, see `read_labels`; note a choice between several columns."""
        column, others = choose_label(self._labels.features, self._chosen, where)
        self.notes = tuple(dict.fromkeys((*self.notes, *taken("classes", column, others))))
        return read_labels(self._labels, where, self._chosen)

    def read(self, index: int) -> bytes:
        value = self._table[index][self._column]
        if isinstance(value, dict):
            if value.get("bytes") is None and value.get("path"):
                return read_regular(value["path"])
            value = value.get("bytes")
        if not isinstance(value, bytes):
            raise OSError("the row holds no image")
        return value


class PackedTable(TableImages):
    """Parquet files of a pack: each row is compared with its checksum when it is read."""

    def read(self, index: int) -> bytes:
        data = super().read(index)
        others = self._labels[index]
        whole = checksum(data, (None, None, None), str(others.get("path")), others.get("label"))
        if whole != others.get("crc32"):
            raise OSError(NOT_WHOLE)
        return data


def open_packed(folder: Path, manifest: Manifest) -> PackedTable:
    """Open the parquet files of a complete pack. Raises UsageError."""
    check_files(folder, manifest)
    table = read_parquet([str(folder / shard.file) for shard in manifest.shards], str(folder))
    if len(table) != sum(shard.rows for shard in manifest.shards):
        raise UsageError(f"data: {folder} has {len(table)} rows, unlike its manifest; pack the images again")
    return PackedTable(table, str(folder))


def open_parquet(
    files: list[str], where: str, columns: Columns | None = None, notes: tuple[str, ...] = ()
) -> TableImages:
    """Open one or several parquet files as one source. Raises UsageError."""
    return TableImages(read_parquet(files, where), where, columns, notes)


def open_saved(path: Path, columns: Columns | None = None) -> TableImages:
    """Open the only or the training split of a dataset that ``save_to_disk`` wrote. Raises UsageError."""
    splits = read_saved(path)
    name = choose_split(splits, str(path))
    others = [f"{other} ({len(table)})" for other, table in splits.items() if other != name]
    note = f"images are those of split {name!r} ({len(splits[name])}); not used: {', '.join(others)}"
    return TableImages(splits[name], str(path), columns, (note,) if others else ())


def open_hub(spec: str, columns: Columns | None = None) -> TableImages:
    """Open ``hf:NAME[:SPLIT]``, a dataset of the Hugging Face hub. Raises UsageError."""
    return TableImages(read_hub(spec)["train"], spec, columns)


def read_parquet(files: list[str], where: str) -> Any:
    """Read the table in one or several parquet files. Raises UsageError."""
    import datasets

    _check_files(files, where)
    datasets.disable_progress_bars()
    try:
        return datasets.Dataset.from_parquet(files)
    except Exception as error:
        raise UsageError(f"data: {where} cannot be read as parquet: {first_line(error)}") from error


def read_saved(path: Path) -> dict[str, Any]:
    """Read the tables of a saved dataset by split; a table without splits is named train.

    Raises UsageError if it cannot be read.
    """
    import datasets

    _check_files([str(file) for file in path.rglob("*") if not file.is_dir()], str(path))
    try:
        table = datasets.load_from_disk(str(path))
    except Exception as error:
        raise UsageError(f"data: {path} cannot be read as a saved dataset: {first_line(error)}") from error
    return dict(table) if isinstance(table, datasets.DatasetDict) else {"train": table}


def read_hub(spec: str, every_split: bool = False) -> dict[str, Any]:
    """Read the tables of ``hf:NAME[:SPLIT]`` by split.

    Args:
        every_split: read all splits if ``spec`` names none. Otherwise the result is one table under the key
            train: that of the named split, by default train.

    Raises:
        UsageError: the dataset cannot be loaded.
    """
    import datasets

    name, _, split = spec.removeprefix("hf:").partition(":")
    every_split = every_split and not split
    try:
        table = datasets.load_dataset(name, split=None if every_split else split or "train")
    except Exception as error:
        raise UsageError(f"data: {spec} cannot be loaded: {first_line(error)}") from error
    return dict(table) if every_split else {"train": table}


def is_saved(path: Path) -> bool:
    """Return whether Hugging Face's ``save_to_disk`` wrote this folder."""
    return (path / "dataset_info.json").is_file() or (path / "dataset_dict.json").is_file()


def _check_files(files: list[str], where: str) -> None:
    """Raise UsageError if a file could block its reader, or cannot be opened."""
    for file in files:
        reason = why_not_regular(file)
        if reason:
            raise UsageError(f"data: {where} cannot be read: {file}: {reason}")


def read_labels(table: Any, where: str, columns: Columns | None = None) -> list[str]:
    """Return the class name of each row.

    Raises UsageError if there is no column of classes, several could be it, or a row has no class.
    """
    import datasets

    column, _ = choose_label(table.features, columns or Columns(), where)
    values = list(table[column][:])
    feature = table.features[column]
    for row, value in enumerate(values):
        if value is None or (value == -1 and isinstance(feature, datasets.ClassLabel)):
            raise UsageError(f"data: {where}: row {row} has no value in column {column!r}")
    if isinstance(feature, datasets.ClassLabel):
        return [str(feature.int2str(int(value))) for value in values]
    return [str(value) for value in values]
