"""Names of the files in a run's folder, and functions that find them. This module needs no torch."""

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
STARTING = ".starting"  # in a run's folder until its first checkpoint is written
NEAR_RUNS = 3  # suggested at most
SEEN_FOLDERS = 10_000  # entries of a folder that are compared at most
_OLDER_NAME = re.compile(r"step-(\d+)\.ckpt")


def holds_run(run: Path) -> bool:
    """Return whether ``run`` contains files of a run, complete or damaged."""
    files = [run / CONFIG, run / LAST, *older_checkpoints(run)]
    if (metrics := run / METRICS).is_file():  # empty if the run was killed as it began
        return metrics.stat().st_size > 0 or any(map(os.path.lexists, files))
    return any(map(os.path.lexists, [*files, metrics]))


def older_checkpoints(run: Path) -> list[Path]:
    """Return the checkpoints before the last one, newest first."""
    found = {file: _OLDER_NAME.fullmatch(file.name) for file in (run / OLDER).glob("step-*.ckpt")}
    steps = {file: int(match[1]) for file, match in found.items() if match}
    return sorted(steps, key=lambda file: steps[file], reverse=True)


def near_runs(run: Path) -> str:
    """Return a hint that names runs with a path similar to ``run``; empty if there are none."""
    run = Path(os.path.abspath(run))  # noqa: PTH100 - keeps links, drops '..'
    parents = [run.parent, *_alike(run.parent)]
    nearby = (near for parent in parents for near in (parent / run.name, *_alike(parent / run.name)))
    found = list(filter(holds_run, nearby))
    return f", but in {' and '.join(map(str, found[:NEAR_RUNS]))}" if found else ""


def _alike(folder: Path) -> list[Path]:
    """Return the siblings of ``folder`` with the most similar names."""
    try:
        with os.scandir(folder.parent) as entries:
            names = [entry.name for entry in itertools.islice(entries, SEEN_FOLDERS) if entry.is_dir()]
    except OSError:
        return []
    close = difflib.get_close_matches(folder.name, names, n=NEAR_RUNS, cutoff=0.5)
    return [folder.with_name(name) for name in close if name != folder.name]
