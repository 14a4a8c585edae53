"""Check the format, the packages and the folder of an export, before PyTorch is loaded."""

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
    """Check the settings of an export and return the path of its folder.

    Raises:
        UsageError: the format does not exist, a package is missing, or the folder is not free.
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
        raise UsageError(
            f"out = {folder} holds {foreign[0]}, which is not from an export; give another folder"
        )
    if there and not overwrite:
        raise UsageError(f"out = {folder} already holds an export; overwrite it, or give another folder")
