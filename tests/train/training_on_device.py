"""The optimiser's step and a checkpoint on a simulated accelerator."""

import copy

import pytest
import torch
from torch import nn

from fastmim.train.optim import build_adamw, guarded_step, use_kernel
from fastmim.train.seal import check_sealed, write_sealed
from fastmim.train.settings import OptimConfig
from simulated_device import watched


def network(device):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.GELU(), nn.Linear(8, 4)).to(device)


def take_steps(module, optimizer, seeds, clip_norm=1.0):
    """Steps on noise that is a function of its seed; whether each was taken."""
    device = next(module.parameters()).device
    taken = []
    for seed in seeds:
        inputs = torch.randn(5, 6, generator=torch.Generator().manual_seed(seed))
        module(inputs.to(device, non_blocking=True)).square().mean().backward()
        taken.append(guarded_step(optimizer, 1e-2, clip_norm)[1])
    return torch.stack(taken)


def equal(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[key].cpu(), other[key].cpu()) for key in one)


@pytest.mark.parametrize("clip_norm", [None, 0.1])
def test_a_guarded_step_waits_for_nothing(device, clip_norm):
    module, on_cpu = network(device), network("cpu")
    with watched() as seen:
        taken = take_steps(module, build_adamw(module, OptimConfig()), range(3), clip_norm)
    assert not any(crossing.waits for crossing in seen)
    take_steps(on_cpu, build_adamw(on_cpu, OptimConfig()), range(3), clip_norm)
    assert taken.tolist() == [1, 1, 1]
    assert equal(module.state_dict(), on_cpu.state_dict())


def test_what_is_not_finite_is_skipped_without_asking(device):
    module = network(device)
    optimizer = build_adamw(module, OptimConfig())
    take_steps(module, optimizer, [0])
    weights = {name: p.detach().clone() for name, p in module.named_parameters()}
    before = copy.deepcopy(optimizer.state_dict()["state"])
    with watched() as seen:
        (module(torch.randn(5, 6, device=device)) * float("inf")).sum().backward()
        _, taken = guarded_step(optimizer, 1e-2, 1.0)
    assert seen == []
    assert taken.item() == 0
    assert equal(weights, dict(module.named_parameters()))
    after = optimizer.state_dict()["state"]
    assert all(equal(after[index], before[index]) for index in before)


def test_adamw_without_a_switch_asks_once(device):
    """The kernel that is no fused one cannot leave a step out by itself."""
    module = network(device)
    optimizer = build_adamw(module, OptimConfig())
    use_kernel(optimizer, "foreach")
    with watched() as seen:
        take_steps(module, optimizer, [0])
    assert [crossing.place.partition(":")[0] for crossing in seen if crossing.waits] == ["optim.py"]


def test_a_run_goes_on_from_a_checkpoint_as_if_it_had_not_stopped(device, tmp_path):
    module = network(device)
    optimizer = build_adamw(module, OptimConfig())
    take_steps(module, optimizer, [0, 1])
    file = tmp_path / "last.ckpt"
    with open(file, "wb") as opened:
        write_sealed({"module": module.state_dict(), "optimizer": optimizer.state_dict()}, 2, opened)
    take_steps(module, optimizer, [2, 3])

    check_sealed(file)
    state = torch.load(file, map_location="cpu", weights_only=True)
    assert {tensor.device.type for tensor in state["module"].values()} == {"cpu"}
    again = network(device)
    other = build_adamw(again, OptimConfig())
    again.load_state_dict(state["module"])
    other.load_state_dict(state["optimizer"])
    means = [value for values in other.state_dict()["state"].values() for value in values.values()]
    assert {tensor.device for tensor in (*again.state_dict().values(), *means)} == {device}
    with watched() as seen:
        take_steps(again, other, [2, 3])
    assert not any(crossing.waits for crossing in seen)
    assert equal(again.state_dict(), module.state_dict())
