"""What holds for each method, whatever it is."""

import pytest
import torch

import fastmim
from conftest import TINY, Killed, mostly_slow, same, weights
from fastmim.config import merge
from fastmim.methods.base import trivial_loss
from fastmim.methods.registry import METHODS
from fastmim.pretraining import build_method
from fastmim.pretraining.evaluation import HeldOut
from fastmim.recipes.methods import defaults_of
from fastmim.train import autotune as tuning

SIZE = (128, 128)
VIT = ("vit_tiny_patch16_224", {"embed_dim": 32, "depth": 2, "num_heads": 2})
SWIN = {"embed_dim": 16, "depths": [1, 1, 2, 1], "num_heads": [1, 2, 2, 4]}
MODELS = {  # of methods that do not take a plain ViT
    "greenmim": ("swin_tiny_patch4_window7_224", SWIN),
    "fcmae": ("convnextv2_atto", {"depths": [1, 1, 1, 1], "dims": [16, 16, 32, 64]}),
}


def small(name, target="hog"):
    torch.manual_seed(0)
    model, kwargs = MODELS.get(name, VIT)
    settings = {
        "model": model,
        "model_kwargs": kwargs,
        "image_size": SIZE,
        "decoder.width": 32,
        "decoder.depth": min(defaults_of(name).decoder.depth, 1),
        "target.name": target,
        "target.loss": "l2",
    }
    return build_method(merge(defaults_of(name), settings))


def batch(network, count):
    """Smooth waves: something to be learned."""
    generator = torch.Generator().manual_seed(1)
    waves = torch.randn(count, 3, 9, 9, generator=generator)
    images = torch.nn.functional.interpolate(waves, SIZE, mode="bicubic")
    return images, network.draw_mask(torch.Generator().manual_seed(2), count, SIZE)


def no_autocast():
    return torch.autocast("cpu", enabled=False)


@pytest.mark.parametrize("name", mostly_slow(METHODS, ["fastmim", "mae", "ummae"]))
def test_it_learns_what_it_has_seen(name):
    network = small(name, "pixels")
    images, mask = batch(network, 2)
    held_out = HeldOut(network, images, mask, 4, no_autocast)
    optimizer = torch.optim.AdamW([p for p in network.parameters() if p.requires_grad], lr=3e-3)
    for _ in range(100):
        optimizer.zero_grad()
        network(images, mask).loss.backward()
        optimizer.step()
    assert held_out.loss() < 0.8 * held_out.baseline


@pytest.mark.parametrize("name", METHODS)
def test_masks_are_boolean_and_follow_the_generator_alone(name):
    network = small(name)
    one, again, other = (
        network.draw_mask(torch.Generator().manual_seed(seed), 3, SIZE) for seed in (1, 1, 2)
    )
    assert one.dtype == torch.bool
    assert len(one) == 3
    assert torch.equal(one, again)
    assert not torch.equal(one, other)
    for height, width in ((128, 192), (192, 128)):
        mask = network.draw_mask(torch.Generator(), 2, (height, width))
        assert mask.shape[-2] * width == mask.shape[-1] * height


@pytest.mark.parametrize("name", METHODS)
def test_the_held_out_loss_does_not_depend_on_the_micro_batch(name):
    network = small(name)
    images, mask = batch(network, 5)
    found = [HeldOut(network, images, mask, size, no_autocast) for size in (1, 2, 5)]
    assert [h.loss() for h in found] == pytest.approx([found[0].loss()] * 3, rel=1e-5)
    result = found[1].reconstruct(5)
    assert found[1].baseline == pytest.approx(trivial_loss(network, result))
    assert len(result.prediction) == len(result.mask) == len(network.masked_images(images, mask)) == 5


@pytest.mark.parametrize("name", METHODS)
def test_half_precision_gives_a_finite_loss_and_gradients(name):
    network = small(name)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        result = network(*batch(network, 2))
    assert result.loss.dtype == torch.float32
    result.loss.backward()
    assert all(torch.isfinite(p.grad).all() for p in network.parameters() if p.grad is not None)


@pytest.mark.parametrize(
    "name",
    mostly_slow([name for name in METHODS if name not in ("simmim", "maskfeat")], ["fcmae"]),
)
def test_a_run_killed_in_its_second_stage_ends_with_the_same_weights(name, photos, tmp_path, monkeypatch):
    model, kwargs = MODELS.get(name, VIT)
    stages = {"image_size": None, "stages": "128x3s,192x3s" if name != "ummae" else "128x3s,256x3s"}
    settings = {**TINY, "method": name, "model": model, "model_kwargs": kwargs, **stages}
    settings |= {"decoder": {"width": 32, "depth": 1}, "checkpoint_every_steps": 2}
    whole = fastmim.pretrain(data=photos, out=tmp_path / "whole", **settings).run
    kind, calls = METHODS[name], []
    forward = kind.forward

    def breaks(self, images, mask):
        calls.append(self.training)
        if sum(calls) > 5:
            raise Killed
        return forward(self, images, mask)

    monkeypatch.setattr(kind, "forward", breaks)
    with pytest.raises(Killed):
        fastmim.pretrain(data=photos, out=tmp_path / "run", **settings)
    monkeypatch.setattr(kind, "forward", forward)
    assert fastmim.pretrain(out=tmp_path / "run", resume=True, quiet=True).complete
    assert same(weights(tmp_path / "run"), weights(whole))


@pytest.mark.slow
def test_methods_of_one_model_ask_for_their_own_kernels(photos, tmp_path, monkeypatch):
    monkeypatch.setattr(tuning, "others_compute", lambda threads: False)  # else nothing is kept
    monkeypatch.setenv("FASTMIM_CACHE", str(tmp_path / "cache"))
    for count, method in enumerate(("fastmim", "simmim", "mae"), 1):
        fastmim.pretrain(
            data=photos,
            out=tmp_path / method,
            method=method,
            steps=1,
            **TINY | {"image_size": 64, "kernels": {"threads": 1}},
        )
        assert len(list((tmp_path / "cache" / "kernels").iterdir())) == count
