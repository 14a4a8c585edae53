import json

import pytest
import timm
import torch

import fastmim
from conftest import TINY, Killed, batch, lines, lively, same, weights
from fastmim.config import merge
from fastmim.encoders.build import build_encoder
from fastmim.errors import UsageError
from fastmim.methods.masked.mae import MAE
from fastmim.mim.grids import map_to_tokens, put_tokens, take_tokens, visible_places
from fastmim.pretraining import build_method
from fastmim.recipes.methods import defaults_of

SIZE = (64, 96)
KWARGS = {"embed_dim": 32, "depth": 2, "num_heads": 2}
# A class token, none, registers, positions for patches only, rotary positions, layer scale.
PLAIN = [
    "vit_tiny_patch16_224",
    "vit_base_patch16_gap_224",
    "vit_wee_patch16_reg1_gap_256",
    "deit3_small_patch16_224",
    "eva02_tiny_patch14_224",
    "vit_small_patch16_rope_224",
    "vit_small_patch16_rope_mixed_224",
    "vit_small_patch16_dinov3",
]


def small(**settings):
    torch.manual_seed(0)
    base = {
        "model": "vit_tiny_patch16_224",
        "model_kwargs": KWARGS,
        "image_size": SIZE,
        "decoder": {"depth": 1, "width": 64},
    }
    return build_method(merge(defaults_of("mae"), {**base, **settings}))


@pytest.mark.parametrize("name", PLAIN)
def test_visible_patches_come_out_as_of_the_full_model_with_the_others_removed(name):
    size = (56, 84) if "patch14" in name else SIZE
    encoder = build_encoder(name, size, model_kwargs=KWARGS)
    model = lively(encoder.model)
    images = torch.randn(2, 3, *size)
    grid_h, grid_w = encoder.grid
    mask = torch.rand(2, grid_h, grid_w).flatten(1).argsort(1).argsort(1).view(2, grid_h, grid_w) >= 7
    places = visible_places(mask, 7)
    prefix, visible = encoder.forward_tokens(images, places, lambda tokens: take_tokens(tokens, places))

    # The full model, where nobody can look at what is dropped.
    there = torch.ones(2, encoder.prefix_tokens, dtype=torch.bool)
    seen = torch.cat([there, ~mask.flatten(1)], dim=1)
    full = model.forward_features(images, attn_mask=seen[:, None, None, :].expand(-1, 1, seen.shape[1], -1))
    assert torch.allclose(prefix, full[:, : encoder.prefix_tokens], atol=1e-4)
    expected = take_tokens(full[:, encoder.prefix_tokens :], places)
    assert torch.allclose(visible, expected, atol=1e-4)
    assert not torch.allclose(visible, take_tokens(map_to_tokens(encoder(images)), places), atol=1e-2)

    everything = torch.arange(grid_h * grid_w).expand(2, -1)
    _, all_of_them = encoder.forward_tokens(images, everything, lambda tokens: tokens)
    assert torch.allclose(all_of_them, map_to_tokens(encoder(images)), atol=1e-5)
    assert not any("patch_drop" in key for key in model.state_dict())


@pytest.mark.parametrize(
    ("name", "kwargs"),
    [
        ("swin_tiny_patch4_window7_224", {"depths": [1, 1, 1, 1]}),
        ("resnet10t", {}),
        ("beit_base_patch16_224", {"depth": 1}),
        ("samvit_base_patch16", {"depth": 1}),
    ],
)
def test_a_backbone_that_cannot_leave_patches_out_is_refused_clearly(name, kwargs):
    with pytest.raises(UsageError, match=f"{name} cannot leave patches out.*method = fastmim"):
        build_method(merge(defaults_of("mae"), {"model": name, "model_kwargs": kwargs, "image_size": 224}))


def test_blocks_see_a_quarter_of_the_tokens():
    network = small()
    seen = []
    network.encoder.model.blocks.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].shape))
    images, mask = batch(network)
    network(images, mask)
    assert mask.shape == (2, 4, 6)
    assert (mask.sum((1, 2)) == 18).all()
    assert not torch.equal(mask[0], mask[1])
    assert seen == [(2, 1 + 6, 32)]


@pytest.mark.parametrize("target", ["hog", "pixels", "pixels-norm", "hog+pixels"])
@pytest.mark.parametrize("token", ["learned", "zeros"])
def test_every_parameter_gets_a_gradient_for_every_target(target, token):
    network = small(**{"target.name": target, "mask.token": token})
    result = network(*batch(network))
    assert result.prediction.shape == result.target.shape
    assert result.mask.float().mean() == 0.75
    result.loss.backward()
    named = [(n, p) for n, p in network.named_parameters() if p.requires_grad]
    assert [n for n, p in named if p.grad is None] == []
    assert ("decoder.mask_token" in dict(named)) == (token == "learned")


def test_what_is_dropped_is_not_seen_and_what_is_visible_not_scored():
    network = small(**{"target.name": "hog"}).eval()
    images, mask = batch(network)
    result = network(images, mask)
    pixels = mask.repeat_interleave(16, 1).repeat_interleave(16, 2).unsqueeze(1)
    other = torch.where(pixels, torch.randn_like(images), images)
    assert torch.equal(network(other, mask).prediction, result.prediction)
    assert torch.equal(network.masked_images(other, mask), network.masked_images(images, mask))
    difference = ((result.prediction - result.target) ** 2).mean(1)
    assert torch.allclose(result.loss, difference[result.mask].mean())


def test_the_decoder_puts_every_token_in_its_place():
    mask = torch.tensor([[[True, False, True], [False, True, True]]])
    places = visible_places(mask, 2)
    assert places.tolist() == [[1, 3]]
    tokens = torch.tensor([[[1.0], [2.0]]])
    assert put_tokens(tokens, places, torch.tensor([9.0]), 6).flatten().tolist() == [9, 1, 9, 2, 9, 9]
    assert torch.equal(take_tokens(put_tokens(tokens, places, torch.zeros(1), 6), places), tokens)
    network = small().eval()
    images, mask = batch(network)
    result = network(images, mask)
    first = result.prediction[:, :, :16, :16]
    with torch.no_grad():
        network.decoder.mask_token.add_(1)
    assert not torch.equal(network(images, mask).prediction[:, :, :16, :16], first)


def test_settings_that_it_does_not_use_are_refused():
    with pytest.raises(UsageError, match=r"mask\.place = 'patch': method = mae does not use it"):
        merge(defaults_of("mae"), {"mask.place": "patch"})
    with pytest.raises(UsageError, match=r"mask\.size = 32"):
        small(**{"mask.size": 32})
    with pytest.raises(UsageError, match=r"decoder\.depth = 0"):
        small(**{"decoder.depth": 0})


def test_it_goes_on_at_another_size():
    network = small()
    before = {name: torch.zeros_like(p) for name, p in network.named_parameters()}
    resample = network.set_image_size((96, 96))
    images = torch.randn(2, 3, 96, 96)
    mask = network.draw_mask(torch.Generator().manual_seed(0), 2, (96, 96))
    assert torch.isfinite(network(images, mask).loss)
    after = {name: p.shape for name, p in network.named_parameters()}
    assert {name: tensor.shape for name, tensor in resample(before).items()} == after


RUN = {**TINY, "method": "mae", "image_size": 64, "decoder": {"depth": 1, "width": 32}}


@pytest.fixture(scope="module")
def finished(photos, tmp_path_factory):
    run = tmp_path_factory.mktemp("mae") / "run"
    assert fastmim.pretrain(data=photos, out=run, steps=6, **RUN).complete
    return run


def test_a_run_leaves_timms_weights(finished):
    origin = json.loads((finished / "encoder.json").read_text())
    assert (origin["method"], origin["target"]) == ("mae", "pixels-norm")
    model = timm.create_model(origin["model"], **origin["kwargs"]).eval()
    model.load_state_dict(weights(finished), strict=True)
    loaded = fastmim.load_encoder(finished).eval()
    images = torch.randn(2, 3, 64, 64)
    assert torch.equal(model.forward_features(images), loaded.forward_features(images))
    assert "<td>mae</td>" in (finished / "report.html").read_text()


def test_a_run_that_broke_off_ends_like_one_that_did_not(finished, photos, tmp_path, monkeypatch):
    forward, calls = MAE.forward, []

    def breaks(self, images, mask):
        if self.training:
            calls.append(1)
            if len(calls) > 4:
                raise Killed
        return forward(self, images, mask)

    monkeypatch.setattr(MAE, "forward", breaks)
    settings = {**RUN, "checkpoint_every_steps": 3}
    with pytest.raises(Killed):
        fastmim.pretrain(data=photos, out=tmp_path / "run", steps=6, **settings)
    monkeypatch.setattr(MAE, "forward", forward)
    assert fastmim.pretrain(out=tmp_path / "run", resume=True, quiet=True).complete
    assert same(weights(tmp_path / "run"), weights(finished))
    assert lines(tmp_path / "run")[-1]["loss"] == lines(finished)[-1]["loss"]
