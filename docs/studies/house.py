"""Count what makes the code easy or hard to live in, for one or more trees side by side.

    python docs/studies/house.py src
    python docs/studies/house.py before=/tmp/earlier/src now=src

Each tree is a folder that holds ``fastmim/``. Prints a Markdown table. The depth of the call stack is that of
a real run: `fastmim pretrain` of one step, from the command to the optimiser.
"""

import ast
import graphlib
import os
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

LONG = 60  # lines of a function
MANY = 6  # parameters
COPIED = 6  # lines that are equal but for names and numbers
COMPOSING = {"config", "recipes", "studies", "bench", "cli"}  # packages whose subject configurations are
CONFIGS = {"PretrainConfig", "FinetuneConfig", "RunConfig"}

DEPTH = """
import sys, torch, traceback
from pathlib import Path
import fastmim.cli
root = str(Path(fastmim.__file__).parent)
step = torch.optim.AdamW.step
def counted(self, *arguments, **settings):
    frames = [f for f in traceback.extract_stack() if f.filename.startswith(root)]
    print("depth", len({(f.filename, f.name) for f in frames}), file=sys.stderr)
    return step(self, *arguments, **settings)
torch.optim.AdamW.step = counted
sys.exit(fastmim.cli.main(sys.argv[1:]))
"""
RUN = [
    *("pretrain", "--data", "demo:digits", "--model", "vit_tiny_patch16_224", "--image-size", "32"),
    *("--batch-size", "8", "--steps", "1", "--held-out", "2", "--workers", "0", "--kernels.threads", "1"),
    *("--kernels.attention", "fused", "--kernels.memory-format", "contiguous", "--kernels.compile", "none"),
    *("--kernels.optimizer", "fused"),
]


def functions(tree: ast.AST) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    """Every function and method of a module."""
    yield from (node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef))


def parameters(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """How many a caller may give, self left out."""
    given = function.args
    names = [argument.arg for argument in (*given.posonlyargs, *given.args, *given.kwonlyargs)]
    return len([name for name in names if name not in ("self", "cls")])


def imports(tree: ast.AST, modules: set[str]) -> set[str]:
    """Modules of the package that a module imports."""
    found: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module:
            names = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= {name if name in modules else node.module for name in names}
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
    return found & modules


def circles(graph: dict[str, set[str]]) -> int:
    """Import circles: how many edges must go until there is none."""
    graph = {name: set(others) - {name} for name, others in graph.items()}
    count = 0
    while True:
        try:
            list(graphlib.TopologicalSorter(graph).static_order())
            return count
        except graphlib.CycleError as error:
            first, second, *_ = error.args[1]
            graph[second].discard(first)
            graph[first].discard(second)
            count += 1


def copies(texts: list[str]) -> int:
    """Pairs of places that share at least COPIED lines of one shape (names, strings and numbers aside)."""
    windows: Counter[tuple[str, ...]] = Counter()
    for text in texts:
        lines = [shape for line in text.splitlines() if (shape := shape_of(line))]
        last: tuple[str, ...] = ()
        for start in range(len(lines) - COPIED + 1):
            window = tuple(lines[start : start + COPIED])
            if window != last:
                windows[window] += 1
            last = window
    return sum(count - 1 for count in windows.values() if count > 1)


def shape_of(line: str) -> str:
    """A line without comments and indentation; imports and lone brackets count for nothing."""
    line = line.partition("#")[0].strip()
    if line.startswith(("import ", "from ", '"""')) or len(line) < 4:
        return ""
    return line


def call_depth(root: Path) -> str:
    """Functions on the stack from the command to the optimiser's first step, in a real run."""
    with tempfile.TemporaryDirectory() as folder:
        done = subprocess.run(
            [sys.executable, "-c", DEPTH, *RUN, "--out", f"{folder}/run"],
            env=os.environ | {"PYTHONPATH": str(root.resolve())},
            capture_output=True,
            text=True,
        )
    depths = [line.split()[1] for line in done.stderr.splitlines() if line.startswith("depth ")]
    return depths[0] if depths else "?"


def count(root: Path) -> dict[str, str]:
    """The figures of one tree."""
    files = sorted((root / "fastmim").rglob("*.py"))
    texts = {file: file.read_text() for file in files}
    trees = {file: ast.parse(text) for file, text in texts.items()}
    names = {
        ".".join(file.relative_to(root).with_suffix("").parts).removesuffix(".__init__"): file
        for file in files
    }
    graph = {name: imports(trees[file], set(names)) for name, file in names.items()}
    every = [function for tree in trees.values() for function in functions(tree)]
    lengths = [(function.end_lineno or 0) - function.lineno + 1 for function in every]
    lines = [len(text.splitlines()) for text in texts.values()]
    seeing = [
        file
        for file, tree in trees.items()
        if any(isinstance(node, ast.Name) and node.id in CONFIGS for node in ast.walk(tree))
    ]
    upward = [name for name, others in graph.items() if "fastmim" in others and name.count(".")]
    figures = {
        "files": len(files),
        "lines a file, mean": round(sum(lines) / len(lines)),
        "lines of the longest file": max(lines),
        "functions": len(every),
        f"functions over {LONG} lines": sum(length > LONG for length in lengths),
        "lines of the longest function": max(lengths),
        f"functions over {MANY} parameters": sum(parameters(function) > MANY for function in every),
        "most parameters": max(map(parameters, every)),
        "lines with Any": sum(
            "Any" in names_in(line) for text in texts.values() for line in text.splitlines()
        ),
        "type: ignore": sum(text.count("# type: ignore") for text in texts.values()),
        f"copied passages of {COPIED} lines": copies(list(texts.values())),
        "import circles": circles(graph),
        "imports of the package itself": len(upward),
        "files that see the whole configuration": len(seeing),
        "of these, files that neither make nor compose configurations": sum(
            file.relative_to(root / "fastmim").parts[0] not in COMPOSING for file in seeing
        ),
    }
    return {name: str(value) for name, value in figures.items()} | {
        "functions from the command to the optimiser's step": call_depth(root)
    }


def names_in(line: str) -> set[str]:
    """The words of a line of code, comments left out."""
    return set("".join(sign if sign.isidentifier() else " " for sign in line.partition("#")[0]).split())


def main(arguments: list[str]) -> None:
    given = [argument.rpartition("=")[::2] for argument in arguments or ["src"]]
    columns = {label or folder: count(Path(folder)) for label, folder in given}
    print("| | " + " | ".join(columns) + " |")
    print("|---|" + "---:|" * len(columns))
    for name in next(iter(columns.values())):
        print(f"| {name} | " + " | ".join(column[name] for column in columns.values()) + " |")


if __name__ == "__main__":
    main(sys.argv[1:])
