"""Self-supervised pre-training of any vision backbone by masked image modelling at low resolution."""

from typing import TYPE_CHECKING, Any

from fastmim._version import __version__ as __version__

__all__ = [
    "FastmimError",
    "RunError",
    "UsageError",
    "detect",
    "export_encoder",
    "finetune",
    "hog",
    "load",
    "load_encoder",
    "load_image",
    "pack",
    "pretrain",
    "probe",
    "segment",
    "wait_briefly",
]

if TYPE_CHECKING:
    from fastmim.data.loading.eval_loader import load_image
    from fastmim.data.packing.pack import pack
    from fastmim.downstream.classification.entry import finetune
    from fastmim.downstream.detection.entry import detect
    from fastmim.downstream.frozen.probe import probe
    from fastmim.downstream.load_model import load_model as load
    from fastmim.downstream.segmentation.entry import segment
    from fastmim.errors import FastmimError, RunError, UsageError
    from fastmim.export.export import export_encoder
    from fastmim.mim.hog_features import hog
    from fastmim.pretraining import pretrain
    from fastmim.system.threads import wait_briefly
    from fastmim.weights.load import load_encoder

# Modules that need torch are imported at the first access, so that `import fastmim` is instant.
_HOMES = {
    "FastmimError": "fastmim.errors",
    "RunError": "fastmim.errors",
    "UsageError": "fastmim.errors",
    "detect": "fastmim.downstream.detection.entry",
    "export_encoder": "fastmim.export.export",
    "finetune": "fastmim.downstream.classification.entry",
    "hog": "fastmim.mim.hog_features",
    "load": "fastmim.downstream.load_model:load_model",
    "load_encoder": "fastmim.weights.load",
    "load_image": "fastmim.data.loading.eval_loader",
    "pack": "fastmim.data.packing.pack",
    "pretrain": "fastmim.pretraining",
    "probe": "fastmim.downstream.frozen.probe",
    "segment": "fastmim.downstream.segmentation.entry",
    "wait_briefly": "fastmim.system.threads",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'fastmim' has no attribute {name!r}")
    import importlib

    module, _, attribute = _HOMES[name].partition(":")
    value = getattr(importlib.import_module(module), attribute or name)
    globals()[name] = value
    return value
