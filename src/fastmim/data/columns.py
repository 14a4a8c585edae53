"""Which of a table's columns holds the images, and which the classes: by name first, then by type."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from fastmim.errors import UsageError

# The surest names first.
IMAGE_COLUMNS = (
    "image",
    "img",
    "images",
    "jpg",
    "jpeg",
    "png",
    "webp",
    "bytes",
    "image_bytes",
    "picture",
    "photo",
)
LABEL_COLUMNS = (
    *("label", "labels", "class", "target", "category", "y", "fine_label", "cls", "class_label", "label_id"),
    *("class_id", "category_id", "class_name", "label_name", "classes", "targets"),
)


@dataclass(frozen=True)
class Columns:
    """Which columns of a table are taken."""

    image: str | None = None
    """Column of the images, of a table. Default: one named image, or the only one of images."""
    label: str | None = None
    """Column of the classes, of a table. Default: one named label, or the only one of classes."""


def choose_image(features: Mapping[str, Any], columns: Columns, where: str) -> tuple[str, list[str]]:
    """The column of images, and others that could have been it.

    Raises:
        UsageError: there is none, none of this name, or several and none whose name says it.
    """
    able = [name for name, feature in features.items() if _is_image(feature)]
    if columns.image is not None:
        return _chosen("image", columns.image, able, features, where)
    typed = [name for name in able if not _is_value(features[name])]
    named = _named(able, IMAGE_COLUMNS)
    unable = _unable(features, able, IMAGE_COLUMNS)
    if named is None and len(typed) == 1 and not unable:
        named = typed[0]
    if named is not None:
        return named, [name for name in (*unable, *typed) if name != named]
    if typed and unable:
        raise UsageError(_by_type_alone(where, "images", "image", unable, typed, features))
    if typed:
        raise UsageError(
            f"data: {where} has several columns of images, {', '.join(typed)}: say which one with "
            "--columns.image"
        )
    raise UsageError(
        f"data: {where} has no image column (columns: {_described(features)}); one of Hugging Face's Image "
        "type, or one of encoded images (bytes) named 'image', is needed; --columns.image says which"
    )


def choose_label(features: Mapping[str, Any], columns: Columns, where: str) -> tuple[str, list[str]]:
    """The column of classes, and others that could have been it. Raises UsageError, as `choose_image`."""
    able = [name for name, feature in features.items() if _is_class(feature)]
    if columns.label is not None:
        return _chosen("label", columns.label, able, features, where)
    typed = [name for name in able if not _is_value(features[name])]
    named = _named(able, LABEL_COLUMNS)
    unable = _unable(features, able, LABEL_COLUMNS)
    if named is None and len(typed) == 1 and not unable:
        named = typed[0]
    if named is not None:
        alike = [name for name in able if name in typed or name.lower() in LABEL_COLUMNS]
        return named, [name for name in (*unable, *alike) if name != named]
    if typed and unable:
        raise UsageError(_by_type_alone(where, "a class a row", "label", unable, typed, features))
    if typed:
        raise UsageError(
            f"data: {where} has several columns of classes, {', '.join(typed)}: say which one with "
            "--columns.label"
        )
    raise UsageError(
        f"data: {where} has no column of classes (columns: {_described(features)}); one of Hugging Face's "
        "ClassLabel type, or one named 'label', is needed; --columns.label says which"
    )


def taken(what: str, column: str, others: list[str]) -> tuple[str, ...]:
    """A sentence where there was a choice."""
    return (f"{what} are those of column {column!r}; left: {', '.join(others)}",) if others else ()


def _chosen(
    setting: str, name: str, able: list[str], features: Mapping[str, Any], where: str
) -> tuple[str, list[str]]:
    if name in able:
        return name, []
    what = "is none of images or bytes" if setting == "image" else "holds no single class a row"
    wrong = f"{what} ({_type(features[name])})" if name in features else "is not there"
    raise UsageError(
        f"columns.{setting} = {name} {wrong} in {where}; columns that work: {', '.join(able) or 'none'}"
    )


def _named(able: list[str], names: tuple[str, ...]) -> str | None:
    """The column whose name comes first in ``names``; exactly so written before other letters."""
    order = {name: place for place, name in enumerate(names)}
    known = [name for name in able if name.lower() in order]
    return min(known, key=lambda name: (order[name.lower()], name.lower() != name), default=None)


def _unable(features: Mapping[str, Any], able: list[str], names: tuple[str, ...]) -> list[str]:
    """Columns whose names say it, and whose types do not."""
    return [name for name in features if name.lower() in names and name not in able]


def _by_type_alone(
    where: str, what: str, setting: str, unable: list[str], typed: list[str], features: Mapping[str, Any]
) -> str:
    """What is said where names and types lead to different columns."""
    said = _described({name: features[name] for name in unable})
    return (
        f"data: {where}: column {said} does not hold {what}, and whether {', '.join(typed)} is meant instead "
        f"is open: say it with --columns.{setting}"
    )


def _is_image(feature: Any) -> bool:
    import datasets

    if isinstance(feature, dict):
        return "bytes" in feature
    binary = isinstance(feature, datasets.Value) and "binary" in feature.dtype
    return binary or isinstance(feature, datasets.Image)


def _is_class(feature: Any) -> bool:
    import datasets

    if isinstance(feature, datasets.Value):
        return any(kind in feature.dtype for kind in ("int", "string", "bool", "float"))
    return isinstance(feature, datasets.ClassLabel)


def _is_value(feature: Any) -> bool:
    """Whether a column is of a plain type, which says nothing of what its values mean."""
    import datasets

    return isinstance(feature, datasets.Value)


def _described(features: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} ({_type(feature)})" for name, feature in features.items())


def _type(feature: Any) -> str:
    return str(getattr(feature, "dtype", type(feature).__name__))
