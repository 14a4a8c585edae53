"""Who may import whom: lower layers know nothing of higher ones."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[1] / "src" / "fastmim"

LAYERS = [
    {"errors"},
    {"documents"},
    {"cache", "threads"},
    {"grids", "histograms"},
    {"losses", "masking", "decoders", "encoders", "targets"},
    {"train", "methods", "data"},
    {"config"},
    {"recipes"},
    {"transfer", "report"},
    {"pretraining", "backbones"},
    {"bench"},
    {"flags"},
    {"verbs"},
    {"cli"},
    {"__main__"},
]
RANK = {room: rank for rank, rooms in enumerate(LAYERS) for room in rooms}
# Within a layer: who may still import whom. train/ knows no method, no target and no data.
SIDEWAYS = {("targets", "losses"), ("report", "transfer")}


def room_of(path: Path) -> str:
    return path.relative_to(SOURCE).parts[0].removesuffix(".py")


def imported_rooms(path: Path) -> set[str]:
    rooms = set()
    for node in ast.walk(ast.parse(path.read_text())):
        names = []
        if isinstance(node, ast.ImportFrom) and node.module:
            names = [node.module]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        rooms |= {name.split(".")[1] for name in names if name.startswith("fastmim.")}
    return rooms


FILES = [path for path in sorted(SOURCE.rglob("*.py")) if path.name != "__init__.py" or path.parent != SOURCE]


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(SOURCE)))
def test_imports_only_what_lies_below(path):
    room = room_of(path)
    for other in imported_rooms(path) - {room}:
        below = RANK[other] < RANK[room]
        assert below or (room, other) in SIDEWAYS, f"{room} imports {other}"


def test_the_help_text_needs_no_torch():
    code = (
        "import sys; from fastmim.cli import main; "
        "assert main(['--help']) == 0 and main(['--version']) == 0; "
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


def test_functions_are_not_hidden_by_modules_of_their_name():
    code = (
        "import fastmim.cli, fastmim.pretraining, fastmim; "
        "assert callable(fastmim.hog) and callable(fastmim.pretrain)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
