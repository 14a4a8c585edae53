"""The `fastmim export` command."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from fastmim.cli.flags import parse
from fastmim.config.usage import check_given
from fastmim.data.sources.files import check_data
from fastmim.encoders.names import is_custom
from fastmim.errors import UsageError
from fastmim.export.usage import Format, check_export

if TYPE_CHECKING:
    from torch import Tensor

    from fastmim.system.size import Size

COMPARED = 8  # images


@dataclass(frozen=True)
class ExportCommand:
    """Export an encoder to other libraries; it is reloaded and must give equal outputs on real images.

    With --part model: export the segmenter or detector of a run as ONNX.
    With --from: convert a released checkpoint to encoder.safetensors, which every verb accepts.
    """

    encoder: str = ""
    """A run's folder, its encoder.safetensors, or with --from a released checkpoint."""
    out: str = ""
    """Output folder."""
    format: Format = "timm"
    """timm: layout of its hub. torchvision: if it has the architecture (ViT, Swin, ConvNeXt, ResNet).
    huggingface: for transformers' AutoModel. onnx: for any runtime."""
    part: Literal["encoder", "model"] = "encoder"
    """encoder: the backbone, with the classifier of fine-tuning. model: the whole segmenter or detector of a
    run of `fastmim segment` or `detect`, as ONNX."""
    image_size: int | tuple[int, int] | None = None
    """Image size in pixels: side, or height and width. Default: that of the weights."""
    data: str = "demo:photos"
    """Images on which outputs are compared, as for `fastmim pretrain`."""
    source: Annotated[Literal["mae", "simmim", "fastmim"] | None, tyro.conf.arg(name="from")] = None
    """Code that the released checkpoint in --encoder is from; --out gets an encoder.safetensors."""
    model: str | None = None
    """With --from: timm name of the checkpoint's backbone.
    Without: the package.module:factory that the encoder's file names, which allows its import."""
    model_kwargs: dict[str, Any] = field(default_factory=dict)
    """With --from: arguments of the backbone, as JSON; FastMIM's ViTs need heads: '{"num_heads": 6}'."""
    overwrite: bool = False
    """Replace an earlier export in --out."""
    trust_code: bool = False
    """Import and call any factory (package.module:function) that the encoder's file names."""


def run(arguments: list[str]) -> int:
    """Run `fastmim export` and return its exit code."""
    command = parse(ExportCommand, arguments, "fastmim export", ExportCommand())
    check_given(command, {"encoder": "give a run's folder or a file", "out": "give a folder to write"})
    if command.source is not None:
        if command.model is None:
            raise UsageError("model is missing: with --from, give timm's name of the checkpoint's backbone")
        from fastmim.weights.released import import_released
        from fastmim.weights.spec import WEIGHTS

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
        raise UsageError("model and model_kwargs go with --from only: the encoder names its model")
    check_export(command.out, command.format, command.overwrite)
    check_data(command.data)
    if command.part == "model":
        if command.format != "onnx" or command.image_size is not None:
            raise UsageError("part = model goes with --format onnx, at the image size of the run")
        from fastmim.downstream.export_model import export_model
        from fastmim.weights.model_file import read_model_description

        _, described = read_model_description(command.encoder)
        images = _images(command, described.image_size, described.in_chans, described.mean, described.std)
        exported = export_model(
            command.encoder, command.out, images, command.overwrite, command.model, command.trust_code
        )
    else:
        from fastmim.export.export import export_encoder
        from fastmim.weights.encoder_file import read_description
        from fastmim.weights.loaded import as_size

        _, metadata = read_description(command.encoder)
        size = as_size(command.image_size or metadata["image_size"])
        images = _images(command, size, metadata["in_chans"], metadata["mean"], metadata["std"])
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


def _images(
    command: ExportCommand, size: "Size", channels: int, mean: Sequence[float], std: Sequence[float]
) -> "Tensor":
    """Load a few real images as the model takes them: (B, C, H, W)."""
    import numpy as np
    import torch

    from fastmim.data.loading.eval_loader import EvalLoader
    from fastmim.data.sources.open import open_images

    source = open_images(command.data)
    indices = np.arange(min(COMPARED, len(source)))
    statistics = torch.tensor(mean), torch.tensor(std)
    views = EvalLoader(source, indices, size, channels, COMPARED, 0, *statistics)
    images, shown, broken = next(iter(views))
    if not len(shown):
        raise UsageError(f"data: {command.data}: {broken[0].name} cannot be read: {broken[0].reason}")
    return images
