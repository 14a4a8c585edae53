"""The figure of distillation: a method, its teacher, and which of their layers are compared."""

from collections.abc import Sequence
from dataclasses import replace

from drawing import HEADING, LINE, TEXT, Box, Panel, Place, Sheet, shrink
from shown import BLUE, decoded_panel, decoder_box, show, target_panel
from timm.data import IMAGENET_DEFAULT_MEAN as IMAGENET_MEAN
from timm.data import IMAGENET_DEFAULT_STD as IMAGENET_STD

from fastmim.methods.settings import DistillConfig
from fastmim.pretraining.teacher import load_teacher
from fastmim.recipes.backbones import narrow_kwargs
from fastmim.recipes.methods import VIT_L, defaults_of
from fastmim.report.samples import FAINT, INK, to_display
from fastmim.weights.spec import SCRATCH

SIGMA = "\u03c3"


def distillation() -> Sheet:
    """The student's row above, the teacher's below, and what is compared between them."""
    shown = show(defaults_of("fastmim"), shallow=False)
    told = DistillConfig(SCRATCH, VIT_L, narrow_kwargs(VIT_L))
    crop = replace(shown.config.crop, mean=IMAGENET_MEAN, std=IMAGENET_STD)
    teacher_setup = load_teacher(told, crop, shown.config.seed, shown.method, shown.config.size)
    assert teacher_setup is not None
    masked = shrink(to_display(shown.samples.masked[0], shown.samples))
    compared, upper, lower = 150, 74, 214  # middles of three rows
    sheet = Sheet(280)

    def panel(panel: Panel, middle: tuple[int, int]) -> None:
        place = Place(middle[0] - panel.width // 2, middle[1] - panel.height // 2, panel.width, panel.height)
        sheet.panel(panel, place, place.top - HEADING)

    panel(Panel(masked, "the masked image", ""), (70, upper))
    panel(replace(decoded_panel(shown), caption=""), (638, upper))
    panel(target_panel(shown, ""), (891, upper))
    panel(Panel(shown.photo, "the whole image", ""), (70, lower))
    sheet.box(decoder_box(shown), Place(710, upper - 22, 84, 44))
    student, teacher = Place(142, upper - 26, 420, 52), Place(142, lower - 36, 420, 72)
    blocks, more = len(shown.method.encoder.layers), len(teacher_setup.teacher.encoder.layers)
    ours = network(sheet, student, blocks, [pair.student for pair in teacher_setup.pairs], (INK, "#4b5563"))
    theirs = network(sheet, teacher, more, [pair.teacher for pair in teacher_setup.pairs], (FAINT, "#eceef1"))
    sheet.text(352, student.top - 9, f"encoder, the student: {blocks} blocks", weight="bold")
    sheet.text(352, teacher.bottom + 17, f"a larger, frozen teacher: {more} blocks", weight="bold")
    for start, end in ((122, 138), (566, 586), (690, 706), (798, 839)):
        sheet.arrow((start, upper), (end, upper))
    sheet.arrow((122, lower), (138, lower))

    for x, other in zip(ours, theirs, strict=True):
        sheet.arrow((x, student.bottom + 1), (x, compared - 12))
        sheet.arrow((other, teacher.top - 1), (x, compared + 12))
        sheet.circle((x, compared - 31), SIGMA)
    sheet.line([(ours[0], compared), (660, compared)])
    sheet.arrow((660, compared), (672, compared))
    for x in ours:
        sheet.circle((x, compared), "L1")
    sheet.box(Box("loss", "HOG's + the sum of L1"), Place(676, compared - 22, 152, 44))
    sheet.line([(891, upper + 52), (891, compared), (840, compared)])
    sheet.arrow((844, compared), (832, compared))
    words = (
        f"{SIGMA}: a 1x1 convolution, to the teacher's width",
        "L1: mean absolute difference, at all places",
        "numbers: blocks that are compared, from 0",
    )
    for number, line in enumerate(words):
        sheet.text(600, lower - 10 + LINE * number, line, ha="left")
    return sheet


def network(
    sheet: Sheet, place: Place, blocks: int, chosen: Sequence[int], colors: tuple[str, str]
) -> list[float]:
    """Its blocks, those that are chosen in blue; how far from the left the middles of these are."""
    sheet.rectangle(place, fc=colors[0], ec=colors[0])
    each = place.width / blocks
    for block in range(blocks):
        inner = Place(place.left + each * block + 2.5, place.top + 6, each - 5, place.height - 12)
        sheet.rectangle(inner, fc=BLUE if block in chosen else colors[1], ec="none")
    for block in chosen:
        middle = place.left + each * (block + 0.5)
        sheet.text(middle, place.top + place.height / 2 + 4, str(block), color="white", size=TEXT - 1)
    return [place.left + each * (block + 0.5) for block in chosen]
