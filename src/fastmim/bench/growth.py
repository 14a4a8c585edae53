"""Measure memory and time of a step against batch, resolution and depth, each in a separate process."""

import gc
import statistics
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch

from fastmim.bench.flops import flops_per_image
from fastmim.bench.harness import FIRST_STEPS, prepare
from fastmim.bench.measure import Figure, timed
from fastmim.config import PretrainConfig
from fastmim.system.hardware import peak_bytes
from fastmim.system.processes import process_pool

BATCHES = (8, 16, 32, 64)
SIZES = (64, 96, 128, 160, 192, 224)
DEPTH_SHARES = (0.25, 0.5, 0.75, 1.0)  # of the backbone's blocks
FULL_SIZE = 224  # pixels; pre-training size of the methods that the paper compares with
MEMORY_TARGET = 0.5  # below the memory of the same step at full size
STEPS = 2  # measured


@dataclass(frozen=True)
class Cost:
    """Cost of a step. Memory is the growth of the process since before the model was built."""

    batch: int
    size: int
    depth: int | None
    """Blocks; None: all blocks, or a depth per stage."""
    images_per_second: float
    memory_mib: float
    flops_per_image: float = 0.0


def measure_cost(config: PretrainConfig) -> Cost:
    """Measure time and memory of a step of ``config`` in a new process."""
    with process_pool(1, "spawn") as pool:
        seconds, memory, flops = pool.submit(_cost_here, config).result()
    depth = config.encoder.depth
    return Cost(
        config.batch_size,
        config.size[0],
        depth if isinstance(depth, int) else None,
        config.batch_size / seconds,
        memory / 2**20,
        flops,
    )


def _cost_here(config: PretrainConfig) -> tuple[float, int, float]:
    on_gpu = torch.cuda.is_available() and config.accelerator in ("auto", "cuda")
    before = 0 if on_gpu else peak_bytes(torch.device("cpu"))
    bench = prepare(config)
    for _ in range(FIRST_STEPS):
        bench.step()
    gc.collect()
    seconds = [timed(bench.step, bench.fabric.device) for _ in range(STEPS)]
    memory = peak_bytes(bench.fabric.device) - before
    return statistics.median(seconds), memory, flops_per_image(bench.method, bench.forward)


def bench_memory(config: PretrainConfig, say: Callable[[str], None]) -> list[Figure]:
    """Compare the peak memory of a step with that at full size and with activation checkpointing."""
    low = measure_cost(config)
    say(f"{low.size}x{low.size}: {low.memory_mib:.0f} MiB")
    full = measure_cost(replace(config, image_size=FULL_SIZE))
    say(f"{full.size}x{full.size}: {full.memory_mib:.0f} MiB")
    again = measure_cost(replace(config, activation_checkpointing=True))
    say(f"{low.size}x{low.size}, activations recomputed: {again.memory_mib:.0f} MiB")
    what = f"step of {config.model}, batch {config.batch_size}"
    saved = 1 - low.memory_mib / full.memory_mib
    return [
        Figure(
            f"memory of a {what}, at {low.size}x{low.size}",
            low.memory_mib,
            "MiB",
            f"at {FULL_SIZE}x{FULL_SIZE}, all patches",
            full.memory_mib,
            full.memory_mib / low.memory_mib,
            target=f"at least {MEMORY_TARGET:.0%} below",
            met=saved >= MEMORY_TARGET,
        ),
        Figure(
            "the same with --activation-checkpointing",
            again.memory_mib,
            "MiB",
            "without",
            low.memory_mib,
            low.memory_mib / again.memory_mib,
        ),
        Figure(
            "images/s with --activation-checkpointing",
            again.images_per_second,
            "images/s",
            "without",
            low.images_per_second,
            again.images_per_second / low.images_per_second,
        ),
    ]


def bench_growth(config: PretrainConfig, blocks: int, say: Callable[[str], None]) -> dict[str, list[Cost]]:
    """Measure costs against batch, size and depth, varying one at a time.

    Args:
        config: values of the quantities that do not vary.
        blocks: number of blocks of the backbone.
    """
    depths = sorted({max(1, round(share * blocks)) for share in DEPTH_SHARES})
    return {
        "batch": list(_costs((replace(config, batch_size=batch) for batch in BATCHES), say)),
        "size": list(_costs((replace(config, image_size=size) for size in SIZES), say)),
        "depth": list(_costs((_at_depth(config, depth) for depth in depths), say)),
    }


def _at_depth(config: PretrainConfig, depth: int) -> PretrainConfig:
    return replace(config, encoder=replace(config.encoder, depth=depth))


def _costs(configs: Iterable[PretrainConfig], say: Callable[[str], None]) -> Iterator[Cost]:
    for config in configs:
        cost = measure_cost(config)
        depth = f", {cost.depth} blocks" if cost.depth else ""
        say(
            f"batch {cost.batch}, {cost.size}x{cost.size}{depth}: "
            f"{cost.images_per_second:.1f} images/s, {cost.memory_mib:.0f} MiB"
        )
        yield cost


def blocks_of(model: Any) -> int | None:
    """Return the number of blocks of a plain ViT; None for models without a single sequence of blocks."""
    blocks = getattr(model, "blocks", None)
    return len(blocks) if blocks is not None and hasattr(blocks, "__len__") else None
