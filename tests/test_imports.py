"""Who may import whom: by room, by folder within a room, and without circles."""

import ast
import graphlib
import importlib
import itertools
import subprocess
import sys
from pathlib import Path

import pytest

import fastmim

SOURCE = Path(__file__).parents[1] / "src" / "fastmim"

LAYERS = [
    {"errors", "_version"},
    {"system"},
    {"mim"},
    {"encoders"},
    {"train", "data"},
    {"methods", "weights"},
    {"export"},
    {"config"},
    {"recipes"},
    {"report"},
    {"pretraining", "downstream"},
    {"studies", "bench"},
    {"cli"},
    {"__init__", "__main__"},
]
RANK = {room: rank for rank, rooms in enumerate(LAYERS) for room in rooms}
# Folders of a room, the lowest first; a file that lies in the room itself may import all of them.
FOLDERS = {
    "data": ["decode", "transforms", "sources", "annotations", "loading", "packing"],
    "methods": ["masked"],
    "encoders": ["architectures", "visible"],
    "downstream": ["classification", "detection", "frozen", "segmentation"],
    "cli": ["commands"],
}
NEVER = {("downstream", *pair) for pair in itertools.permutations(FOLDERS["downstream"], 2)}


def module_of(path: Path) -> str:
    return ".".join(path.relative_to(SOURCE.parent).with_suffix("").parts).removesuffix(".__init__")


MODULES = {module_of(path): path for path in sorted(SOURCE.rglob("*.py"))}


def imports(path: Path) -> set[str]:
    """Modules of this package that a file imports, wherever in the file, but for type checkers only."""
    found = set()
    waiting: list[ast.AST] = [ast.parse(path.read_text())]
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            continue
        if isinstance(node, ast.ImportFrom) and node.module:
            names = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= {name if name in MODULES else node.module for name in names}
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        waiting += ast.iter_child_nodes(node)
    return {name for name in found if name.partition(".")[0] == "fastmim"}


def room_of(module: str) -> str:
    return [*module.split("."), "__init__"][1]


@pytest.mark.parametrize("module", MODULES)
def test_imports_only_what_lies_below(module):
    for other in imports(MODULES[module]):
        if module not in ("fastmim", "fastmim.__main__"):
            assert other != "fastmim", "the package itself stands above all of its parts"
        if room_of(other) != room_of(module):
            assert RANK[room_of(other)] < RANK[room_of(module)], f"{module} imports {other}"


@pytest.mark.parametrize("room", FOLDERS)
def test_folders_import_only_folders_below(room):
    order = FOLDERS[room]
    folders = {path.name for path in (SOURCE / room).iterdir() if (path / "__init__.py").exists()}
    assert folders == set(order)
    for module in MODULES:
        mine = module.split(".")[1:3]
        for other in imports(MODULES[module]) if mine[:1] == [room] else ():
            theirs = other.split(".")[1:3]
            if len(mine) < 2 or len(theirs) < 2 or theirs[0] != room or mine[1] == theirs[1]:
                continue
            if mine[1] in order and theirs[1] in order:
                assert order.index(theirs[1]) < order.index(mine[1]), f"{module} imports {other}"
                assert (room, mine[1], theirs[1]) not in NEVER, f"{module} imports {other}"


def test_there_are_no_circles():
    graph = {module: imports(path) & MODULES.keys() - {module} for module, path in MODULES.items()}
    assert len(list(graphlib.TopologicalSorter(graph).static_order())) == len(MODULES)


def test_the_help_text_needs_no_torch():
    code = (
        "import sys; from fastmim.cli import main; "
        "assert main(['--help']) == 0 and main(['--version']) == 0; "
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


def test_functions_are_not_hidden_by_modules_of_their_name():
    for module in ("fastmim.cli", "fastmim.pretraining", "fastmim.export"):
        importlib.import_module(module)
    assert callable(fastmim.hog)
    assert callable(fastmim.pretrain)
    assert callable(fastmim.export_encoder)


def test_tests_lie_in_the_rooms_that_they_test():
    folders = {path.name for path in Path(__file__).parent.iterdir() if path.is_dir()} - {"__pycache__"}
    assert folders <= set(RANK)
