"""Private names of other libraries in this package: a closed list, each with a test that it still works."""

import ast
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning_fabric import Fabric
from timm.models._features import feature_take_indices
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.data import DataLoader

SOURCE = Path(__file__).parents[1] / "src" / "fastmim"

# Name: why no public one does.
PRIVATE = {
    "torch._C": "DisableTorchFunctionSubclass, as PyTorch's guide to tensor subclasses has it",
    "torch.nn.modules.batchnorm._BatchNorm": "the base of batch norms; nn has no public one",
    "timm.models._features": "feature_take_indices, as timm's own models resolve indices of blocks",
    "Tensor._base": "the tensor of which a mask is a view",
    "Tensor._version": "whether a mask was written to since its copy was taken",
    "Module._compiled_call_impl": "the only way to undo Module.compile()",
    "Fabric._precision": "Fabric has the precision of its plugin nowhere else",
    "UntypedStorage._new_shared": "a batch in shared memory without a copy, as torch's collation makes it",
    "DataLoader iterator._shutdown_workers": "ends the workers now, not when the iterator is collected",
}
DOCUMENTED = {
    "_replace",
    "_asdict",
    "_fields",
    "_exit",
}  # of named tuples and os: public in spite of the name
OWN = {"self", "cls", "super", "other"}


def private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__") and name not in DOCUMENTED


def defined(tree: ast.AST) -> set[str]:
    """Private names that a file defines: functions, classes, attributes of its own objects."""
    nodes = list(ast.walk(tree))
    names = {node.name for node in nodes if isinstance(node, ast.FunctionDef | ast.ClassDef)}
    return names | {node.attr for node in nodes if isinstance(node, ast.Attribute) and _is_own(node.value)}


def _is_own(node: ast.AST) -> bool:
    if isinstance(node, ast.Call):
        node = node.func
    return isinstance(node, ast.Name) and node.id in OWN


def used_by(path: Path) -> set[str]:
    """Private names of others in a file: attributes, parts of imported modules, literal getattr."""
    tree = ast.parse(path.read_text())
    own, found = defined(tree), set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and private(node.attr) and node.attr not in own:
            found.add(node.attr)
        elif isinstance(node, ast.ImportFrom) and node.module:
            parts = [*node.module.split("."), *(alias.name for alias in node.names)]
            found |= {part for part in parts if private(part) and part != "_version"}
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "getattr":
            name = node.args[1]
            if isinstance(name, ast.Constant) and private(str(name.value)) and name.value not in own:
                found.add(str(name.value))
    return found


def test_no_other_private_name_is_used():
    used = set().union(*map(used_by, SOURCE.rglob("*.py")))
    assert used == {name.rpartition(".")[2] for name in PRIVATE}


def test_the_list_is_checked(tmp_path):
    file = tmp_path / "module.py"
    file.write_text("import torch\nfrom a._b import _c\n\nx = torch._dynamo\ny = getattr(x, '_z', None)\n")
    assert used_by(file) == {"_b", "_c", "_dynamo", "_z"}


def test_views_know_their_base_and_writes_are_counted():
    whole = torch.zeros(4)
    part = whole[1:]
    assert part._base is whole
    before = whole._version
    part += 1
    assert whole._version == before + 1


def test_torch_function_can_be_disabled():
    class Refusing(torch.Tensor):
        @classmethod
        def __torch_function__(cls, func, types, args=(), kwargs=None):
            raise AssertionError("called")

    with torch._C.DisableTorchFunctionSubclass():
        assert torch.zeros(2).as_subclass(Refusing).sum() == 0


def test_all_batch_norms_have_one_base():
    assert {nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm} <= set(
        _BatchNorm.__subclasses__()
    )


def test_a_compiled_module_can_be_restored():
    module = nn.Linear(2, 2)
    module.compile(backend=lambda graph, inputs: pytest.fail("still compiled"))
    module._compiled_call_impl = None
    assert module(torch.zeros(1, 2)).shape == (1, 2)


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_fabric_knows_its_precision(precision):
    assert Fabric(accelerator="cpu", devices=1, precision=precision)._precision.precision == precision


def test_storage_is_allocated_in_shared_memory():
    storage = torch.UntypedStorage._new_shared(16)
    assert storage.is_shared()
    assert torch.empty(0, dtype=torch.uint8).set_(storage).view(4, 4).is_shared()


def test_timm_resolves_indices_of_blocks():
    assert feature_take_indices(4, None) == ([0, 1, 2, 3], 3)
    assert feature_take_indices(4, [0, -2]) == ([0, 2], 2)


def test_a_loaders_workers_can_be_ended():
    iterator: Any = iter(DataLoader(list(range(8)), num_workers=1))
    workers = list(iterator._workers)
    next(iterator)
    iterator._shutdown_workers()
    assert not any(worker.is_alive() for worker in workers)
