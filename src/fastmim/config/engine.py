"""Convert a run's configuration to the settings of the engine, and start its processes."""

from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from fastmim.config.pretrain import PretrainConfig
from fastmim.config.resume import config_text, resume_flags
from fastmim.config.run import RunConfig
from fastmim.config.transfer import TransferConfig
from fastmim.train.settings import KernelConfig, LoopConfig, RunSettings, StartMode

if TYPE_CHECKING:
    from collections.abc import Callable

    from lightning_fabric import Fabric

R = TypeVar("R")


def run_settings(
    config: PretrainConfig | TransferConfig, start: StartMode, kernels: KernelConfig
) -> RunSettings:
    """Return the engine's part of a resolved configuration.

    Args:
        kernels: the configured kernels, limited to those that the task supports.
    """
    return RunSettings(
        out=Path(config.out),
        config_text=config_text(config.verb, config),
        resume_flags=resume_flags(config),
        start=start,
        loop=LoopConfig(
            seed=config.seed,
            log_every_steps=config.log_every_steps,
            checkpoint_every_steps=config.checkpoint_every_steps,
            checkpoint_every_minutes=config.checkpoint_every_minutes,
            keep_checkpoints=config.keep_checkpoints,
            evaluations=config.evaluations,
        ),
        optim=config.optim,
        schedule=config.schedule,
        kernels=kernels,
        deterministic=config.deterministic,
    )


def launch(config: RunConfig, resumes: bool, worker: "Callable[[Fabric], R]") -> R:
    """Call ``worker`` in every process of a run, and return the first one's result.

    A resumed run has the precision of its checkpoint, whatever is faster on this device.

    Args:
        worker: trains; picklable if the run has several processes.
    """
    from fastmim.train.checkpoint_folder import newest_checkpoint
    from fastmim.train.distributed import run_everywhere

    point = newest_checkpoint(Path(config.out)) if resumes else None
    precision = point.checkpoint.choices.precision if point else config.precision
    return run_everywhere(config.accelerator, config.devices, config.num_nodes, precision, worker)
