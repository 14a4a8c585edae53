"""A step waits for nothing that the device computes; a CPU stands in for one that would be waited for."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import fastmim
from conftest import QUICK, TINY
from fastmim.train.loop import Loop

# What brings a value, or a shape that depends on values, from the device to the host.
WAITING = {
    "_local_scalar_dense",  # .item(), float(), bool(), if tensor:
    "nonzero",
    "masked_select",
    "is_nonzero",
    "equal",
    "_unique2",
    "unique_consecutive",
    "bincount",
    "histc",
}


class Waits(TorchDispatchMode):
    """Counts the operations that would wait."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func._schema.name.removeprefix("aten::")
        by_mask = name.startswith("index") and any(
            isinstance(index, torch.Tensor) and index.dtype == torch.bool
            for argument in args
            if isinstance(argument, list | tuple)
            for index in argument
        )
        if name in WAITING or by_mask:
            self.seen.append(name)
        return func(*args, **(kwargs or {}))


@pytest.fixture
def waits(monkeypatch):
    """The waiting operations of each step."""
    steps = []
    step = Loop._step

    def watched(self, *arguments):
        with Waits() as mode:
            step(self, *arguments)
        steps.append(mode.seen)

    monkeypatch.setattr(Loop, "_step", watched)
    return steps


@pytest.mark.parametrize("watched", ["item", "float", "if", "mask"])
def test_the_stand_in_sees_what_waits(watched):
    tensor = torch.ones(3)
    with Waits() as mode:
        {
            "item": lambda: tensor.sum().item(),
            "float": lambda: float(tensor.sum()),
            "if": lambda: bool(tensor.any()),
            "mask": lambda: tensor[tensor > 0],
        }[watched]()
    assert mode.seen


@pytest.mark.parametrize(
    "settings",
    [
        pytest.param({}, marks=pytest.mark.slow),
        {"precision": "bf16-mixed", "micro_batch": 4},
        {"target": {"name": "hog+pixels-norm"}, "mask": {"place": "patch"}, "optim": {"clip_norm": 1.0}},
        {"model": "test_convnext", "model_kwargs": {}, "image_size": 64},
        pytest.param({"method": "simmim", "image_size": 64}, marks=pytest.mark.slow),
        pytest.param({"method": "mae"}, marks=pytest.mark.slow),
        pytest.param({"method": "lomar", "lomar": {"window": 2}, "image_size": 64}, marks=pytest.mark.slow),
        pytest.param({"method": "ummae", "image_size": 64}, marks=pytest.mark.slow),
        {"method": "fcmae", "model": "test_convnext", "model_kwargs": {}, "image_size": 64},
        {"distill": {"teacher": "none", "model": "test_convnext"}, "image_size": 64},
    ],
)
def test_a_step_of_pre_training_waits_for_nothing(photos, tmp_path, waits, settings):
    fastmim.pretrain(data=photos, out=tmp_path / "run", steps=3, **(TINY | settings))
    assert waits == [[], [], []]


def test_a_step_of_fine_tuning_waits_for_nothing(photos, pretrained, tmp_path, waits):
    fastmim.finetune(encoder=pretrained, data=photos, out=tmp_path / "run", **QUICK)
    assert waits == [[]] * QUICK["steps"]
