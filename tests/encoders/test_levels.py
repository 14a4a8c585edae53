"""Layers are counted by block, for every kind of backbone."""

import pytest
import timm
import torch
from torch import nn

from fastmim.config import FinetuneConfig
from fastmim.encoders.levels import block_levels, parameter_levels
from fastmim.encoders.registry import create, without_memory
from fastmim.train.layer_decay import layer_decay_groups

# Blocks as the papers have them, and one level each for stem and head. The released code of FastMIM counts
# 14, 26, 27, 18 and 54 for the first five.
LEVELS = {
    "vit_base_patch16_224": 12 + 2,
    "swin_base_patch4_window7_224": 2 + 2 + 18 + 2 + 2,
    "cmt_s": 3 + 3 + 16 + 3 + 2,
    "pvt_v2_b2": 3 + 4 + 6 + 3 + 2,
    "pvt_v2_b5": 3 + 6 + 40 + 3 + 2,
    "pvt_large": 3 + 8 + 27 + 3 + 2,
    "twins_svt_large": 2 + 2 + 18 + 2 + 2,
    "convnext_tiny": 3 + 3 + 9 + 3 + 2,
    "resnet50": 3 + 4 + 6 + 3 + 2,
    "poolformer_s12": 2 + 2 + 6 + 2 + 2,
    "efficientformer_l1": 3 + 2 + 6 + 4 + 2,
    "focalnet_tiny_srf": 2 + 2 + 6 + 2 + 2,
}


def built(name):
    return without_memory(lambda: create(name, {"num_classes": 10}))


@pytest.mark.parametrize(("name", "levels"), LEVELS.items())
def test_levels_are_the_blocks_of_the_papers(name, levels):
    found = parameter_levels(built(name))
    assert max(found.values()) + 1 == levels
    assert set(found.values()) == set(range(levels))


def test_levels_rise_through_a_pyramid():
    found = parameter_levels(built("pvt_v2_b2"))
    assert found["patch_embed.proj.weight"] == 0
    assert found["stages.0.blocks.0.attn.q.weight"] == 1
    assert found["stages.1.downsample.proj.weight"] == found["stages.1.blocks.0.attn.q.weight"] == 4
    assert found["stages.3.blocks.2.attn.q.weight"] == 16
    assert found["head.weight"] == 17


def test_lists_beside_the_stages_are_parts_of_them():
    found = block_levels(built("twins_svt_large"))
    assert found["patch_embeds.0.proj.weight"] == 0
    assert found["patch_embeds.1.proj.weight"] == found["blocks.1.0.attn.qkv.weight"] == 3
    assert found["blocks.3.1.norm1.weight"] == 24


def test_a_module_of_ones_own_is_counted_too():
    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(4, 4)

    class Mine(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem = nn.Linear(4, 4)
            self.layers = nn.ModuleList([Block(), Block(), Block()])
            self.norm = nn.LayerNorm(4)

    found = parameter_levels(Mine())
    assert (found["stem.weight"], found["layers.0.linear.weight"], found["layers.2.linear.bias"]) == (0, 1, 3)
    assert found["norm.weight"] == 4
    assert parameter_levels(nn.Linear(4, 4)) is None


def test_rates_fall_by_block():
    model = timm.create_model("pvt_v2_b2", embed_dims=[16, 32, 40, 64], num_classes=3)
    optim = FinetuneConfig(encoder="none", model="pvt_v2_b2").optim
    scale = {
        id(p): group["lr_scale"] for group in layer_decay_groups(model, 0.75, optim) for p in group["params"]
    }
    named = dict(model.named_parameters())
    assert set(scale) == {id(p) for p in named.values()}
    assert scale[id(named["patch_embed.proj.weight"])] == pytest.approx(0.75**17)
    assert scale[id(named["stages.3.blocks.2.attn.q.weight"])] == pytest.approx(0.75)
    assert scale[id(named["head.weight"])] == 1


def test_frozen_parameters_have_no_level():
    model = built("pvt_v2_b0")
    model.head.weight.requires_grad_(False)
    assert "head.weight" not in parameter_levels(model)
    assert isinstance(model.head.weight, torch.nn.Parameter)


def test_blocks_in_groups_are_those_of_convnexts_authors():
    """12 groups of three blocks, each with the downsampling before it, beside stem and head."""
    found = parameter_levels(built("convnextv2_base"), blocks=3)
    assert set(found.values()) == set(range(14))
    expected = {"stem.0.weight": 0, "stem.1.weight": 0, "head.fc.weight": 13}
    expected |= {f"stages.0.blocks.{block}.conv_dw.weight": 1 for block in range(3)}
    expected |= {f"stages.1.blocks.{block}.conv_dw.weight": 2 for block in range(3)}
    expected |= {f"stages.2.blocks.{block}.conv_dw.weight": 3 + block // 3 for block in range(27)}
    expected |= {f"stages.3.blocks.{block}.mlp.fc2.weight": 12 for block in range(3)}
    expected |= {f"stages.{stage}.downsample.1.weight": level for stage, level in ((1, 2), (2, 3), (3, 12))}
    assert {name: found[name] for name in expected} == expected
    assert set(parameter_levels(built("vit_base_patch16_224"), blocks=5).values()) == set(range(5))
