"""Choose the columns of a table that hold the images and the classes, by name first, then by type."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from fastmim.errors import UsageError

# In order of preference.
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
    """The columns of a table that are read."""

    image: str | None = None
    """Table column of the images. Default: one named image, or the only column of images."""
    label: str | None = None
    """Table column of the classes. Default: one named label, or the only column of classes."""


@dataclass(frozen=True)
class _Sought:
    """Requirements for a column, and the words of messages about the column."""

    setting: str
    names: tuple[str, ...]
    """Names that identify such a column, in order of preference."""
    fits: Callable[[Any], bool]
    """Return whether a column of the given feature has a suitable type."""
    holds: str
    """Content of the column, as in "does not hold ..."."""
    several: str
    """Plural, as in "has several ..."."""
    missing: str
    """Singular, as in "has no ..."."""
    needed: str
    """Suitable columns, as in "..., is needed"."""


def choose_image(features: Mapping[str, Any], columns: Columns, where: str) -> tuple[str, list[str]]:
    """Return the column of images, and the other candidates.

    Raises:
        UsageError: there is no such column, none of the configured name, or several and none that the name
            identifies.
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
    """Return the column of classes, and the other candidates. Raises UsageError, like `choose_image`."""
    sought = _Sought(
        "label",
        LABEL_COLUMNS,
        _is_class,
        "one class per row",
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
            f"data: {where}: column {said} does not hold {sought.holds}; if {', '.join(typed)} is meant "
            f"instead, name it with {flag}"
        )
    if typed:
        raise UsageError(
            f"data: {where} has several {sought.several}, {', '.join(typed)}: choose one with {flag}"
        )
    raise UsageError(
        f"data: {where} has no {sought.missing} (columns: {_described(features)}); {sought.needed}, is "
        f"needed; {flag} names it"
    )


def taken(what: str, column: str, others: list[str]) -> tuple[str, ...]:
    """Return a note on the chosen column if there were other candidates."""
    return (f"{what} are those of column {column!r}; not used: {', '.join(others)}",) if others else ()


def _chosen(
    sought: _Sought, name: str, able: list[str], features: Mapping[str, Any], where: str
) -> tuple[str, list[str]]:
    if name in able:
        return name, []
    what = "does not hold images or bytes" if sought.setting == "image" else "does not hold one class per row"
    wrong = f"{what} ({_type(features[name])})" if name in features else "does not exist"
    raise UsageError(
        f"columns.{sought.setting} = {name} {wrong} in {where}; columns that work: "
        f"{', '.join(able) or 'none'}"
    )


def _named(able: list[str], names: tuple[str, ...]) -> str | None:
    """Return the column whose name is first in ``names``, lower case before other cases; None without one."""
    order = {name: place for place, name in enumerate(names)}
    known = [name for name in able if name.lower() in order]
    return min(known, key=lambda name: (order[name.lower()], name.lower() != name), default=None)


def _unable(features: Mapping[str, Any], able: list[str], names: tuple[str, ...]) -> list[str]:
    """Return the columns of a suitable name but an unsuitable type."""
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
    """Return whether a column has a plain type, which does not reveal the meaning of its values."""
    import datasets

    return isinstance(feature, datasets.Value)


def _described(features: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} ({_type(feature)})" for name, feature in features.items())


def _type(feature: Any) -> str:
    return str(getattr(feature, "dtype", type(feature).__name__))
