"""Which of a table's columns holds the images, and which the classes: by name first, then by type."""

from collections.abc import Callable, Mapping
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


@dataclass(frozen=True)
class _Sought:
    """What a column is wanted for."""

    setting: str
    names: tuple[str, ...]
    """That say it."""
    fits: Callable[[Any], bool]
    """Whether a column of such a feature can hold it."""
    holds: str
    """In words, as "does not hold ..."."""
    several: str
    """As "has several ..."."""
    missing: str
    """As "has no ..."; then the columns, and what is needed."""
    needed: str


def choose_image(features: Mapping[str, Any], columns: Columns, where: str) -> tuple[str, list[str]]:
    """The column of images, and others that could have been it.

    Raises:
        UsageError: there is none, none of this name, or several and none whose name says it.
    """
    sought = _Sought(
        "image",
        IMAGE_COLUMNS,
        _is_image,
        "images",
        "columns of images",
        "image column",
        "one of Hugging Face's Image type, or one of encoded images (bytes) named 'image'",
    )
    return _choose(sought, columns.image, features, where)


def choose_label(features: Mapping[str, Any], columns: Columns, where: str) -> tuple[str, list[str]]:
    """The column of classes, and others that could have been it. Raises UsageError, as `choose_image`."""
    sought = _Sought(
        "label",
        LABEL_COLUMNS,
        _is_class,
        "a class a row",
        "columns of classes",
        "column of classes",
        "one of Hugging Face's ClassLabel type, or one named 'label'",
    )
    return _choose(sought, columns.label, features, where)


def _choose(
    sought: _Sought, asked: str | None, features: Mapping[str, Any], where: str
) -> tuple[str, list[str]]:
    flag = f"--columns.{sought.setting}"
    able = [name for name, feature in features.items() if sought.fits(feature)]
    if asked is not None:
        return _chosen(sought, asked, able, features, where)
    typed = [name for name in able if not _is_value(features[name])]
    named = _named(able, sought.names)
    unable = _unable(features, able, sought.names)
    if named is None and len(typed) == 1 and not unable:
        named = typed[0]
    if named is not None:
        alike = [name for name in able if name in typed or name.lower() in sought.names]
        return named, [name for name in (*unable, *alike) if name != named]
    if typed and unable:
        said = _described({name: features[name] for name in unable})
        raise UsageError(
            f"data: {where}: column {said} does not hold {sought.holds}, and whether {', '.join(typed)} is "
            f"meant instead is open: say it with {flag}"
        )
    if typed:
        raise UsageError(
            f"data: {where} has several {sought.several}, {', '.join(typed)}: say which one with {flag}"
        )
    raise UsageError(
        f"data: {where} has no {sought.missing} (columns: {_described(features)}); {sought.needed}, is "
        f"needed; {flag} says which"
    )


def taken(what: str, column: str, others: list[str]) -> tuple[str, ...]:
    """A sentence where there was a choice."""
    return (f"{what} are those of column {column!r}; left: {', '.join(others)}",) if others else ()


def _chosen(
    sought: _Sought, name: str, able: list[str], features: Mapping[str, Any], where: str
) -> tuple[str, list[str]]:
    if name in able:
        return name, []
    what = "is none of images or bytes" if sought.setting == "image" else "holds no single class a row"
    wrong = f"{what} ({_type(features[name])})" if name in features else "is not there"
    raise UsageError(
        f"columns.{sought.setting} = {name} {wrong} in {where}; columns that work: "
        f"{', '.join(able) or 'none'}"
    )


def _named(able: list[str], names: tuple[str, ...]) -> str | None:
    """The column whose name comes first in ``names``; exactly so written before other letters."""
    order = {name: place for place, name in enumerate(names)}
    known = [name for name in able if name.lower() in order]
    return min(known, key=lambda name: (order[name.lower()], name.lower() != name), default=None)


def _unable(features: Mapping[str, Any], able: list[str], names: tuple[str, ...]) -> list[str]:
    """Columns whose names say it, and whose types do not."""
    return [name for name in features if name.lower() in names and name not in able]


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
