"""What can be wrong with an export before anything heavy is loaded: its format, packages, and folder."""

import importlib.util
from pathlib import Path
from typing import Literal, get_args

from fastmim.errors import UsageError

Format = Literal["timm", "huggingface", "torchvision", "onnx"]
PACKAGES: dict[str, list[str]] = {
    "huggingface": ["transformers"],
    "onnx": ["onnx", "onnxscript", "onnxruntime"],
}
WRITTEN = {"README.md", "config.json", "model.safetensors", "model.onnx", "model.onnx.data"}


def check_export(out: str | Path, format: Format, overwrite: bool) -> Path:
    """The folder of an export.

    Raises:
        UsageError: there is no such format, it needs a package, or the folder is taken.
    """
    if format not in get_args(Format):
        raise UsageError(f"format = {format!r} must be one of {', '.join(get_args(Format))}")
    lacking = [name for name in PACKAGES.get(format, []) if importlib.util.find_spec(name) is None]
    if lacking:
        raise UsageError(f"format {format} needs {', '.join(lacking)}: pip install 'fastmim[export]'")
    folder = Path(out).expanduser().absolute()
    _check_free(folder, overwrite)
    return folder


def _check_free(folder: Path, overwrite: bool) -> None:
    if folder.exists() and not folder.is_dir():
        raise UsageError(f"out = {folder} is a file")
    there = sorted(file.name for file in folder.iterdir()) if folder.exists() else []
    foreign = [name for name in there if name not in WRITTEN]
    if foreign:
        raise UsageError(f"out = {folder} holds {foreign[0]}, which no export wrote; give another folder")
    if there and not overwrite:
        raise UsageError(f"out = {folder} holds an export already; overwrite it, or give another folder")
