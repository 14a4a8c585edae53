"""Convert a run's configuration to the settings of the engine."""

from pathlib import Path

from fastmim.config.finetune import FinetuneConfig
from fastmim.config.pretrain import PretrainConfig
from fastmim.config.resume import config_text, resume_flags
from fastmim.train.settings import KernelConfig, LoopConfig, RunSettings, StartMode


def run_settings(
    config: PretrainConfig | FinetuneConfig, start: StartMode, kernels: KernelConfig
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
