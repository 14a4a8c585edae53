"""The figures of docs/methods.md can be drawn, and the page shows each."""

import re
import runpy
from pathlib import Path

import pytest
from PIL import Image

from fastmim.methods.registry import METHODS

DOCS = Path(__file__).parents[1] / "docs"
NAMES = [
    "fastmim",
    "simmim",
    "maskfeat",
    "mae",
    "fastmim-drop",
    "lomar",
    "ummae",
    "greenmim",
    "fcmae",
    "distillation",
]


@pytest.mark.slow
def test_one_figure_a_method(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(DOCS / "figures")
    script = runpy.run_path(str(DOCS / "figures" / "methods.py"))
    script["main"](["--out", str(tmp_path)])
    assert {file.name for file in tmp_path.iterdir()} == {f"{name}.png" for name in NAMES}
    assert set(METHODS) <= set(NAMES), "docs/methods.md needs a section and a figure of each method"
    for file in tmp_path.iterdir():
        with Image.open(file) as image:
            assert image.format == "PNG"
            assert image.width == 980
            assert 200 <= image.height <= 300
            assert len(image.convert("RGB").getcolors(image.width * image.height)) > 50
        assert 10_000 < file.stat().st_size < 150_000


def test_the_page_shows_each_below_its_heading():
    page = (DOCS / "methods.md").read_text()
    shown = re.findall(r"^## (.+)\n\n!\[[^\]]+\]\(figures/(.+)\.png\)$", page, re.MULTILINE)
    assert [figure for _, figure in shown] == NAMES
    assert all(heading.lower() == figure for heading, figure in shown)
    assert all((DOCS / "figures" / f"{name}.png").is_file() for name in NAMES)
