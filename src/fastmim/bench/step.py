"""Compare the training step with the device's peak and the bare backbone, and measure HOG's share of it."""

from collections.abc import Callable

import torch

from fastmim.bench.flops import flops_per_image
from fastmim.bench.harness import FIRST_STEPS, prepare
from fastmim.bench.measure import Figure, matmul_peak, medians, side_by_side
from fastmim.config import PretrainConfig
from fastmim.train.distributed import precision_of
from fastmim.train.kernels import KernelChoices, apply, own_threads, use_attention

SHARE_TARGET = 0.5  # of the peak, for a plain ViT
OVERHEAD_TARGET = 0.15  # of the bare backbone's time, for other models
SHIPPED = KernelChoices().attention
HOG_TARGET = 0.02  # of the step


def bench_step(config: PretrainConfig, rounds: int, say: Callable[[str], None]) -> list[Figure]:
    """Measure one backbone: share of the peak, speed against the bare backbone, and HOG's share.

    Args:
        config: backbone, image size and batch size.
        rounds: measured steps of each contestant.
        say: prints a line.
    """
    with own_threads():
        return _lines(config, rounds, say)


def _lines(config: PretrainConfig, rounds: int, say: Callable[[str], None]) -> list[Figure]:
    # Prepare the step, count its operations, and restore the kernels after counting.
    bench = prepare(config)
    device = bench.fabric.device
    what = f"{config.model} at {config.size[0]}x{config.size[1]}, batch {config.batch_size}"
    say(f"{what}: {precision_of(bench.fabric)}, {bench.kernels}")
    images = len(bench.images)
    flops = flops_per_image(bench.method, bench.forward)
    apply(bench.method, bench.kernels)
    model, bare = bench.method.encoder.model, bench.bare()

    def as_shipped() -> None:
        use_attention(model, SHIPPED)
        bare()
        use_attention(model, bench.kernels.attention)

    # Time the contestants, and the peak before and after them.
    contestants = {
        "step": bench.step,
        "bare": bare,
        "hog": lambda: bench.method.target(bench.images),
    }
    if bench.kernels.attention != SHIPPED:
        contestants["as shipped"] = as_shipped
    dtype = torch.bfloat16 if precision_of(bench.fabric) == "bf16-mixed" else torch.float32
    before = matmul_peak(device, dtype)
    seconds = medians(side_by_side(contestants, device, rounds, FIRST_STEPS))
    peak = max(before, matmul_peak(device, dtype))
    # Relate the times to the peak and to each other.
    share = flops * images / seconds["step"] / peak
    plain_vit = bench.method.encoder.layout == "tokens"
    overhead = seconds["step"] / seconds["bare"] - 1
    rate = {name: images / took for name, took in seconds.items()}
    # Format the lines.
    lines = [
        Figure(
            f"step of {what}",
            rate["step"],
            "images/s",
            share=share,
            limit=f"matmul peak, {peak / 1e9:.0f} GFLOP/s",
            target=f"at least {SHARE_TARGET:.0%} of the peak" if plain_vit else "",
            met=share >= SHARE_TARGET if plain_vit else None,
        ),
        Figure(
            "the same, bare backbone",
            rate["step"],
            "images/s",
            "forward and backward of timm's model, same kernels",
            rate["bare"],
            rate["step"] / rate["bare"],
            target="" if plain_vit else f"within {OVERHEAD_TARGET:.0%}",
            met=None if plain_vit else overhead <= OVERHEAD_TARGET,
        ),
        Figure(
            "HOG in that step",
            1000 * seconds["hog"] / images,
            "ms/image",
            share=seconds["hog"] / seconds["step"],
            limit="the step",
            target=f"at most {HOG_TARGET:.0%} of the step",
            met=seconds["hog"] <= HOG_TARGET * seconds["step"],
        ),
    ]
    if "as shipped" in rate:
        lines.append(
            Figure(
                "the same, bare backbone as shipped",
                rate["step"],
                "images/s",
                "forward and backward of timm's model, its own choice of kernels",
                rate["as shipped"],
                rate["step"] / rate["as shipped"],
            )
        )
    return lines
