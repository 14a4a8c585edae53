"""Export an encoder to other libraries; each export is read back as a user would and compared."""

import contextlib
import io
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import safetensors
import safetensors.torch
import timm
import torch
from timm.models import save_for_hf
from torch import Tensor, nn

from fastmim.encoders.registry import is_known
from fastmim.errors import RunError, UsageError
from fastmim.export.model_card import model_card
from fastmim.export.new_folder import new_folder
from fastmim.export.onnx_file import ONNX, write_onnx
from fastmim.export.torchvision import as_torchvision, load_torchvision
from fastmim.export.usage import Format, check_export
from fastmim.system.documents import read_json
from fastmim.system.size import Size
from fastmim.weights.encoder_file import read_description
from fastmim.weights.load import load

Outputs = Callable[[Tensor], Sequence[Tensor]]

TOLERANCE = 1e-5  # largest difference of the outputs, relative to the largest |output|

# Kept from timm's pretrained_cfg. Name, licence and papers in it are those of timm's weights.
CFG_KEYS = {
    *("input_size", "fixed_input_size", "interpolation", "crop_pct", "crop_mode", "mean", "std"),
    *("num_classes", "first_conv", "classifier"),
}


class Exported(NamedTuple):
    """Files of an export, and their agreement with the encoder."""

    folder: Path
    files: list[str]
    difference: float
    """Largest |difference| from the encoder's output; of several outputs, of the one that differs most."""


class _Outputs(nn.Module):
    """Map images to [logits], or to [pooled features, features before pooling] if the model can."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        headless = not getattr(model, "num_classes", 0)
        self.split = headless and hasattr(model, "forward_features") and hasattr(model, "forward_head")
        self.names = ["output", "features"] if self.split else ["output"]

    def forward(self, images: Tensor) -> list[Tensor]:
        if not self.split:
            return [self.model(images)]
        features = self.model.forward_features(images)  # type: ignore[operator]
        return [self.model.forward_head(features), features]  # type: ignore[operator]


def export_encoder(
    encoder: str | Path,
    out: str | Path,
    format: Format,
    image_size: int | Size | None = None,
    images: Tensor | None = None,
    overwrite: bool = False,
    model: str | None = None,
    trust_code: bool = False,
) -> Exported:
    """Export an encoder, with a model card, to a new folder.

    Args:
        encoder: a run's folder or an encoder.safetensors, with or without a classifier.
        out: the folder; it is created only if the export succeeds.
        image_size: pixels, a side or (height, width). Default: that of the encoder.
        images: normalised images (B, C, H, W) to compare outputs on. Default: two images of noise.
        overwrite: replace an earlier export in ``out``.
        model: the factory that the encoder's file names, which is not imported otherwise.
        trust_code: import and call any factory that the file names.

    Raises:
        UsageError: the format does not support this model, a package is missing, or ``out`` is not free.
        RunError: the outputs differ by more than 1e-5 of the largest, or the files cannot be written.
    """
    folder = check_export(out, format, overwrite)
    _, metadata = read_description(encoder)
    name = metadata["model"]
    if format in ("timm", "huggingface") and not is_known(name):
        raise UsageError(f"format {format} takes timm's models only, not {name}; format onnx takes any model")
    kwargs = metadata["kwargs"]  # without blocks that pre-training left out
    loaded = load(encoder, image_size, model, changes=kwargs, trust_code=trust_code)
    module = loaded.model.eval()
    channels, height, width = module.pretrained_cfg["input_size"]  # type: ignore[index]
    shape = (channels, height, width)
    if images is not None and tuple(images.shape[1:]) != shape:
        raise UsageError(f"images of shape {tuple(images.shape)} must be (B, {channels}, {height}, {width})")
    sample = torch.randn(2, *shape, generator=torch.Generator().manual_seed(0)) if images is None else images
    with torch.inference_mode():
        expected = _Outputs(module)(sample)
    with new_folder(folder) as part:
        read_back = _write(format, module, metadata, part, (height, width), sample)
        with torch.inference_mode():
            difference, largest = _compare(expected, read_back(sample), folder, format)
        found = f"{len(sample)} {'images of noise' if images is None else 'real images'}, the outputs differ "
        found += f"by at most {difference:.1e} (largest |output|: {largest:.3g})"
        card = model_card(format, metadata, (height, width), encoder, folder.name, expected[0], found)
        (part / "README.md").write_text(card, encoding="utf-8")
        files = sorted(file.name for file in part.iterdir())
    return Exported(folder, files, difference)


def _write(
    format: Format, model: nn.Module, metadata: dict[str, Any], folder: Path, size: Size, images: Tensor
) -> Outputs:
    """Write the model to the folder, and load it from there as a user would."""
    if format == "onnx":
        traced = _Outputs(model).eval()
        return write_onnx(traced, traced.names, metadata["model"], folder / ONNX, images)
    if format == "torchvision":
        rebuilt, config = as_torchvision(model, metadata["model"], size)
        config["pretrained_cfg"] = {k: v for k, v in _cfg(model).items() if k in CFG_KEYS}
        safetensors.torch.save_file(rebuilt.state_dict(), folder / "model.safetensors")
        (folder / "config.json").write_text(json.dumps(config, indent=2))
        loaded = load_torchvision(folder).eval()
        return lambda batch: [loaded(batch)]
    _write_timm(model, folder, size, metadata.get("classes"))
    if format == "timm":
        return _Outputs(timm.create_model(f"local-dir:{folder}", pretrained=True).eval())
    return _read_huggingface(folder, bool(getattr(model, "num_classes", 0)))


def _cfg(model: nn.Module) -> dict[str, Any]:
    return dict(model.pretrained_cfg)  # type: ignore[arg-type]


def _write_timm(model: nn.Module, folder: Path, size: Size, classes: list[str] | None) -> None:
    labels = {"label_names": classes} if classes and model.num_classes == len(classes) else {}
    data_config = {"img_size": size}
    save_for_hf(model, str(folder), labels, safe_serialization=True, data_config=data_config)
    file = folder / "config.json"
    config = read_json(file)
    config["pretrained_cfg"] = {k: v for k, v in config["pretrained_cfg"].items() if k in CFG_KEYS}
    config["model_args"].pop("num_classes", None)  # also at the top level, where transformers reads it
    file.write_text(json.dumps(config, indent=2))


def _read_huggingface(folder: Path, classifier: bool) -> Outputs:
    from transformers import AutoImageProcessor, AutoModel, AutoModelForImageClassification

    with contextlib.redirect_stderr(io.StringIO()):  # hides progress bars
        loaded = (AutoModelForImageClassification if classifier else AutoModel).from_pretrained(folder).eval()
        AutoImageProcessor.from_pretrained(folder)  # type: ignore[no-untyped-call]

    def outputs(images: Tensor) -> list[Tensor]:
        given = loaded(images)
        return [given.logits] if classifier else [given.pooler_output, given.last_hidden_state]

    return outputs


def _compare(
    expected: Sequence[Tensor], found: Sequence[Tensor], folder: Path, format: str
) -> tuple[float, float]:
    """Return the largest |difference| and |output| of the output that differs most relative to its size."""
    pairs = []
    for ours, theirs in zip(expected, found, strict=False):  # torchvision's models have one output
        if ours.shape != theirs.shape:
            raise RunError(f"{folder}: {format} returns shape {tuple(theirs.shape)}, not {tuple(ours.shape)}")
        pairs.append((float((ours - theirs).abs().max()), float(ours.abs().max())))
    difference, largest = max(pairs, key=lambda pair: pair[0] / (pair[1] or 1.0))
    if not difference <= TOLERANCE * largest:  # true also for NaN
        raise RunError(
            f"read back from format {format}, the outputs differ by {difference:.2g} (largest |output|: "
            f"{largest:.2g}); nothing was written to {folder}"
        )
    return difference, largest
