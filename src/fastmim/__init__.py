"""Self-supervised pre-training of any vision backbone by masked image modelling at low resolution."""

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"
__all__ = [
    "FastmimError",
    "RunError",
    "UsageError",
    "export_encoder",
    "finetune",
    "hog",
    "load_encoder",
    "load_image",
    "pack",
    "pretrain",
    "probe",
]

if TYPE_CHECKING:
    from fastmim.data.pack import pack
    from fastmim.data.views import load_image
    from fastmim.errors import FastmimError, RunError, UsageError
    from fastmim.histograms import hog
    from fastmim.pretraining import pretrain
    from fastmim.transfer.classify import finetune
    from fastmim.transfer.export import export_encoder
    from fastmim.transfer.probe import probe
    from fastmim.transfer.weights import load_encoder

# `import fastmim` is instant: what needs torch is imported when it is first asked for.
_HOMES = {
    "FastmimError": "fastmim.errors",
    "RunError": "fastmim.errors",
    "UsageError": "fastmim.errors",
    "export_encoder": "fastmim.transfer.export",
    "finetune": "fastmim.transfer.classify",
    "hog": "fastmim.histograms",
    "load_encoder": "fastmim.transfer.weights",
    "load_image": "fastmim.data.views",
    "pack": "fastmim.data.pack",
    "pretrain": "fastmim.pretraining",
    "probe": "fastmim.transfer.probe",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'fastmim' has no attribute {name!r}")
    import importlib

    value = getattr(importlib.import_module(_HOMES[name]), name)
    globals()[name] = value
    return value
