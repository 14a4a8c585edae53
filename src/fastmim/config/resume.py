"""A resumed run goes on as it began: what it may change, and what it says where it would not."""

import shlex
from dataclasses import asdict
from pathlib import Path
from typing import Any

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


def check_resumed(
    run: Path, config: RunConfig, free: frozenset[str], state: dict[str, Any], facts: dict[str, Any]
) -> None:
    """Raise UsageError unless the run would go on as it began."""
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
    if state["data_digest"] != facts["data_digest"]:
        raise UsageError(f"data: {config.data} no longer holds the images that the run in {run} began with")
    if state.get("teacher_digest") != facts.get("teacher_digest"):
        raise UsageError(f"distill.teacher: these are not the weights that the run in {run} began with")


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
