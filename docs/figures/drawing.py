"""What the figures of the methods are made of: pictures on a sheet, with boxes and arrows between them.

A picture is (height, width, 3), 0..1, in the sheet's own pixels, `SCALE` of them for a pixel of an image: so
small images are small in every figure. Squares of grids are ``side`` pixels of the sheet wide.
"""

import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import Circle, FancyBboxPatch
from numpy.typing import NDArray
from PIL import Image

from fastmim.report.samples import FAINT, INK

SCALE = 0.75  # of 224 pixels 168, of a patch of 16 pixels 12, of a HOG cell of 8 pixels 6
WIDTH, MARGIN, DPI = 980, 8, 100
TEXT, LINE = 8.4, 15  # points, pixels
HEADING, CAPTION = 26, 5  # pixels from a row's top to its pictures, from a picture to its caption
LETTER = 7.3  # pixels, of a heading
FAINTEST = 0.16  # how much is left of what does not count

Picture = NDArray[np.float64]
Bools = NDArray[np.bool_]


def shrink(values: NDArray[Any]) -> Picture:
    """(H, W) or (H, W, 3) in pixels of an image -> in those of the sheet; edges of patches stay sharp."""
    bytes_ = Image.fromarray(np.round(np.asarray(values, np.float64) * 255).astype(np.uint8))
    size = (round(bytes_.width * SCALE), round(bytes_.height * SCALE))
    return np.asarray(bytes_.resize(size, Image.Resampling.BOX), np.float64) / 255


def enlarge(grid: NDArray[Any], side: int) -> NDArray[Any]:
    """Each entry of a grid (h, w, ...) as a square."""
    return np.asarray(grid.repeat(side, axis=0).repeat(side, axis=1))


def fade(picture: Picture, kept: Bools) -> Picture:
    """Almost white where it is not kept."""
    return np.where(kept[..., None], picture, 1 - FAINTEST * (1 - picture))


def paint(picture: Picture, where: Bools, color: str) -> Picture:
    """The colour where it is asked for."""
    return np.where(where[..., None], np.asarray(to_rgb(color)), picture)


def cut(picture: Picture, side: int) -> Picture:
    """White gaps around squares."""
    gaps = [np.arange(length) % side == side - 1 for length in picture.shape[:2]]
    return paint(picture, gaps[0][:, None] | gaps[1], "white")


def squares(which: Bools, side: int, colors: tuple[str, str]) -> Picture:
    """A grid of squares: the first colour where ``which`` is true, else the second."""
    plain = np.ones((*which.shape, 3))
    return cut(enlarge(paint(paint(plain, which, colors[0]), ~which, colors[1]), side), side)


def frame(picture: Picture, color: str, thickness: int = 2) -> Picture:
    """The picture with a border inside its edges."""
    inner = np.zeros(picture.shape[:2], bool)
    inner[thickness:-thickness, thickness:-thickness] = True
    return paint(picture, ~inner, color)


def outline(labels: NDArray[np.int64], thickness: int = 2) -> Bools:
    """The border of each region of equal labels, inside of it; label 0 has none."""
    padded = np.pad(labels, thickness)
    border = np.zeros(labels.shape, bool)
    for axis in (0, 1):
        for step in range(-thickness, thickness + 1):
            moved = np.roll(padded, step, axis)[thickness:-thickness, thickness:-thickness]
            border |= moved != labels
    return border & (labels > 0)


def beside(pictures: Sequence[Picture], columns: int, gap: int = 8) -> Picture:
    """Pictures of one size in rows of ``columns``, white between them."""
    (height, width, _), rows = pictures[0].shape, -(-len(pictures) // columns)
    whole = np.ones((rows * (height + gap) - gap, columns * (width + gap) - gap, 3))
    for number, picture in enumerate(pictures):
        top, left = (height + gap) * (number // columns), (width + gap) * (number % columns)
        whole[top : top + height, left : left + width] = picture
    return whole


@dataclass(frozen=True)
class Panel:
    """A picture with what stands above and below it."""

    picture: Picture
    heading: str
    caption: str
    overlay: Callable[[Axes], None] | None = None
    """Draws on axes that cover the picture."""
    around: int = 0
    """Side of a dashed square around it, for comparison; 0: none."""

    @property
    def width(self) -> int:
        return max(self.picture.shape[1], self.around)

    @property
    def height(self) -> int:
        return max(self.picture.shape[0], self.around)

    @property
    def room(self) -> float:
        """What it takes of a row, with its text."""
        return max(self.width, LETTER * len(self.heading))


@dataclass(frozen=True)
class Box:
    """A network."""

    name: str
    label: str
    kept: bool = False
    """Whether it is what is trained for, or is thrown away."""
    width: int = 84
    height: int = 60

    @property
    def room(self) -> float:
        return self.width


class Place(NamedTuple):
    """Where something stands on the sheet, in pixels from its upper left corner."""

    left: float
    top: float
    width: float
    height: float

    @property
    def right(self) -> float:
        return self.left + self.width

    @property
    def bottom(self) -> float:
        return self.top + self.height


class Sheet:
    """A white sheet of ``WIDTH`` x ``height`` pixels."""

    def __init__(self, height: int) -> None:
        self.height = height
        self.figure = Figure(figsize=(WIDTH / DPI, height / DPI), dpi=DPI)
        self.axes = self._axes(Place(0, 0, WIDTH, height))
        self.axes.set_xlim(0, WIDTH)
        self.axes.set_ylim(height, 0)
        self.axes.set_axis_off()

    def _axes(self, place: Place) -> Axes:
        left, bottom = place.left / WIDTH, 1 - place.bottom / self.height
        return self.figure.add_axes((left, bottom, place.width / WIDTH, place.height / self.height))

    def row(self, items: Sequence[Panel | Box], top: float) -> None:
        """Items from left to right, with equal room between them, an arrow from each to the next."""
        middle = top + HEADING + max(item.height for item in items) / 2
        spare = (WIDTH - 2 * MARGIN - sum(item.room for item in items)) / (len(items) - 1)
        left, before = float(MARGIN), None
        for item in items:
            start = round(left + (item.room - item.width) / 2)
            place = Place(start, round(middle - item.height / 2), item.width, item.height)
            if isinstance(item, Box):
                self.box(item, place)
            else:
                self.panel(item, place, top)
            if before is not None:
                self.arrow((before.right + 4, middle), (place.left - 4, middle))
            left, before = left + item.room + spare, place

    def panel(self, panel: Panel, place: Place, top: float) -> None:
        """A picture in the middle of its place, its heading at the row's top."""
        height, width, _ = panel.picture.shape
        left, upper = place.left + (place.width - width) // 2, place.top + (place.height - height) // 2
        extent = (left, left + width, upper + height, upper)
        self.axes.imshow(panel.picture, extent=extent, interpolation="nearest", aspect="auto")
        middle = place.left + place.width / 2
        self.text(middle, top + HEADING - 9, panel.heading, weight="bold")
        self.lines(middle, place.bottom + CAPTION, panel.caption)
        if panel.overlay:
            panel.overlay(self._axes(Place(left, upper, width, height)))
        if panel.around:
            self.rectangle(place, fill=False, ec=FAINT, ls=(0, (4, 3)))

    def box(self, box: Box, place: Place) -> None:
        """Dark if it is kept, else with a dashed border."""
        style = {"fc": INK, "ec": INK} if box.kept else {"fc": "white", "ec": INK, "ls": (0, (4, 2))}
        self.rectangle(place, **style)
        middle, color = place.left + place.width / 2, "white" if box.kept else INK
        top = place.top + place.height / 2 - LINE * (1 + len(box.label.splitlines())) / 2
        self.lines(middle, top, box.name, color=color, weight="bold")
        self.lines(middle, top + LINE, box.label, color=color, size=TEXT - 0.6)

    def rectangle(self, place: Place, **style: Any) -> None:
        """With slightly rounded corners."""
        self.axes.add_patch(
            FancyBboxPatch(
                (place.left, place.top),
                place.width,
                place.height,
                boxstyle="round,pad=0,rounding_size=4",
                **{"lw": 1.1} | style,
            )
        )

    def arrow(self, start: tuple[float, float], end: tuple[float, float], style: str = "-|>") -> None:
        """In ink."""
        arrow = {"arrowstyle": style, "color": INK, "lw": 1.2, "shrinkA": 0, "shrinkB": 0}
        self.axes.annotate("", end, start, arrowprops=arrow | {"mutation_scale": 11})

    def line(self, points: Sequence[tuple[float, float]]) -> None:
        """From point to point."""
        self.axes.plot(*zip(*points, strict=True), color=INK, lw=1.2)

    def circle(self, middle: tuple[float, float], text: str) -> None:
        """A small sum, over what was drawn before."""
        self.axes.add_patch(Circle(middle, 10, fc="white", ec=INK, lw=1.1, zorder=3))
        self.text(middle[0], middle[1] + 4, text, zorder=4)

    def lines(self, x: float, top: float, text: str, **style: Any) -> None:
        """Each line centred, the baselines at equal distances."""
        for number, line in enumerate(text.splitlines()):
            self.text(x, top + LINE * number + 0.75 * LINE, line, **style)

    def text(self, x: float, y: float, text: str, **style: Any) -> None:
        """Centred, on a baseline."""
        self.axes.text(x, y, text, **{"color": INK, "size": TEXT, "ha": "center"} | style)

    def save(self, file: Path) -> None:
        """As PNG of 256 colours, which takes a third of the bytes."""
        picture = io.BytesIO()
        self.figure.savefig(picture, format="png", dpi=DPI, facecolor="white")
        image = Image.open(picture).convert("RGB")
        image.quantize(256, kmeans=2, dither=Image.Dither.NONE).save(file, optimize=True)
