"""What can be wrong with a run before anything heavy is loaded: settings that are missing, and folders."""

from collections.abc import Mapping
from pathlib import Path

from fastmim.config.finetune import FinetuneConfig
from fastmim.config.pretrain import PretrainConfig
from fastmim.config.run import RunConfig
from fastmim.data.sources.files import check_data
from fastmim.errors import UsageError
from fastmim.train.run_dir import check_start
from fastmim.train.settings import NEW_RUN, StartMode

FOR_PRETRAINING = {
    "data": "give a folder of images, or demo:photos to try it",
    "out": "give a folder that the run is written to",
}
FOR_FINETUNING = {
    "encoder": "give a run's folder, an encoder.safetensors, timm:NAME or none",
    "data": "give a folder with train/ and val/, or demo:digits to try it",
    "out": "give a folder that the run is written to",
}


def check_pretraining(config: PretrainConfig, start: StartMode = NEW_RUN) -> bool:
    """Check the settings and folders of pre-training, as far as no model and no image is needed.

    Returns:
        Whether the run in ``config.out`` goes on.

    Raises:
        UsageError: something is missing, does not exist, or a run may not start there.
    """
    return _check(config, FOR_PRETRAINING, start)


def check_finetuning(config: FinetuneConfig, start: StartMode = NEW_RUN) -> bool:
    """Check the settings and folders of fine-tuning; see `check_pretraining`."""
    resumes = _check(config, FOR_FINETUNING, start)
    run = Path(config.out).expanduser()
    if run.resolve() == Path(config.data).expanduser().resolve():
        raise UsageError(f"out: {run} is where the data lies; give another folder")
    return resumes


def check_given(config: object, hints: Mapping[str, str]) -> None:
    """Raise UsageError where a setting that is needed is empty; ``hints`` say what to give."""
    for name, hint in hints.items():
        if not getattr(config, name):
            raise UsageError(f"{name} is missing: {hint}")


def _check(config: RunConfig, hints: Mapping[str, str], start: StartMode) -> bool:
    resumes = bool(config.out) and check_start(Path(config.out).expanduser(), start.resume, start.overwrite)
    check_given(config, hints)
    check_data(config.data)
    return resumes
