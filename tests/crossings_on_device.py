"""The simulated accelerator itself: what it computes, what it refuses, what it notes."""

import pytest
import torch
from torch import nn

from simulated_device import watched

READINGS = {
    "a number": lambda x: x.sum().item(),
    "float": lambda x: float(x.sum()),
    "a condition": lambda x: bool((x > 0).any()),
    "a list": lambda x: x.tolist(),
    "a copy": lambda x: x.cpu(),
    "into a CPU tensor": lambda x: torch.zeros(4).copy_(x),
    "places": lambda x: x.nonzero(),
    "taken by a mask": lambda x: x[x > 0],
    "put by a mask": lambda x: x.clone().index_put_((x > 0,), torch.zeros((), device=x.device)),
    "masked_select": lambda x: x.masked_select(x > 0),
    "unique": lambda x: x.unique(),
    "equal": lambda x: torch.equal(x, x),
    "allclose": lambda x: torch.allclose(x, x),
    "repeated by a tensor": lambda x: x.repeat_interleave(x.long() + 2),
    "clipping with a check": lambda x: nn.utils.clip_grad_norm_(
        [_with_gradient(x)], 1.0, error_if_nonfinite=True
    ),
}
SENDINGS = {
    "a copy": lambda device: torch.ones(3).to(device),
    "a constant": lambda device: torch.tensor([1.0, 2.0], device=device),
    "into a tensor": lambda device: torch.zeros(3, device=device).copy_(torch.ones(3)),
    "an index": lambda device: torch.zeros(3, device=device)[torch.tensor([0, 2])],
}


def _with_gradient(x):
    parameter = nn.Parameter(x.clone())
    parameter.grad = torch.ones_like(x)
    return parameter


class Reads(nn.Module):
    """Scales by its input's largest value, which it asks the device for."""

    def forward(self, x):
        return x / x.abs().max().item()


class Forgets(nn.Module):
    """Multiplies by a constant that is no buffer, so that it stays on the CPU."""

    def __init__(self):
        super().__init__()
        self.scale = torch.tensor([1.0, 2.0, 3.0, 4.0])

    def forward(self, x):
        return x * self.scale


class ReadsBackwards(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, gradient):
        return gradient * gradient.sum().item()


@pytest.fixture
def values(device):
    return torch.tensor([-1.0, 0.0, 1.0, 2.0]).to(device)


@pytest.mark.parametrize("reading", READINGS)
def test_reading_is_noted(values, reading):
    with watched() as seen:
        READINGS[reading](values)
    assert any(crossing.to_host and crossing.waits for crossing in seen)
    assert {crossing.place.partition(":")[0] for crossing in seen} == {"crossings_on_device.py"}


@pytest.mark.parametrize("sending", SENDINGS)
def test_sending_that_waits_is_noted(device, sending):
    with watched() as seen:
        SENDINGS[sending](device)
    assert [(crossing.to_host, crossing.waits) for crossing in seen] == [(False, True)]


def test_queued_copies_do_not_wait(device):
    with watched() as seen:
        sent = torch.ones(3).to(device, non_blocking=True)
        torch.zeros(3).copy_(sent, non_blocking=True)
    assert [(crossing.to_host, crossing.waits) for crossing in seen] == [(False, False), (True, False)]


def test_nothing_is_noted_of_what_stays_on_the_device(device, values):
    with watched() as seen:
        other = torch.randn(4, 4, device=device)
        torch.where(values > 0, values, 0).add_(1) @ other
        other[1:, None].expand(3, 2, 4).flatten().view(2, -1)[:, values.argsort()]
        other.repeat_interleave(2, dim=0).gather(0, torch.zeros(1, 4, dtype=torch.long, device=device))
        other[:2] = values
        torch.arange(5, device=device).float().mean()
    assert seen == []


@pytest.mark.parametrize(
    "mixing",
    [
        lambda x, y: x + y,
        lambda x, y: y * x,
        lambda x, y: x.add_(y),
        lambda x, y: torch.cat([x, y]),
        lambda x, y: nn.functional.linear(x, y.view(1, 4)),
        lambda x, y: torch.where(x > 0, x, y),
        lambda x, y: x.gather(0, y.long()),
        lambda x, y: x.masked_fill(y > 0, 0),
        lambda x, y: y.sum().add_(x.sum()),
        lambda x, y: torch._foreach_mul([x], y.sum()),
    ],
)
def test_tensors_of_two_devices_are_refused(values, mixing):
    with pytest.raises(RuntimeError, match="same device"):
        mixing(values, torch.ones(4))


def test_a_number_on_the_cpu_goes_with_the_device(values):
    assert (values * torch.tensor(2.0)).tolist() == [-2.0, 0.0, 2.0, 4.0]


def test_numpy_cannot_have_what_is_on_the_device(values):
    with pytest.raises((TypeError, RuntimeError)):
        values.numpy()


@pytest.mark.parametrize("module", [Reads(), ReadsBackwards.apply])
def test_a_module_that_reads_is_found(device, module):
    x = torch.randn(2, 4, device=device, requires_grad=True)
    with watched() as seen:
        module(x).sum().backward()
    assert [(crossing.operation, crossing.waits) for crossing in seen] == [("_local_scalar_dense", True)]
    assert seen[0].place.startswith("crossings_on_device.py:")


def test_a_module_that_forgets_a_constant_is_refused(device):
    with pytest.raises(RuntimeError, match=r"mul got one of shape \(4,\) .*crossings_on_device"):
        Forgets().to(device)(torch.randn(2, 4, device=device))


@pytest.mark.parametrize("half", [False, True])
def test_values_and_gradients_are_those_of_the_cpu(device, half):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.GELU(), nn.Flatten(), nn.Linear(288, 2))
    images = torch.randn(4, 3, 8, 8)
    expected = model(images).square().mean()
    gradients = torch.autograd.grad(expected, list(model.parameters()))
    model.to(device)
    with torch.autocast(device.type, torch.bfloat16, enabled=half):
        loss = model(images.to(device)).square().mean()
    loss.backward()
    assert {parameter.device for parameter in model.parameters()} == {device}
    assert torch.equal(loss.cpu(), expected)
    assert all(map(torch.equal, (p.grad.cpu() for p in model.parameters()), gradients))
