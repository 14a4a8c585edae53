"""Run the parts of `fastmim bench`, all of them or a single one."""

import shlex
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import replace
from datetime import date
from pathlib import Path

from rich.console import Console

from fastmim.bench.dense import bench_dense
from fastmim.bench.document import Results, as_table, methods_table, read_results, write_page
from fastmim.bench.growth import bench_growth, bench_memory, blocks_of
from fastmim.bench.hog import bench_hog
from fastmim.bench.loader import bench_loader, bench_pack_quality
from fastmim.bench.measure import machine
from fastmim.bench.methods import MethodCost, bench_methods
from fastmim.bench.settings import (
    DENSE_BATCH,
    DENSE_LEAST,
    DENSE_ROUNDS,
    HOG_ROUNDS,
    LOADER_ROUNDS,
    NOT_IN_ALL,
    PARTS,
    SHARED_BATCH,
    SMALL,
    SMALL_SIZE,
    BenchConfig,
)
from fastmim.bench.shared import bench_shared
from fastmim.bench.step import bench_step
from fastmim.config import PretrainConfig
from fastmim.encoders.registry import check_model_name
from fastmim.errors import RunError, UsageError
from fastmim.pretraining import build_method
from fastmim.train.distributed import build_fabric


def run_bench(command: BenchConfig, arguments: list[str]) -> None:
    """Run the chosen part and write the figures, or write a page from the figures of an earlier run.

    Args:
        arguments: command-line arguments that ``command`` was parsed from.
    """
    line = shlex.join(["fastmim", "bench", *arguments])
    if command.part == "document":
        for file in write_page(read_results(command.file), Path(command.page), line):
            print(f"{file}: written")
        return
    for model in (command.model, *command.models):
        check_model_name(model)
    device = build_fabric(command.accelerator, 1, 1, command.precision).device
    results = Results(machine(device), line, date.today().isoformat())
    if command.part == "all":
        for part in PARTS:
            if part != NOT_IN_ALL:
                _take_in(_apart(part, arguments), results)
                results.write(command.file)
    else:
        _show_part(command.part, command, results)
    results.write(command.file)
    print(f"{command.file}: the figures")


def _apart(part: str, arguments: list[str]) -> Results:
    """Run a part in a separate process: memory left by one part would change the speed of the next."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "part.json"
        words = [part, *(word for word in arguments if word != "all"), "--json", str(file)]
        child = subprocess.run([sys.executable, "-m", "fastmim", "bench", *words])
        if child.returncode:
            raise RunError(f"bench {part} ended with exit code {child.returncode}")
        return read_results(file)


def _take_in(part: Results, results: Results) -> None:
    results.figures |= part.figures
    results.notes |= part.notes
    results.growth |= part.growth


def _show_part(part: str, command: BenchConfig, results: Results) -> None:
    """Run one part, and print its lines and tables."""
    console = Console(highlight=False)
    notes = results.notes.setdefault(part, [])

    def say(line: str) -> None:
        notes.append(line)
        console.print(line, soft_wrap=True)

    _run_part(part, command, results, say)
    if results.methods:
        console.print(methods_table(results.methods))
    if part in results.figures:
        console.print(as_table(part, results.figures[part]))


def _run_part(part: str, command: BenchConfig, results: Results, say: Callable[[str], None]) -> None:
    """Run one part and add its figures to ``results``."""
    if part == "step":
        lines = results.figures.setdefault(part, [])
        for model in command.models:
            lines += bench_step(command.config(model, command.batch_size), command.rounds, say)
    elif part == "hog":
        device = build_fabric(command.accelerator, 1, 1, command.precision).device
        results.figures[part] = bench_hog(
            device, command.batch_size, command.image_size, HOG_ROUNDS * command.rounds
        )
    elif part == "loader":
        results.figures[part] = bench_loader(command.data, LOADER_ROUNDS * command.rounds, say)
    elif part == "packs":
        results.figures[part] = bench_pack_quality(command.data, say)
    elif part == "memory":
        results.figures[part] = bench_memory(command.config(command.model, command.batch_size), say)
    elif part == "shared":
        small = replace(command.config(SMALL, command.batch_size), image_size=SMALL_SIZE)
        large = command.config(command.model, SHARED_BATCH)
        results.figures[part] = bench_shared([small, large], command.rounds, say)
    elif part == "dense":
        device = build_fabric(command.accelerator, 1, 1, command.precision).device
        size, rounds = max(command.image_size, DENSE_LEAST), DENSE_ROUNDS * command.rounds
        results.figures[part] = bench_dense(size, DENSE_BATCH, rounds, device, say)
    elif part == "methods":
        results.methods = _methods(command, say)
    elif part == "growth":
        blocks = blocks_of(build_method(command.config(command.model, 2)).encoder.model)
        if blocks is None:
            raise UsageError(
                f"model = {command.model} is not a single sequence of blocks; growth needs a plain ViT"
            )
        results.growth = bench_growth(
            command.config(command.model, command.growth_batch),
            blocks,
            say,
        )


def _methods(command: BenchConfig, say: Callable[[str], None]) -> list[MethodCost]:
    """Measure a step of each method."""
    batch = command.methods_batch
    say(f"batch {batch}, the recipes' own sizes; each in a separate process")

    def told(stored: PretrainConfig) -> PretrainConfig:
        return replace(
            stored,
            batch_size=batch,
            accelerator=command.accelerator,
            precision=command.precision,
            kernels=command.kernels,
        )

    device = build_fabric(command.accelerator, 1, 1, command.precision).device
    return bench_methods(told, device, say)
