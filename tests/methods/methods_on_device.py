"""Each method on a simulated accelerator: nothing stays on the CPU, and no step waits for the device."""

import copy
from functools import cache, partial

import pytest
import torch

from fastmim.config import merge
from fastmim.encoders.build import build_encoder
from fastmim.methods.distillation import Distilled
from fastmim.methods.frozen_teacher import Statistics, Teacher
from fastmim.methods.registry import METHODS
from fastmim.pretraining import build_method
from fastmim.pretraining.evaluation import HeldOut
from fastmim.recipes.methods import defaults_of
from fastmim.train.optim import build_adamw, guarded_step
from fastmim.train.settings import OptimConfig
from simulated_device import watched

SIZE = (64, 64)
VIT = ("vit_tiny_patch16_224", {"embed_dim": 32, "depth": 2, "num_heads": 2})
SWIN = ("swin_tiny_patch4_window7_224", {"embed_dim": 16, "depths": [2, 1, 1, 1], "num_heads": [1] * 4})
CONVNEXT = ("convnextv2_atto", {"depths": [1, 1, 1, 1], "dims": [16, 16, 32, 64]})
TWINS = (
    "twins_svt_small",
    {"embed_dims": [16, 32, 32, 64], "num_heads": [1, 2, 2, 4], "depths": [1, 1, 1, 1]},
)
MODELS = {"greenmim": SWIN, "fcmae": CONVNEXT}  # of methods that do not take a plain ViT
CASES = [
    *((name, {}) for name in METHODS),
    ("fastmim", {"target.name": "hog+pixels-norm", "mask.place": "patch", "mask.token": "zeros"}),
    ("fastmim", {"mask.pattern": "blockwise", "target.loss": "smooth-l1", "target.cell": 32}),
    ("fastmim", {"model": CONVNEXT[0], "model_kwargs": CONVNEXT[1], "target.loss": "cosine"}),
    ("simmim", {"model": SWIN[0], "model_kwargs": SWIN[1]}),
    ("greenmim", {"model": TWINS[0], "model_kwargs": TWINS[1], "image_size": 224}),
]


def small(name, **settings):
    return _small(name, **settings) if settings else copy.deepcopy(_usual(name))


@cache
def _usual(name):
    return _small(name)


def _small(name, **settings):
    model, kwargs = MODELS.get(name, VIT)
    few = {"decoder.width": 32, "decoder.depth": min(defaults_of(name).decoder.depth, 1)}
    if name == "lomar":
        few["lomar.window"] = 2
    if name == "greenmim":
        few["image_size"] = (64, 128)
    few |= {"model": model, "model_kwargs": kwargs}
    return build_method(merge(defaults_of(name), {"image_size": SIZE, **few, **settings}))


def batch(network, count=2):
    images = torch.randn(count, 3, *network.image_size, generator=torch.Generator().manual_seed(1))
    return images, network.draw_mask(torch.Generator().manual_seed(2), count, network.image_size)


def take_step(module, inputs):
    """A training step: its loss, and the gradients."""
    torch.manual_seed(3)  # what the module drops
    optimizer = build_adamw(module, OptimConfig())
    result = module.train()(*inputs)
    result.loss.backward()
    gradients = {name: p.grad for name, p in module.named_parameters() if p.grad is not None}
    guarded_step(optimizer, 1e-3, clip_norm=1.0)
    return result.loss.detach(), gradients


def check_step(device, module, inputs):
    """A step on the device gives what one on the CPU gives, and the host waits for nothing in it.

    Returns:
        What was sent to the device.
    """
    on_device = copy.deepcopy(module).to(device)
    before = copy.deepcopy(on_device.state_dict())
    expected, expected_gradients = take_step(module, inputs)
    inputs = [tensor.to(device) for tensor in inputs]
    with watched() as seen:
        loss, gradients = take_step(on_device, inputs)
    assert [crossing for crossing in seen if crossing.waits or crossing.to_host] == []
    torch.testing.assert_close(loss.cpu(), expected)
    assert gradients.keys() == expected_gradients.keys()
    assert all(gradient.device == device for gradient in gradients.values())
    for name, gradient in gradients.items():  # attention on the CPU has a kernel of its own
        torch.testing.assert_close(gradient.cpu(), expected_gradients[name], rtol=1e-3, atol=1e-5, msg=name)
    after = on_device.state_dict()
    assert any(not torch.equal(after[name], tensor) for name, tensor in before.items())
    return seen


@pytest.mark.parametrize(("name", "settings"), CASES)
def test_a_step_waits_for_nothing(device, name, settings):
    network = small(name, **settings)
    sent = [crossing.place.partition(":")[0] for crossing in check_step(device, network, batch(network))]
    if name == "greenmim":
        assert sent == ["windows.py"]  # the groups of all windows at once
    else:
        assert sent in ([], ["losses.py"])  # weights of channels


def test_greenmim_takes_any_mask_by_reading_it_once(device):
    network = small("greenmim", image_size=128)
    images, mask = batch(network, 4)
    expected = network(images, mask).loss
    network.to(device)
    images, shared, plain = images.to(device), mask.to(device), mask.as_subclass(torch.Tensor).to(device)
    for part in (slice(0, 2), slice(2, 4)):
        with watched() as seen:
            known = network(images[part], shared[part]).loss
        assert not any(crossing.waits for crossing in seen)
        with watched() as seen:
            read = network(images[part], plain[part]).loss
        assert sum(crossing.waits for crossing in seen) == 1
        assert torch.equal(known.cpu(), read.cpu())
    torch.testing.assert_close(network(images, shared).loss.cpu(), expected)
    plain.copy_(network.draw_mask(torch.Generator().manual_seed(5), 4, network.image_size))
    other = network(images, plain).loss
    shared.copy_(plain)  # what is changed on the device is not what the host has sent
    assert torch.equal(network(images, shared).loss.cpu(), other.cpu())


@pytest.mark.parametrize("name", METHODS)
def test_held_out_images_are_measured_and_only_results_are_read(device, name):
    network = small(name)
    images, mask = batch(network, 3)
    autocast = partial(torch.autocast, device.type, enabled=False)
    expected = HeldOut(network, images, mask, 2, autocast).loss()
    network.to(device)
    held_out = HeldOut(network, images.to(device), mask.to(device), 2, autocast)
    with watched() as seen:
        held_out.reconstruct(3)
    assert not any(crossing.waits for crossing in seen)
    assert held_out.loss() == pytest.approx(expected, rel=1e-5)
    assert network.masked_images(images.to(device), mask.to(device)).device == device


@pytest.mark.parametrize(("student", "teacher", "normalize"), [(VIT, CONVNEXT, True), (SWIN, VIT, False)])
def test_a_step_of_distillation_waits_for_nothing(device, student, teacher, normalize):
    network = small("fastmim", model=student[0], model_kwargs=student[1])
    encoder = build_encoder(teacher[0], (96, 96), model_kwargs=teacher[1])
    last, first = len(network.encoder.layers) - 1, 0
    grids = [network.encoder.layers[layer].grid for layer in (first, last)]
    statistics = Statistics((0.5,) * 3, (0.5,) * 3), Statistics((0.4,) * 3, (0.2,) * 3)
    teacher = Teacher(encoder, *statistics, [0, len(encoder.layers) - 1], grids, "digest")
    widths = [width for width, _, _ in teacher.shapes]
    learner = Distilled(network, [first, last], widths, normalize=normalize)
    images, mask = batch(network)
    features = teacher(images)
    check_step(device, learner, [images, mask, *features])
    teacher.to(device)
    images = images.to(device)
    with watched() as seen:
        found = teacher(images)
    assert not any(crossing.waits for crossing in seen)
    torch.testing.assert_close([map_.cpu() for map_ in found], features, rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize("name", ["fastmim", "fcmae"])
def test_a_method_that_reads_or_forgets_something_fails(device, name):
    network = small(name)
    inputs = batch(network)
    part = network.decoder
    handle = part.register_forward_hook(lambda module, _, output: output * output.sum().item())
    with pytest.raises(AssertionError, match="_local_scalar_dense"):
        check_step(device, network, inputs)
    handle.remove()
    part.register_forward_hook(lambda module, _, output: output + torch.zeros(output.shape))
    with pytest.raises(RuntimeError, match="same device"):
        check_step(device, network, inputs)
