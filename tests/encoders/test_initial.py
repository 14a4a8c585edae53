"""First weights as the released codes draw them."""

import math

import pytest
import timm
import torch
from torch import nn

from fastmim.encoders.build import build_encoder
from fastmim.encoders.initial import draw_xavier
from fastmim.encoders.settings import EncoderConfig
from fastmim.methods.registry import METHODS
from fastmim.recipes.methods import defaults_of

SIZE = (64, 64)


def bound(fan_in, fan_out):
    return math.sqrt(6 / (fan_in + fan_out))


def test_linear_layers_are_uniform_to_xaviers_bound():
    """MAE's initialize_weights: the standard deviations that an audit measured of it for ViT-B."""
    torch.manual_seed(0)
    model = timm.create_model("vit_base_patch16_224", depth=1, num_classes=0)
    draw_xavier(model)
    block = model.blocks[0]
    for weight, fans, std in (
        (model.patch_embed.proj.weight, (3 * 16 * 16, 768), 0.0361),
        (block.attn.qkv.weight, (768, 3 * 768), 0.0255),
        (block.mlp.fc1.weight, (768, 4 * 768), 0.0228),
    ):
        assert weight.abs().max() <= bound(*fans)
        assert weight.std().item() == pytest.approx(std, rel=0.01)
        assert weight.std().item() == pytest.approx(bound(*fans) / math.sqrt(3), rel=0.01)
    assert not block.attn.qkv.bias.any()
    assert model.cls_token.std().item() == pytest.approx(0.02, rel=0.15)


def test_what_is_no_linear_layer_keeps_timms_weights():
    torch.manual_seed(0)
    model = timm.create_model("resnet10t", num_classes=0)
    before = {name: p.clone() for name, p in model.named_parameters()}
    draw_xavier(model)
    assert all(torch.equal(p, before[name]) for name, p in model.named_parameters())


def test_what_begins_at_zero_stays_there():
    layer = nn.Linear(4, 4)
    nn.init.zeros_(layer.weight)
    draw_xavier(nn.Sequential(layer))
    assert not layer.weight.any()


def test_each_method_begins_as_its_own_code_does():
    found = {name: defaults_of(name).encoder.init for name in METHODS}
    timms = {"simmim", "maskfeat", "fcmae"}
    assert found == {name: "timm" if name in timms else "xavier" for name in METHODS}


def test_the_setting_decides():
    kwargs = {"embed_dim": 64, "depth": 1, "num_heads": 2}

    def qkv(model, init):
        torch.manual_seed(0)
        encoder = build_encoder(model, SIZE, model_kwargs=kwargs, config=EncoderConfig(init=init))
        return encoder.model.blocks[0].attn.qkv.weight.std().item()

    assert qkv("vit_tiny_patch16_224", "timm") == pytest.approx(0.02, rel=0.05)
    assert qkv("vit_tiny_patch16_224", "xavier") == pytest.approx(bound(64, 192) / math.sqrt(3), rel=0.05)


def test_a_module_of_ones_own_stays_as_it_is():
    class Mine(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = nn.Conv2d(3, 4, 16, 16)
            self.last = nn.Linear(4, 4)

        def forward(self, images):
            return self.last(self.body(images).permute(0, 2, 3, 1)).permute(0, 3, 1, 2)

    mine = Mine()
    before = mine.last.weight.clone()
    build_encoder(mine, SIZE, config=EncoderConfig(init="xavier"))
    assert torch.equal(mine.last.weight, before)
