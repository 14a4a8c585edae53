"""`fastmim bench`."""

import shlex
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import date
from pathlib import Path
from typing import Annotated, Literal, get_args

import tyro
from rich.console import Console

from fastmim.bench.document import Results, as_table, methods_table, read_results, write_page
from fastmim.bench.growth import bench_growth, bench_memory, blocks_of
from fastmim.bench.hog import bench_hog
from fastmim.bench.loader import bench_loader, bench_pack_quality
from fastmim.bench.measure import machine
from fastmim.bench.methods import bench_methods
from fastmim.bench.shared import bench_shared
from fastmim.bench.step import bench_step
from fastmim.cli.flags import check_place, parse
from fastmim.config import PretrainConfig
from fastmim.encoders.registry import check_model_name
from fastmim.errors import RunError, UsageError
from fastmim.pretraining import build_method
from fastmim.train.device import Precision
from fastmim.train.distributed import build_fabric
from fastmim.train.kernels import KernelConfig

Part = Literal["step", "hog", "loader", "packs", "memory", "shared", "growth", "methods", "all", "document"]
PARTS: tuple[str, ...] = get_args(Part)[:-2]
NOT_IN_ALL = "methods"  # takes as long as all the rest
STEP_MODELS = ("vit_base_patch16_224", "swin_base_patch4_window7_224", "convnext_base")
HOG_ROUNDS = 5  # for each round of steps: it is short
LOADER_ROUNDS = 2
SMALL, SMALL_SIZE = "vit_tiny_patch16_224", 64
SHARED_BATCH = 8  # of the large model: a step must be short beside a turn


@dataclass(frozen=True)
class BenchCommand:
    """How fast it is on this machine, as ratios measured side by side in one run.

    step: the training step beside the device's peak and the bare backbone; hog: beside its plain form;
    loader: beside torchvision's pipeline; packs: how near their crops are to those of the files, by short
    side; memory: beside the same step at 224; shared: a small and a large model's step on a CPU, quiet and
    beside a busy process; growth: time and memory against batch, resolution and depth;
    all: all of these; methods: a step of each method beside FastMIM's (paper: figure 2 and table 3);
    document: a page from the JSON of an earlier run.
    """

    part: Annotated[Part, tyro.conf.Positional, tyro.conf.arg(metavar="PART")]
    json: str | None = None
    """File that the figures are written to; for document: read from. Default: bench.json, and for a single
    part bench-PART.json."""
    page: str = "performance.md"
    """For document: file to write; the plot goes beside it."""
    models: tuple[str, ...] = STEP_MODELS
    """Backbones of step."""
    model: str = STEP_MODELS[0]
    """Backbone of memory and growth, and the large one of shared."""
    image_size: int = 128
    """Side of the images, in pixels."""
    batch_size: int = 64
    """Images a step."""
    growth_batch: int = 32
    """Images a step while resolution or depth grows."""
    methods_batch: int = 16
    """Images a step of each method; models, sizes and settings are the recipes' own."""
    data: str | None = None
    """JPEGs of loader and packs: a folder or tar. Default: made of the embedded photos, and said so."""
    rounds: int = 3
    """Turns of each contestant that count, in step, hog and loader."""
    accelerator: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    """Kind of device."""
    precision: Precision = "auto"
    """As for `fastmim pretrain`."""
    kernels: KernelConfig = field(default_factory=KernelConfig)

    def __post_init__(self) -> None:
        for name in ("image_size", "batch_size", "growth_batch", "methods_batch", "rounds"):
            if getattr(self, name) < 1:
                raise UsageError(f"{name} = {getattr(self, name)} must be at least 1")

    @property
    def file(self) -> Path:
        whole = self.part in ("all", "document")
        return Path(self.json or ("bench.json" if whole else f"bench-{self.part}.json"))

    def config(self, model: str, batch_size: int) -> PretrainConfig:
        return PretrainConfig(
            model=model,
            image_size=self.image_size,
            batch_size=batch_size,
            accelerator=self.accelerator,
            precision=self.precision,
            kernels=self.kernels,
        )


def run(arguments: list[str]) -> int:
    command = parse(BenchCommand, arguments, "fastmim bench", BenchCommand("all"))
    line = shlex.join(["fastmim", "bench", *arguments])
    if command.part == "document":
        for file in write_page(read_results(command.file), Path(command.page), line):
            print(f"{file}: written")
        return 0
    check_place("json", command.file)
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
    return 0


def _apart(part: str, arguments: list[str]) -> Results:
    """A part in a process of its own: what one left in memory would change the speed of the next."""
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


def _show_part(part: str, command: BenchCommand, results: Results) -> None:
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


def _run_part(part: str, command: BenchCommand, results: Results, say: Callable[[str], None]) -> None:
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
    elif part == "methods":
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
        results.methods = bench_methods(told, device, say)
    elif part == "growth":
        blocks = blocks_of(build_method(command.config(command.model, 2)).encoder.model)
        if blocks is None:
            raise UsageError(f"model = {command.model} is no single row of blocks; growth needs a plain ViT")
        results.growth = bench_growth(
            command.config(command.model, command.growth_batch),
            blocks,
            say,
        )
