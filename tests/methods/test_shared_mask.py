"""A mask that the host still knows when it is on a device; meta tensors stand for those of a device."""

import pickle

import pytest
import torch

from fastmim.methods.masked.shared_mask import SharedMask, on_host


def shared(batch=4):
    mask = torch.rand(1, 3, 3, generator=torch.Generator().manual_seed(0)) > 0.5
    return mask.repeat(batch, 1, 1).as_subclass(SharedMask)


@pytest.mark.parametrize(
    "part",
    [
        lambda mask: mask,
        lambda mask: mask[1:3],
        lambda mask: mask[1:][:2],
        lambda mask: mask.split(3)[1],
        lambda mask: mask.to("meta", non_blocking=True),
    ],
)
def test_the_host_knows_what_it_has_sent_and_parts_of_it(part):
    mask = shared()
    sent = part(mask[:4].to("meta"))
    assert type(sent) is torch.Tensor
    assert torch.equal(on_host(sent), mask[0])


@pytest.mark.parametrize(
    "other",
    [
        lambda sent: ~sent,
        lambda sent: sent.clone(),
        lambda sent: sent[:, :2],
        lambda sent: sent.transpose(1, 2),
        lambda sent: sent[:, :, ::2],
        lambda sent: sent.logical_not_(),
        lambda sent: sent[:1].fill_(True),
    ],
)
def test_of_anything_else_it_knows_nothing(other):
    sent = shared().to("meta")
    assert on_host(other(sent)) is None


def test_masks_that_differ_are_not_shared():
    mask = shared()
    mask[1] = ~mask[0]
    assert on_host(mask.to("meta")) is None
    assert on_host(torch.ones(2, 3, 3, dtype=torch.bool).to("meta")) is None
    with torch.inference_mode():
        assert on_host(shared().to("meta")) is None


def test_what_the_host_knows_is_as_it_was_sent():
    mask = shared()
    expected = mask[0].clone()
    sent = mask.to("meta")
    mask.logical_not_()
    assert torch.equal(on_host(sent), expected)


def test_on_the_cpu_it_is_a_mask_like_any_other():
    mask = shared()
    assert type(mask.to("cpu")) is torch.Tensor
    assert type(~mask) is type(mask.sum()) is torch.Tensor
    assert torch.equal(mask.to("cpu"), pickle.loads(pickle.dumps(mask)))
    assert on_host(mask) is None
