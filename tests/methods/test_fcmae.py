import json

import pytest
import timm
import torch
from timm.layers.grn import GlobalResponseNorm
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import fastmim
from conftest import TINY, batch, lively, weights
from fastmim.config import merge
from fastmim.encoders.build import build_encoder
from fastmim.errors import UsageError
from fastmim.mim.grids import map_to_tokens, spread_mask, take_tokens, visible_places
from fastmim.pretraining import build_method
from fastmim.recipes.methods import defaults_of

DEPTHS = {"depths": [1, 1, 2, 1], "dims": [8, 16, 16, 32]}
MODELS = [("convnextv2_atto", DEPTHS), ("convnext_atto", DEPTHS), ("convnext_tiny", DEPTHS)]


def small(model="convnextv2_atto", model_kwargs=DEPTHS, image_size=(128, 96), **settings):
    torch.manual_seed(0)
    base = {"model": model, "model_kwargs": model_kwargs, "image_size": image_size, "decoder.width": 64}
    return build_method(merge(defaults_of("fcmae"), {**base, **settings}))


def sparse_depthwise(convolution, hidden_Bhw):
    """A submanifold sparse convolution: each visible place gathers its visible neighbours."""

    def forward(x_BChw):
        reach = convolution.kernel_size[0] // 2
        weight = convolution.weight[:, 0]
        out = torch.zeros_like(x_BChw)
        visible = {tuple(place) for place in (~hidden_Bhw).nonzero().tolist()}
        for image, row, column in visible:
            total = convolution.bias.clone()
            for down in range(-reach, reach + 1):
                for right in range(-reach, reach + 1):
                    if (image, row + down, column + right) in visible:
                        neighbour = x_BChw[image, :, row + down, column + right]
                        total = total + weight[:, down + reach, right + reach] * neighbour
            out[image, :, row, column] = total
        return out

    return forward


def sparse_grn(norm, visible_Bhw):
    """Global response normalisation of the visible places alone."""

    def forward(x):
        channels_last = norm.channel_dim == -1
        x_BhwC = x if channels_last else x.permute(0, 2, 3, 1)
        out = []
        for image, visible in zip(x_BhwC, visible_Bhw, strict=True):
            response = image[visible].square().sum(0).sqrt()
            share = response / (response.mean() + norm.eps)
            out.append(image + norm.weight * image * share + norm.bias)
        stacked = torch.stack(out)
        return stacked if channels_last else stacked.permute(0, 3, 1, 2)

    return forward


@pytest.mark.parametrize(("name", "kwargs"), MODELS)
def test_visible_features_are_those_of_sparse_convolutions(name, kwargs, monkeypatch):
    size = (64, 96)
    encoder = build_encoder(name, size, model_kwargs=kwargs)
    model = lively(encoder.model)
    encoder.check_visible()
    images = torch.randn(2, 3, *size)
    hidden = torch.tensor([[[1, 0, 1], [0, 1, 1]], [[0, 0, 1], [1, 1, 1]]]).bool()
    places = visible_places(hidden, 2)
    found = encoder.forward_blocks(images, places)
    dense = take_tokens(map_to_tokens(encoder(images)), places)
    for stage, blocks in enumerate(model.stages):
        there = spread_mask(hidden, 8 >> stage, (16 >> stage, 24 >> stage))
        for module in blocks.modules():
            if isinstance(module, nn.Conv2d) and module.groups > 1:
                monkeypatch.setattr(module, "forward", sparse_depthwise(module, there))
            if isinstance(module, GlobalResponseNorm):
                monkeypatch.setattr(module, "forward", sparse_grn(module, ~there))
    expected = take_tokens(map_to_tokens(encoder(images)), places)
    assert torch.allclose(found, expected, atol=1e-4, rtol=1e-4)
    assert not torch.allclose(found, dense, atol=1e-2)


def test_it_has_its_papers_settings():
    config = defaults_of("fcmae")
    assert (config.image_size, config.mask.ratio, config.target.name, config.target.loss) == (
        224,
        0.6,
        "pixels-norm",
        "l2",
    )
    assert (config.decoder.depth, config.decoder.width) == (1, 512)
    network = small(image_size=(224, 224))
    assert network.block == 32
    mask = network.draw_mask(torch.Generator().manual_seed(0), 5, (224, 224))
    assert (mask.sum((1, 2)) == 30).all()  # 49 - int(49 * 0.4)
    assert not (mask == mask[:1]).all()


def test_little_more_than_what_is_visible_is_computed():
    encoder = build_encoder("convnextv2_atto", (224, 224))
    images = torch.randn(1, 3, 224, 224)
    with torch.no_grad():
        with FlopCounterMode(display=False) as dense:
            encoder(images)
        with FlopCounterMode(display=False) as sparse:
            encoder.forward_blocks(images, torch.arange(19).unsqueeze(0))
    share = sparse.get_total_flops() / dense.get_total_flops()
    assert 19 / 49 < share < 0.5  # the depthwise convolutions are on the whole map


def test_what_is_masked_is_not_seen_and_what_is_visible_not_scored():
    network = small(**{"target.name": "hog"}).eval()
    images, mask = batch(network)
    result = network(images, mask)
    pixels = mask.repeat_interleave(32, 1).repeat_interleave(32, 2).unsqueeze(1)
    other = torch.where(pixels, torch.randn_like(images), images)
    assert torch.equal(network(other, mask).prediction, result.prediction)
    assert torch.equal(network.masked_images(other, mask), network.masked_images(images, mask))
    difference = ((result.prediction - result.target) ** 2).mean(1)
    assert torch.allclose(result.loss, difference[result.mask].mean())
    with torch.no_grad():
        network.decoder.mask_token.add_(1)
    assert not torch.equal(network(images, mask).prediction, result.prediction)


@pytest.mark.parametrize(("name", "kwargs"), [*MODELS, ("pvt_v2_b0", {"depths": [1, 1, 1, 1]})])
@pytest.mark.parametrize(
    "settings", [{}, {"mask.token": "zeros"}, {"target.name": "hog"}, {"decoder.depth": 2}]
)
def test_every_parameter_gets_a_gradient(name, kwargs, settings):
    network = small(name, kwargs, **settings)
    images, mask = batch(network)
    result = network(images, mask)
    assert result.prediction.shape == result.target.shape
    result.loss.backward()
    assert [n for n, p in network.named_parameters() if p.requires_grad and p.grad is None] == []
    hooked = [m for m in network.encoder.modules() if m._forward_hooks or m._forward_pre_hooks]
    assert hooked == []


@pytest.mark.parametrize(
    ("settings", "part"),
    [
        ({"mask.place": "patch"}, r"mask\.place = 'patch': method = fcmae does not use it"),
        ({"mask.size": 48}, r"mask\.size = 48: .* must be a multiple of that"),
        ({"decoder.depth": 0}, r"decoder\.depth = 0"),
        ({"model": "resnet10t", "model_kwargs": {}}, "resnet10t cannot leave blocks out at 128x96"),
        (
            {"model": "swin_tiny_patch4_window7_224", "model_kwargs": {}},
            "attends within windows.*method = greenmim",
        ),
        ({"ummae.secondary_ratio": 0.5}, r"ummae\.secondary_ratio = 0\.5: method = fcmae does not use it"),
    ],
)
def test_what_cannot_be_is_told(settings, part):
    with pytest.raises(UsageError, match=part):
        small(**settings)


@pytest.mark.slow
def test_a_run_goes_through_stages_and_leaves_timms_weights(photos, tmp_path):
    run = tmp_path / "run"
    model = {"model": "convnextv2_atto", "model_kwargs": DEPTHS, "method": "fcmae"}
    settings = {**TINY, **model, "image_size": None, "stages": "64x1s,96x1s"}
    assert fastmim.pretrain(data=photos, out=run, **settings).complete
    origin = json.loads((run / "encoder.json").read_text())
    assert (origin["method"], origin["image_size"]) == ("fcmae", [96, 96])
    timm.create_model(origin["model"], **origin["kwargs"]).load_state_dict(weights(run), strict=True)
    again = fastmim.pretrain(config=run / "config.yaml", out=tmp_path / "again", quiet=True)
    assert again.complete
    assert (run / "encoder.safetensors").read_bytes() == (tmp_path / "again/encoder.safetensors").read_bytes()


def test_a_class_token_takes_no_place():
    kwargs = {"embed_dim": 32, "depth": 1, "num_heads": 2, "pos_embed": "none"}
    encoder = build_encoder("vit_tiny_patch16_224", (64, 64), model_kwargs=kwargs)
    model = lively(encoder.model)
    images = torch.randn(1, 3, 64, 64)
    visible = encoder.forward_blocks(images, torch.tensor([[1, 2]]))
    strip = images[:, :, :16, 16:48]  # without positions, an image of its own
    model.patch_embed.strict_img_size = False
    assert torch.allclose(visible, model.forward_features(strip)[:, 1:], atol=1e-5)
