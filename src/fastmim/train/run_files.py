"""The files of a run's folder: their names, and which of them are there. This module needs no torch."""

import difflib
import itertools
import os
import re
from pathlib import Path

CONFIG = "config.yaml"
METRICS = "metrics.jsonl"
SAMPLES = "samples.png"
REPORT = "report.html"
LAST = "last.ckpt"
OLDER = "checkpoints"
STARTING = ".starting"  # lies in a run's folder until its first checkpoint is written
NEAR_RUNS = 3  # that are suggested
SEEN_FOLDERS = 10_000  # of which those are
_OLDER_NAME = re.compile(r"step-(\d+)\.ckpt")


def holds_run(run: Path) -> bool:
    """Whether the files of a run lie in ``run``, whole or damaged."""
    files = [run / CONFIG, run / LAST, *older_checkpoints(run)]
    if (metrics := run / METRICS).is_file():  # an empty one is what a run leaves that was killed as it began
        return metrics.stat().st_size > 0 or any(map(os.path.lexists, files))
    return any(map(os.path.lexists, [*files, metrics]))


def older_checkpoints(run: Path) -> list[Path]:
    """The checkpoints before the last one, newest first."""
    found = {file: _OLDER_NAME.fullmatch(file.name) for file in (run / OLDER).glob("step-*.ckpt")}
    steps = {file: int(match[1]) for file, match in found.items() if match}
    return sorted(steps, key=lambda file: steps[file], reverse=True)


def near_runs(run: Path) -> str:
    """In words, which runs have a name that is much like that of ``run``."""
    run = Path(os.path.abspath(run))
    parents = [run.parent, *_alike(run.parent)]
    nearby = (near for parent in parents for near in (parent / run.name, *_alike(parent / run.name)))
    found = list(filter(holds_run, nearby))
    return f", but in {' and '.join(map(str, found[:NEAR_RUNS]))}" if found else ""


def _alike(folder: Path) -> list[Path]:
    """The folders beside ``folder`` with the names most like its own."""
    try:
        with os.scandir(folder.parent) as entries:
            names = [entry.name for entry in itertools.islice(entries, SEEN_FOLDERS) if entry.is_dir()]
    except OSError:
        return []
    close = difflib.get_close_matches(folder.name, names, n=NEAR_RUNS, cutoff=0.5)
    return [folder.with_name(name) for name in close if name != folder.name]
