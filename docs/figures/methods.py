"""The figures of docs/methods.md, one a method, from left to right: what becomes of an image.

    python docs/figures/methods.py [--out docs/figures]

Masks, places and targets are those that the code itself draws and computes, with each method's own defaults
(`shown`). Photo: Chelsea by Stefan van der Walt, CC0, from scikit-image.
"""

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from distillation import distillation
from drawing import (
    CAPTION,
    HEADING,
    LINE,
    MARGIN,
    SCALE,
    Bools,
    Box,
    Panel,
    Sheet,
    beside,
    cut,
    enlarge,
    fade,
    frame,
    outline,
    paint,
    shrink,
    squares,
)
from matplotlib.axes import Axes
from shown import (
    BLUE,
    DECODED,
    ENCODED,
    SCORED,
    compact,
    decoded_panel,
    decoder_box,
    encoder_box,
    first_windows,
    groups_as_bars,
    image_panel,
    show,
    target_panel,
    visible_patches,
    windows_outlined,
)

from fastmim.config import PretrainConfig
from fastmim.recipes import recipe
from fastmim.recipes.methods import defaults_of
from fastmim.report.samples import ACCENT, INK, to_display

SEVERAL = ("#7c3aed", "#0f766e", "#db2777", "#a16207")  # windows


def pipeline(items: Sequence[Panel | Box]) -> Sheet:
    """One row, on a sheet that it fills."""
    panels = [item for item in items if isinstance(item, Panel)]
    tallest = max(panel.height for panel in panels)
    below = max((tallest + panel.height) / 2 + LINE * len(panel.caption.splitlines()) for panel in panels)
    sheet = Sheet(round(HEADING + below + CAPTION + MARGIN))
    sheet.row(items, 0)
    return sheet


def share(hidden: Bools) -> str:
    return f"{hidden.sum()} of {hidden.size}"


def fastmim() -> Sheet:
    shown = show(defaults_of("fastmim"))
    masked = shrink(to_display(shown.samples.masked[0], shown.samples))
    items = [
        image_panel(shown, shown.photo, ""),
        Panel(masked, ENCODED, f"all pixels; {share(shown.hidden)} blocks\nhave one learned colour"),
        encoder_box("any\nbackbone"),
        decoded_panel(shown),
        decoder_box(shown),
        target_panel(shown, "HOG of the\nmasked blocks"),
    ]
    return pipeline(items)


def simmim() -> Sheet:
    return tokens_masked("simmim", "squares of 32 pixels", "pixels of the\nmasked squares")


def maskfeat() -> Sheet:
    return tokens_masked("maskfeat", "patches, in rectangles,", "HOG of the\nmasked patches")


def tokens_masked(method: str, blocks: str, target: str) -> Sheet:
    """SimMIM and MaskFeat."""
    shown = show(defaults_of(method))
    masked = paint(shown.photo, enlarge(shown.hidden, shown.block), ACCENT)
    token = round(shown.method.encoder.embedding.stride * SCALE)
    caption = f"{share(shown.hidden)} {blocks}\nbecame mask tokens (orange)\nbehind the patch embedding"
    items = [
        image_panel(shown, shown.photo, "all of it goes through\nthe patch embedding"),
        Panel(cut(masked, token), ENCODED, caption),
        encoder_box("with a patch\nembedding"),
        decoded_panel(shown),
        decoder_box(shown),
        target_panel(shown, target),
    ]
    return pipeline(items)


def mae() -> Sheet:
    return dropped(defaults_of("mae"), "normalised pixels\nof what was left out")


def fastmim_drop() -> Sheet:
    config = recipe("fastmim-drop/vit-b").config
    assert isinstance(config, PretrainConfig)
    return dropped(config, "HOG of what\nwas left out")


def dropped(config: PretrainConfig, target: str) -> Sheet:
    """MAE, with any target."""
    shown = show(config)
    patches = visible_patches(shown)
    packed = beside(patches, columns=round(len(patches) ** 0.5), gap=0)
    items = [
        image_panel(shown, shown.visible, f"{share(shown.hidden)} patches\nare left out"),
        Panel(cut(packed, shown.block), ENCODED, f"the other {len(patches)},\nnothing else"),
        encoder_box("plain ViT"),
        decoded_panel(shown),
        decoder_box(shown),
        target_panel(shown, target),
    ]
    return pipeline(items)


def lomar() -> Sheet:
    shown = show(defaults_of("lomar"), seed=35)  # of few seeds, whose windows overlap little
    outlined, seen, features, wanted = shown.photo, [], [], []
    for (within, hidden), color in zip(shown.mask[0].numpy(), SEVERAL, strict=True):
        outlined = paint(outlined, outline(enlarge(within, shown.block).astype(int), 3), color)
        rows, columns = (slice(one.min(), one.max() + 1) for one in np.nonzero(enlarge(within, shown.block)))
        masked = enlarge(hidden, shown.block)[rows, columns]
        seen.append(frame(cut(paint(shown.photo[rows, columns], masked, ACCENT), shown.block), color))
        features.append(frame(squares(shown.have, shown.block, (BLUE, ACCENT)), color))
        wanted.append(frame(fade(shown.target[rows, columns], masked), color))
    side, count = shown.config.lomar.window, shown.mask[0, 0, 1].sum()
    each = f"each window for itself;\n{count} of its {side**2} patches\nare mask tokens (orange)"
    items = [
        image_panel(shown, outlined, f"{len(seen)} windows of {side}x{side} patches;\nthey may overlap"),
        Panel(beside(seen, 2), ENCODED, each),
        encoder_box("plain ViT"),
        Panel(beside(features, 2), DECODED, "a feature in every place\nof each window"),
        decoder_box(shown),
        Panel(beside(wanted, 2), SCORED, "normalised pixels of\neach window's masked\npatches"),
    ]
    return pipeline(items)


def ummae() -> Sheet:
    shown = show(defaults_of("ummae"))
    picture, again = compact(shown)
    sampled, masked = (enlarge(part, shown.block) for part in (shown.have, shown.mask[0, 1].numpy()))
    kept = cut(paint(fade(shown.photo, sampled), masked, ACCENT), 2 * shown.block)
    moved = cut(paint(picture, enlarge(again, shown.block), ACCENT), shown.block)
    items = [
        image_panel(shown, kept, "of each 2x2 patches\none is kept"),
        Panel(moved, ENCODED, f"the kept ones moved\ntogether; {share(again)} are\nmask tokens (orange)"),
        encoder_box("any, also\npyramids"),
        decoded_panel(shown),
        decoder_box(shown),
        target_panel(shown, "normalised pixels\nof what was not kept"),
    ]
    return pipeline(items)


def greenmim() -> Sheet:
    shown = show(defaults_of("greenmim"))
    groups, size = first_windows(shown).members_GS.shape
    blocks = f"{len(shown.places[0])} of {shown.hidden.size} blocks"
    kept = f"{blocks} are kept, the\nsame in a batch, and cut by\nSwin's windows"
    items = [
        image_panel(shown, windows_outlined(shown), kept),
        Panel(
            groups_as_bars(shown),
            ENCODED,
            f"their windows in {groups} groups\nof up to {size} tokens (a colour\neach); a piece is a window",
        ),
        encoder_box("Swin"),
        decoded_panel(shown),
        decoder_box(shown),
        target_panel(shown, "normalised pixels\nof what was left out"),
    ]
    return pipeline(items)


def fcmae() -> Sheet:
    shown = show(defaults_of("fcmae"))

    def zeros(axes: Axes) -> None:
        axes.set_axis_off()
        for row, column in zip(*np.nonzero(shown.hidden), strict=True):
            x, y = (column + 0.5) / shown.grid[1], 1 - (row + 0.5) / shown.grid[0]
            axes.text(x, y, "0", color=INK, alpha=0.6, size=8, ha="center", va="center_baseline")

    alone = paint(shown.photo, enlarge(shown.hidden, shown.block), "white")
    others = f"the other {len(shown.places[0])}; convolutions\nsee zeros between them,\nin every layer"
    items = [
        image_panel(shown, shown.visible, f"{share(shown.hidden)} blocks\nare left out"),
        Panel(alone, ENCODED, others, zeros),
        encoder_box("ConvNeXt"),
        decoded_panel(shown),
        decoder_box(shown, "ConvNeXt\n"),
        target_panel(shown, "normalised pixels\nof what was left out"),
    ]
    return pipeline(items)


FIGURES: dict[str, Callable[[], Sheet]] = {
    "fastmim": fastmim,
    "simmim": simmim,
    "maskfeat": maskfeat,
    "mae": mae,
    "fastmim-drop": fastmim_drop,
    "lomar": lomar,
    "ummae": ummae,
    "greenmim": greenmim,
    "fcmae": fcmae,
    "distillation": distillation,
}


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Draw the figures of docs/methods.md.")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent, help="folder for the PNGs")
    out: Path = parser.parse_args(arguments).out
    out.mkdir(parents=True, exist_ok=True)
    for name, draw in FIGURES.items():
        draw().save(out / f"{name}.png")


if __name__ == "__main__":
    main()
