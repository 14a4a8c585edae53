"""How a batch is cut where not all of it fits: never to one image for a batch norm."""

import copy
import itertools

import numpy as np
import pytest
import torch
from torch import nn

import fastmim
from conftest import QUICK, TINY, lines, mostly_slow
from fastmim.config import merge
from fastmim.data.loading.dataset import Batch
from fastmim.data.loading.train_loader import Share, TrainLoader, micro_batches
from fastmim.errors import UsageError
from fastmim.methods.registry import METHODS
from fastmim.pretraining.build import build_method
from fastmim.recipes.methods import defaults_of


@pytest.mark.parametrize("avoid_single", [False, True])
def test_parts_are_few_even_and_not_single(avoid_single):
    for count, most in itertools.product(range(1, 50), range(1, 14)):
        parts = micro_batches(count, most, avoid_single)
        assert sum(parts) == count
        assert min(parts) >= 1
        odd_pairs = avoid_single and most == 2 and count % 2 == 1 and count > 1
        if avoid_single and count > 1 and most > 1:
            assert min(parts) >= 2, (count, most)
        assert max(parts) <= most + odd_pairs
        if not odd_pairs:
            assert len(parts) == -(-count // most)  # no more than needed
            assert max(parts) - min(parts) <= 1


def feeder_of(micro_batch, avoid_single, mean):
    return TrainLoader(
        crops=None,
        batches=None,
        extra_inputs=None,
        unreadable_log=None,
        micro_batch=micro_batch,
        workers=0,
        seed=0,
        share=Share.of(micro_batch, 0, 1),
        mean=mean,
        std=torch.ones(3),
        avoid_single=avoid_single,
    )


def cut(batch, masks, micro_batch, avoid_single):
    """(images, mask) and their count, as a training loop gets them."""
    return list(feeder_of(micro_batch, avoid_single, torch.zeros(3))._micro_batches(batch, masks, 0))


def noise(count, side):
    generator = torch.Generator().manual_seed(4)
    pixels = torch.randint(0, 256, (count, side, side, 3), generator=generator, dtype=torch.uint8)
    indices = np.arange(count)
    return Batch(pixels, torch.arange(count) % 2 == 0, indices, indices, [])


def gradient_of(module, parts):
    """The gradient of a step in parts: each loss counts by its share, as in `Loop._step`."""
    module = copy.deepcopy(module)
    images = sum(count for _, count in parts)
    for arguments, count in parts:
        (module(*arguments) * (count / images)).backward()
    return torch.cat([p.grad.flatten() for p in module.parameters() if p.grad is not None])


class Squares(nn.Module):
    """A loss whose mean over a batch and its gradient are known by hand, in float64."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.linspace(-1, 1, 3, dtype=torch.float64))

    def forward(self, images, extra_inputs):
        scores = images.double().mean((2, 3)) @ self.weight
        return (scores - extra_inputs.double()).square().mean()


@pytest.mark.parametrize(("count", "micro_batch"), [(5, 2), (7, 3), (8, 5), (9, 4), (6, 1), (3, 2), (1, 4)])
@pytest.mark.parametrize("avoid_single", [False, True])
def test_the_gradient_in_parts_is_that_of_the_whole_batch(count, micro_batch, avoid_single):
    batch, extra_inputs = noise(count, 4), torch.arange(count, dtype=torch.float32)
    parts = cut(batch, extra_inputs, micro_batch, avoid_single)
    assert sum(images for _, images in parts) == count
    assert [len(arguments[0]) for arguments, _ in parts] == [images for _, images in parts]
    flipped = torch.where(batch.flips_B.view(-1, 1, 1, 1), batch.pixels_BHWC.flip(2), batch.pixels_BHWC)
    means = (flipped.permute(0, 3, 1, 2).float() / 255).double().mean((2, 3))
    model = Squares()
    by_hand = 2 * ((means @ model.weight - extra_inputs.double())[:, None] * means).mean(0)
    assert torch.allclose(gradient_of(model, parts), by_hand, rtol=1e-13, atol=1e-14)


class Loss(nn.Module):
    def __init__(self, method):
        super().__init__()
        self.method = method

    def forward(self, images, mask):
        return self.method(images.double(), mask).loss


@pytest.mark.parametrize("name", METHODS)
def test_each_methods_gradient_in_parts_is_that_of_the_whole_batch(name):
    """Held against the whole batch; targets and losses are float32 by design, hence the tolerance."""
    kwargs = {"embed_dim": 32, "depth": 1, "num_heads": 2}
    plain = {"model": "vit_tiny_patch16_224", "model_kwargs": kwargs, "image_size": 64}
    if name == "fcmae":
        plain = {"model": "convnextv2_atto", "model_kwargs": {"depths": [1, 1, 1, 1]}, "image_size": 64}
    if name in ("greenmim", "ummae"):
        plain = {"model": "swin_tiny_patch4_window7_224", "image_size": 64}
        plain["model_kwargs"] = {"embed_dim": 24, "depths": [1, 1, 1, 1], "num_heads": [1, 2, 2, 4]}
    if name == "lomar":
        plain["lomar"] = {"window": 4}
    method = build_method(merge(defaults_of(name), {**plain, "decoder": {"width": 32, "depth": 1}}))
    method = Loss(method.double()).eval()  # without drop path, which draws for each call
    masks = method.method.draw_mask(torch.Generator().manual_seed(5), 5, (64, 64))
    batch = noise(5, 64)
    whole = gradient_of(method, cut(batch, masks, 5, True))
    for size in (1, 2, 3):
        parts = cut(batch, masks, size, True)
        assert len(parts) == {1: 5, 2: 2, 3: 2}[size]
        error = (gradient_of(method, parts) - whole).abs().max()
        assert error < 1e-5 * whole.abs().max()


KERNELS = {"kernels": {"memory_format": "contiguous", "optimizer": "foreach", "compile": "none"}}
BATCH_NORMS = {"model": "resnet10t", "model_kwargs": {}, "image_size": 32, "mask": {"size": 8}, **KERNELS}


@pytest.mark.parametrize(
    ("batch_size", "micro_batch"), mostly_slow([(5, 2), (7, 3), (5, 4), (9, None)], [(5, 2)])
)
def test_no_batch_norm_ever_sees_one_image(photos, tmp_path, batch_size, micro_batch):
    """At 32 pixels the last map of a ResNet is one place: of one image it has no variance."""
    settings = {**TINY, **BATCH_NORMS, "batch_size": batch_size, "micro_batch": micro_batch}
    settings |= {"target": {"cell": 8}, "bn_recalibrate": batch_size == 5, "bn_images": 9}
    assert fastmim.pretrain(data=photos, out=tmp_path / "run", steps=5, **settings).complete  # over an epoch
    assert lines(tmp_path / "run")[-1]["skipped_steps"] == 0


@pytest.mark.parametrize(("batch_size", "micro_batch"), mostly_slow([(5, 2), (7, 3), (5, None)], [(7, 3)]))
def test_nor_does_one_of_a_classifier(photos, tmp_path, batch_size, micro_batch):
    settings = {
        **QUICK,
        **KERNELS,
        "model": "resnet10t",
        "batch_size": batch_size,
        "micro_batch": micro_batch,
    }
    assert fastmim.finetune(data=photos, out=tmp_path / "run", encoder="none", **settings).complete


@pytest.mark.parametrize(
    ("settings", "part"),
    [
        ({"batch_size": 1}, "batch_size: resnet10t has batch norms"),
        ({"batch_size": 4, "micro_batch": 1}, "micro_batch: resnet10t has batch norms"),
        ({"batch_size": 2, "devices": 2}, "batch_size: resnet10t has batch norms"),
    ],
)
def test_a_single_image_at_a_time_is_refused_before_anything_is_written(photos, tmp_path, settings, part):
    run = tmp_path / "run"
    with pytest.raises(UsageError, match=part):
        fastmim.pretrain(data=photos, out=run, steps=2, **{**TINY, **BATCH_NORMS, **settings})
    assert not run.exists()
    if "devices" in settings:
        return
    settings = {**QUICK, "model": "resnet10t", **settings}
    with pytest.raises(UsageError, match=part):
        fastmim.finetune(data=photos, out=run, encoder="none", **settings)
    assert not run.exists()


def test_one_image_at_a_time_is_enough_where_the_last_map_is_large(photos, tmp_path):
    settings = {**TINY, **BATCH_NORMS, "image_size": 64, "micro_batch": 1, "batch_size": 2}
    assert fastmim.pretrain(data=photos, out=tmp_path / "run", steps=1, **settings).complete
