"""The runs that are compared: pre-trained, from scratch, from scratch for longer."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

from fastmim.config import FinetuneConfig, TransferConfig, build, read_yaml
from fastmim.config.transfer import DenseConfig
from fastmim.studies.settings import FROM_SCRATCH, LONGER, OURS
from fastmim.train.run_files import CONFIG
from fastmim.weights.load import load
from fastmim.weights.spec import SCRATCH

# Arguments that a classifier adds to those of a backbone; they are equal for all arms.
NOT_THE_BACKBONE = ("img_size", "num_classes", "global_pool", "drop_path_rate", "in_chans")
C = TypeVar("C", bound=TransferConfig)


@dataclass(frozen=True)
class Job:
    """One run of the comparison."""

    arm: str
    share: str
    config: TransferConfig


def scratch_of(config: C, scratch_lr: float | None = None) -> C:
    """Return the settings for training the same backbone from scratch, with its windows, mean and std."""
    # A dense task pads images to what the backbone needs; both arms start at the size of the weights.
    size = None if isinstance(config, DenseConfig) else config.size
    left_out = NOT_THE_BACKBONE if size else tuple({*NOT_THE_BACKBONE} - {"img_size"})
    loaded = load(config.encoder, size, config.model, config.model_kwargs)
    optim = config.optim
    return replace(
        _with_statistics(config, tuple(loaded.metadata["mean"]), tuple(loaded.metadata["std"])),
        encoder=SCRATCH,
        model=loaded.name,
        model_kwargs={name: value for name, value in loaded.kwargs.items() if name not in left_out},
        in_chans=loaded.metadata["in_chans"],
        layer_decay=1.0,
        optim=replace(optim, base_lr=scratch_lr or optim.base_lr),
    )


def _with_statistics(config: C, mean: tuple[float, ...], std: tuple[float, ...]) -> C:
    """Return ``config`` with the statistics of the channels, if it has none."""
    if isinstance(config, FinetuneConfig) and config.crop.mean is None:
        return replace(config, crop=replace(config.crop, mean=mean, std=std))
    if isinstance(config, DenseConfig) and config.jitter.mean is None:
        return replace(config, jitter=replace(config.jitter, mean=mean, std=std))
    return config


def arms_of(starts: list[TransferConfig], share: str, seed: int, out: Path) -> Iterator[Job]:
    """Yield the runs of all arms with one share of the labels and one seed.

    Args:
        starts: settings from scratch, of the judged encoder, and of others to compare with.
        out: folder of the comparison.
    """
    scratch, ours, *others = starts
    for arm, start in {FROM_SCRATCH: scratch, OURS: ours, **{o.encoder: o for o in others}}.items():
        run = out / "runs" / _folder(arm, share, seed)
        yield Job(arm, share, replace(start, labels=share, seed=seed, out=str(run)))


def _folder(arm: str, share: str, seed: int) -> str:
    name = "".join(letter if letter.isalnum() or letter in "._-" else "-" for letter in arm)
    return f"{name.strip('-.')}_{share.replace('/', '-per-')}_seed{seed}"


def longer(job: Job, pretraining: float, own: float, scratch: TransferConfig, out: Path) -> Job:
    """Return a job from scratch that trains for as long as pre-training and this job took together."""
    factor = (pretraining + own) / own
    seed = job.config.seed
    run = out / "runs" / _folder("scratch-longer", job.share, seed)
    config = replace(scratch, labels=job.share, seed=seed, out=str(run))
    if config.steps:
        config = replace(config, steps=round(config.steps * factor))
    else:
        config = replace(config, epochs=round(config.epochs * factor, 2))
    return Job(LONGER, job.share, _as_stored(config))


def _as_stored(config: C) -> C:
    """Keep the length of a run that was already started, since measured times vary between measurements."""
    file = Path(config.out) / CONFIG
    if not file.is_file():
        return config
    stored = build(type(config), read_yaml(file), f"{file}: ")
    return replace(config, epochs=stored.epochs, steps=stored.steps)
