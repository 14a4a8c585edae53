"""Check settings and folders before torch, a model or images are loaded."""

from collections.abc import Mapping
from pathlib import Path

from fastmim.config.pretrain import PretrainConfig
from fastmim.config.run import RunConfig
from fastmim.config.transfer import DenseConfig, TransferConfig
from fastmim.data.sources.files import check_data
from fastmim.errors import UsageError
from fastmim.train.run_dir import check_start
from fastmim.train.settings import NEW_RUN, StartMode
from fastmim.weights.spec import check_not_in, check_source

FOR_PRETRAINING = {
    "data": "give a folder of images, or demo:photos to try it",
    "out": "give an output folder for the run",
}
FOR_TRANSFER = {
    "finetune": "give a folder with train/ and val/, or demo:digits to try it",
    "detect": "give a folder in the layout of COCO, Pascal VOC or YOLO",
    "segment": "give a folder with images/ and masks/, each with train/ and val/",
}
"""Verb -> what data it needs."""


def check_pretraining(config: PretrainConfig, start: StartMode = NEW_RUN) -> bool:
    """Check the settings and folders of pre-training, as far as this is possible without model and images.

    Returns:
        Whether the run in ``config.out`` is resumed.

    Raises:
        UsageError: a setting is missing, a path does not exist, or the run may not start in its folder.
    """
    resumes = _check(config, FOR_PRETRAINING, start)
    if not resumes:
        check_source(config.weights, "weights")
        check_not_in(config.out, config.weights, "weights")
    if config.distill.teacher:
        check_source(config.distill.teacher, "distill.teacher")
    return resumes


def check_transfer(config: TransferConfig, start: StartMode = NEW_RUN) -> bool:
    """Check the settings and folders of a task on a backbone; see `check_pretraining`."""
    hints = {
        "encoder": "give a run's folder, an encoder.safetensors, timm:NAME or none",
        "data": FOR_TRANSFER[config.verb],
        "out": "give an output folder for the run",
    }
    if isinstance(config, DenseConfig) and config.data and not Path(config.data).expanduser().is_dir():
        raise UsageError(f"data: {config.data} is not a folder; {FOR_TRANSFER[config.verb]}")
    resumes = _check(config, hints, start)
    check_source(config.encoder, "encoder")
    check_not_in(config.out, config.encoder, "encoder")
    run = Path(config.out).expanduser()
    if run.resolve() == Path(config.data).expanduser().resolve():
        raise UsageError(f"out: {run} is the folder of the data; give another folder")
    return resumes


def check_given(config: object, hints: Mapping[str, str]) -> None:
    """Raise UsageError if a required setting is empty; ``hints`` say how to set each."""
    for name, hint in hints.items():
        if not getattr(config, name):
            raise UsageError(f"{name} is missing: {hint}")


def _check(config: RunConfig, hints: Mapping[str, str], start: StartMode) -> bool:
    resumes = bool(config.out) and check_start(Path(config.out).expanduser(), start.resume, start.overwrite)
    check_given(config, hints)
    check_data(config.data)
    return resumes
