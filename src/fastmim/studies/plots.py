"""Plot scores against the number of labels, and the heat map of a grid search."""

import io
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from matplotlib.figure import Figure

from fastmim.studies.comparison import Payoff
from fastmim.system.files import write_atomically


def write_payoff_plot(file: Path, found: Payoff) -> None:
    """Plot the score of each arm against the number of labelled images, with 95 % intervals."""
    figure = Figure(figsize=(6.4, 4.2), layout="constrained")
    axes = figure.add_subplot()
    for arm in dict.fromkeys(cell.arm for cell in found.cells):
        cells = sorted((c for c in found.cells if c.arm == arm), key=lambda cell: cell.training_images)
        axes.errorbar(
            [cell.training_images for cell in cells],
            [cell.mean for cell in cells],
            yerr=[
                [cell.mean - cell.bounds[0] for cell in cells],
                [cell.bounds[1] - cell.mean for cell in cells],
            ],
            marker="o",
            capsize=4,
            label=arm,
        )
    images = sorted({cell.training_images for cell in found.cells})
    axes.set_xscale("log")
    axes.set_xticks(images, [str(count) for count in images])
    axes.minorticks_off()
    axes.set_xlabel("labelled images")
    axes.set_ylabel(f"{found.metric.name}, %, with 95 % intervals")
    axes.grid(alpha=0.3)
    axes.legend()
    _save(file, figure)


def write_heat_map(file: Path, accuracy: Mapping[tuple[float, float], float]) -> None:
    """Plot top-1 by base learning rate and layer decay (paper: figure 6).

    Args:
        accuracy: (base_lr, layer_decay) -> per cent.
    """
    rates = sorted({rate for rate, _ in accuracy})
    decays = sorted({decay for _, decay in accuracy})
    values = [[accuracy.get((rate, decay), math.nan) for rate in rates] for decay in decays]
    figure = Figure(figsize=(1.6 + 0.95 * len(rates), 1.4 + 0.7 * len(decays)), layout="constrained")
    axes = figure.add_subplot()
    image = axes.imshow(values, origin="lower", cmap="viridis", aspect="auto")
    _label(axes, values)
    axes.set_xticks(range(len(rates)), [f"{rate:.3g}" for rate in rates])
    axes.set_yticks(range(len(decays)), [f"{decay:.3g}" for decay in decays])
    axes.set_xlabel("base learning rate")
    axes.set_ylabel("layer decay")
    figure.colorbar(image, label="top-1 accuracy, %")
    _save(file, figure)


def _label(axes: object, values: Sequence[Sequence[float]]) -> None:
    known = [value for row in values for value in row if not math.isnan(value)]
    middle = (min(known) + max(known)) / 2 if known else 0.0
    for row, line in enumerate(values):
        for column, value in enumerate(line):
            if not math.isnan(value):
                colour = "black" if value > middle else "white"
                axes.text(column, row, f"{value:.1f}", ha="center", va="center", color=colour)  # type: ignore[attr-defined]


def _save(file: Path, figure: Figure) -> None:
    picture = io.BytesIO()
    figure.savefig(picture, format="png", dpi=150)
    write_atomically(file, lambda opened: opened.write(picture.getvalue()))
