"""`fastmim export`."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import torch
import tyro
from torch import Tensor

from fastmim.cli.flags import parse
from fastmim.data.loading.eval_loader import Views
from fastmim.data.sources.open import open_images
from fastmim.encoders.registry import is_custom
from fastmim.errors import UsageError
from fastmim.export.export import export_encoder
from fastmim.weights.encoder_file import WEIGHTS, read_description
from fastmim.weights.load import as_size
from fastmim.weights.released import import_released

COMPARED = 8  # images


@dataclass(frozen=True)
class ExportCommand:
    """Write an encoder for other libraries; it is read back and must give equal outputs on real images.

    With --from: bring a released checkpoint into this package's own form first, an encoder.safetensors that
    every verb takes."""

    encoder: str = ""
    """A run's folder, its encoder.safetensors, or with --from a released checkpoint."""
    out: str = ""
    """Folder to write."""
    format: Literal["timm", "torchvision", "huggingface", "onnx"] = "timm"
    """timm: its hub's layout; torchvision: where it has the architecture (ViT, Swin, ConvNeXt, ResNet);
    huggingface: for transformers' AutoModel; onnx: for any runtime."""
    image_size: int | tuple[int, int] | None = None
    """Pixels, a side or height and width. Default: that of the weights."""
    data: str = "demo:photos"
    """Images that outputs are compared on, as for `fastmim pretrain`."""
    source: Annotated[Literal["mae", "simmim", "fastmim"] | None, tyro.conf.arg(name="from")] = None
    """Whose released checkpoint --encoder is; the result is an encoder.safetensors in --out."""
    model: str | None = None
    """With --from: timm's name of the checkpoint's backbone. Without: the package.module:factory that the
    encoder's file names, without which that is not imported."""
    model_kwargs: dict[str, Any] = field(default_factory=dict)
    """With --from: its arguments, as JSON; a ViT of FastMIM's needs its heads: '{"num_heads": 6}'."""
    overwrite: bool = False
    """Replace an earlier export in --out."""
    trust_code: bool = False
    """Import and call whatever factory (package.module:function) the encoder's file names."""


def run(arguments: list[str]) -> int:
    command = parse(ExportCommand, arguments, "fastmim export", ExportCommand())
    for name, hint in {"encoder": "give a run's folder or a file", "out": "give a folder to write"}.items():
        if not getattr(command, name):
            raise UsageError(f"{name} is missing: {hint}")
    if command.source is not None:
        if command.model is None:
            raise UsageError("model is missing: with --from, give timm's name of the checkpoint's backbone")
        imported = import_released(
            command.encoder, command.source, command.model, command.out, command.model_kwargs
        )
        for what, keys in {
            "left out": imported.unexpected_keys,
            "newly initialised": imported.missing_keys,
        }.items():
            if keys:
                print(f"{what}: {', '.join(keys)}")
        print(f"{Path(command.out) / WEIGHTS}: the encoder")
        return 0
    if command.model_kwargs or (command.model is not None and not is_custom(command.model)):
        raise UsageError("model and model_kwargs go with --from only: the encoder says which model it is")
    images = _images(command)
    exported = export_encoder(
        command.encoder,
        command.out,
        command.format,
        command.image_size,
        images,
        command.overwrite,
        command.model,
        command.trust_code,
    )
    print(
        f"{exported.folder}: {', '.join(exported.files)}; read back, outputs on {len(images)} images of "
        f"{command.data} differ by at most {exported.difference:.1e} of the largest"
    )
    return 0


def _images(command: ExportCommand) -> Tensor:
    """A few real images, as the encoder takes them: (B, C, H, W)."""
    _, metadata = read_description(command.encoder)
    size = as_size(command.image_size or metadata["image_size"])
    source = open_images(command.data)
    mean, std = (torch.tensor(metadata[name]) for name in ("mean", "std"))
    indices = np.arange(min(COMPARED, len(source)))
    views = Views(source, indices, size, metadata["in_chans"], COMPARED, 0, mean, std)
    images, shown, broken = next(iter(views))
    if not len(shown):
        raise UsageError(f"data: {command.data}: {broken[0].name} cannot be read: {broken[0].reason}")
    return images
