"""Cost of a step of each method, relative to FastMIM on the same backbone (paper: figure 2, table 3)."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch

from fastmim.bench.growth import measure_cost
from fastmim.bench.measure import matmul_peak
from fastmim.config import PretrainConfig
from fastmim.recipes import recipe
from fastmim.recipes.methods import SWIN_B
from fastmim.recipes.tables import paper_figures
from fastmim.train.device import choose_precision


class Row(NamedTuple):
    """A recipe to measure."""

    recipe: str
    hours: tuple[str, str] | None = None
    """Table and row in paper.yaml with the GPU hours."""
    model: str | None = None
    """Backbone, if it is not the recipe's."""

    @property
    def name(self) -> str:
        return f"{self.recipe} with {self.model}" if self.model else self.recipe


# For each backbone, FastMIM comes first.
ROWS = (
    Row("table3/fastmim-vit-b-800", ("table3", "fastmim_vit_b_800")),
    Row("fastmim-drop/vit-b"),
    Row("mae/vit-b-8b512d", ("table3", "mae_vit_b")),
    Row("mae/vit-b-1b512d"),
    Row("simmim/vit-b", ("table3", "simmim_vit_b")),
    Row("maskfeat/vit-b", ("table3", "maskfeat_vit_b")),
    Row("lomar/vit-b", ("table3", "lomar_vit_b")),
    Row("table3/fastmim-vit-l-800", ("table3", "fastmim_vit_l_800")),
    Row("fastmim-drop/vit-l"),
    Row("mae/vit-l-8b512d", ("table3", "mae_vit_l")),
    Row("table3/fastmim-swin-b-400", ("table3", "fastmim_swin_b_400")),
    Row("simmim/swin-b", ("table3", "simmim_swin_b")),
    Row("greenmim/swin-b", ("table3", "greenmim_swin_b")),
    Row("ummae/swin-t", model=SWIN_B),
    Row("table3/fastmim-swin-l-400", ("table3", "fastmim_swin_l_400")),
    Row("simmim/swin-l", ("table3", "simmim_swin_l")),
    Row("greenmim/swin-l", ("table3", "greenmim_swin_l")),
    Row("table4/convnextv2-b", ("table4", "convnextv2_b")),
    Row("fcmae/convnextv2-b", ("table4", "fcmae_convnextv2_b_100")),
)
HOURS = 2  # index in a row of either table: GPU hours per epoch
LEAST_SHARE = 0.8  # of FastMIM's share of the peak; a lower share may mean a slow implementation


@dataclass(frozen=True)
class MethodCost:
    """Cost of a step of one method."""

    recipe: str
    method: str
    model: str
    size: int
    images_per_second: float
    times_fastmim: float
    """Seconds per image, relative to FastMIM on the same backbone."""
    multiply_adds: float
    """Multiply-adds per image, relative to FastMIM."""
    share: float
    """Share of the device's peak."""
    memory_mib: float
    paper: float | None
    """GPU hours per epoch in the paper, relative to FastMIM."""

    def diligent(self, fastmim: "MethodCost") -> bool:
        """Return whether the method uses the device nearly as well as FastMIM does."""
        return self.share >= LEAST_SHARE * fastmim.share


def bench_methods(
    told: Callable[[PretrainConfig], PretrainConfig], device: torch.device, say: Callable[[str], None]
) -> list[MethodCost]:
    """Measure a step of each row, all with the same batch size, each in a separate process.

    The peak is measured before each row, and the highest value counts: if another program slowed one peak
    measurement down, the share of that row would be too high.

    Args:
        told: sets the batch, precision and kernels of this benchmark in a recipe's configuration.
        say: prints a line per row.
    """
    figures = paper_figures()
    found: list[MethodCost] = []
    rates: list[float] = []  # floating-point operations a second
    highest = 0.0
    first: dict[str, tuple[float, float, Any]] = {}
    precision = told(PretrainConfig()).precision
    fast = precision == "bf16-mixed" or (precision == "auto" and choose_precision(device) == "bf16-mixed")
    for row in ROWS:
        # Measure the peak and the row's step.
        stored = recipe(row.recipe).config
        assert isinstance(stored, PretrainConfig)
        config = told(replace(stored, epochs=None, steps=1, model=row.model or stored.model))
        highest = max(highest, matmul_peak(device, torch.bfloat16 if fast else torch.float32))
        cost = measure_cost(config)
        speed, flops = cost.images_per_second, cost.flops_per_image
        # Relate speed and operations to FastMIM on the same backbone.
        of_paper = figures[row.hours[0]][row.hours[1]][HOURS] if row.hours else None
        reference_speed, reference_flops, reference_hours = first.setdefault(
            config.model, (speed, flops, of_paper)
        )
        rates.append(speed * flops)
        found.append(
            MethodCost(
                row.name,
                config.method,
                config.model,
                config.size[0],
                speed,
                reference_speed / speed,
                flops / reference_flops,
                rates[-1] / highest,
                cost.memory_mib,
                of_paper / reference_hours if of_paper else None,
            )
        )
        say(f"{row.name}: {speed:.1f} images/s, {found[-1].share:.0%} of the peak, {cost.memory_mib:.0f} MiB")
    # Relate every rate to the highest peak.
    return [replace(cost, share=rate / highest) for cost, rate in zip(found, rates, strict=True)]
