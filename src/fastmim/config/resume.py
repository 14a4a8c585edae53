"""A resumed run goes on as it began: what it may change, and what it says where it would not."""

import shlex
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

from fastmim._version import __version__
from fastmim.config.run import RunConfig
from fastmim.config.settings import build, differences, flat, to_yaml
from fastmim.encoders.names import is_custom
from fastmim.errors import UsageError
from fastmim.system.documents import read_yaml
from fastmim.train.run_files import CONFIG

# Neither the weights nor anything that is drawn depends on these.
ALWAYS_FREE = frozenset(
    {
        "data",
        "out",
        "workers",
        "devices",
        "num_nodes",
        "activation_checkpointing",
        "max_unreadable",
        "checkpoint_every_minutes",
        "checkpoint_every_steps",
        "keep_checkpoints",
    }
)

FAULTS = {
    "data_digest": ("data", "{} no longer holds the images"),
    "encoder_digest": ("encoder", "{} no longer holds the weights"),
    "teacher_digest": ("distill.teacher", "these are not the weights"),
}
"""Of each digest of a run's identity: the setting that leads to it, and how it may fail."""


def check_resumed(
    config: RunConfig, free: frozenset[str], before: Mapping[str, str], now: Mapping[str, str]
) -> None:
    """Raise UsageError unless the run in ``config.out`` would go on as it began.

    Args:
        free: settings that may change.
        before, now: the run's identity when it began, and as it would be resumed.
    """
    run = Path(config.out)
    stored = build(type(config), read_yaml(run / CONFIG), f"{run / CONFIG}: ")
    changed = differences(stored, config)
    # Arguments of the model follow from other settings, which are what a person gave.
    for name in sorted(changed, key=lambda name: name == "model_kwargs"):
        old, new = (",".join(map(str, v)) if name == "stages" else repr(v) for v in changed[name])
        if name not in free:
            raise UsageError(
                f"{name} = {new} differs from the {old} that the run in {run} began with; "
                "leave it out to resume, or start a new run"
            )
    for name in before.keys() | now.keys():
        if before.get(name) != now.get(name):
            setting, fault = FAULTS[name]
            fault = fault.format(flat(asdict(config))[setting])
            raise UsageError(f"{setting}: {fault} that the run in {run} began with")


def resume_flags(config: RunConfig) -> str:
    """What goes on with a run. Its factories are named again: none is imported because a file says so."""
    settings = flat(asdict(config))
    named = [(name, settings.get(name)) for name in ("model", "distill.model")]
    words = ["--resume", "--out", config.out]
    for name, model in named:
        if model is not None and is_custom(model):
            words += [f"--{name}", model]
    return shlex.join(words)


def config_text(verb: str, config: RunConfig) -> str:
    """What config.yaml holds."""
    head = f"# fastmim {__version__}; `fastmim {verb} --config FILE --out FOLDER` repeats this run.\n"
    return head + to_yaml(config)
