"""Write samples.png and report.html, and word the verdict of a run."""

from dataclasses import dataclass
from pathlib import Path

from fastmim.pretraining.evaluation import HeldOut
from fastmim.report.page import render_page
from fastmim.report.samples import Samples, draw_losses, draw_samples
from fastmim.system.files import write_atomically
from fastmim.train.logs import read_metrics
from fastmim.train.run_files import REPORT, SAMPLES

SAMPLE_ROWS = 6


@dataclass(frozen=True)
class Outcome:
    """Results of a run at its end."""

    steps: int
    total_steps: int
    held_out_loss: float
    trivial_loss: float
    images: int
    skipped_images: int
    on_training_images: bool
    """True if the data set has a single image, so that none could be held out."""

    @property
    def verdict(self) -> str:
        """A sentence that states whether the model beats the constant baseline."""
        gain = 1 - self.held_out_loss / self.trivial_loss if self.trivial_loss else 0.0
        where = "on the training image (there is no other)," if self.on_training_images else "held-out"
        losses = (
            f"{where} loss {self.held_out_loss:.4f} against {self.trivial_loss:.4f} of the constant baseline"
        )
        if gain > 0:
            return f"It is learning: {losses}, {gain:.1%} lower."
        return f"It has NOT learned: {losses}, {-gain:.1%} higher. Train longer, or on more images."


@dataclass(frozen=True)
class RunDescription:
    """The settings of a run, in words for its report."""

    model: str
    method: str
    facts: list[tuple[str, str]]
    """(name, value) of each line above the figures."""
    mask_size: int | None
    """Side of a masked block in pixels."""
    statistics: tuple[tuple[float, ...], tuple[float, ...]]
    """Mean and standard deviation of each channel."""
    settings: str
    """The configuration as YAML."""


def write_report(run: Path, described: RunDescription, held_out: HeldOut, outcome: Outcome) -> None:
    """Write samples.png and report.html."""
    result = held_out.reconstruct(min(SAMPLE_ROWS, len(held_out.images)))
    count = len(result.prediction)
    images, mask = held_out.images[:count], held_out.mask[:count]
    samples = Samples(
        images.cpu(),
        held_out.method.masked_images(images, mask).detach().cpu(),
        result.target.cpu(),
        result.prediction.detach().cpu(),
        (result.mask > 0).cpu(),
        held_out.method.target,
        *described.statistics,
    )
    which = "training" if outcome.on_training_images else "held-out"
    title = f"{described.method} of {described.model}, step {outcome.steps}: {which} images"
    sheet = draw_samples(samples, title)
    losses = draw_losses(read_metrics(run), outcome.trivial_loss)
    masked = (result.mask > 0).float().mean()
    page = render_page(
        f"fastmim pre-training: {described.model}",
        outcome.verdict,
        [*described.facts, ("mask", f"{masked:.0%} in blocks of {described.mask_size} pixels")],
        losses,
        sheet,
        described.settings,
    )
    write_atomically(run / SAMPLES, lambda file: file.write(sheet))
    write_atomically(run / REPORT, lambda file: file.write(page.encode()))
