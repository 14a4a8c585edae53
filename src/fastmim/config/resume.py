"""Resume a run: which settings may change, errors for the others, and the flags that resume it."""

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

# Settings that affect neither the weights nor random draws.
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
"""Name of a digest -> the setting that it depends on, and the error message if it differs."""


def check_resumed(
    config: RunConfig, free: frozenset[str], before: Mapping[str, str], now: Mapping[str, str]
) -> None:
    """Raise UsageError unless the run in ``config.out`` would continue as it started.

    Args:
        free: settings that may change.
        before, now: identity of the run when it started, and as it would be resumed.
    """
    run = Path(config.out)
    stored = build(type(config), read_yaml(run / CONFIG), f"{run / CONFIG}: ")
    changed = differences(stored, config)
    # model_kwargs come last, since they follow from other settings, which the user has given.
    for name in sorted(changed, key=lambda name: name == "model_kwargs"):
        old, new = (",".join(map(str, v)) if name == "stages" else repr(v) for v in changed[name])
        if name not in free:
            raise UsageError(
                f"{name} = {new} differs from the {old} that the run in {run} started with; "
                "leave it out to resume, or start a new run"
            )
    for name in before.keys() | now.keys():
        if before.get(name) != now.get(name):
            setting, fault = FAULTS.get(
                name, ("data", f"{{}} has another {name.replace('_', ' ')} than that")
            )
            fault = fault.format(flat(asdict(config))[setting])
            raise UsageError(f"{setting}: {fault} that the run in {run} started with")


def resume_flags(config: RunConfig) -> str:
    """Return the flags that resume a run. They repeat its factories, since no file alone causes an import."""
    settings = flat(asdict(config))
    named = [(name, settings.get(name)) for name in ("model", "distill.model")]
    words = ["--resume", "--out", config.out]
    for name, model in named:
        if model is not None and is_custom(model):
            words += [f"--{name}", model]
    return shlex.join(words)


def config_text(verb: str, config: RunConfig) -> str:
    """Return the contents of config.yaml."""
    head = f"# fastmim {__version__}; `fastmim {verb} --config FILE --out FOLDER` repeats this run.\n"
    return head + to_yaml(config)
