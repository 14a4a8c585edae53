"""Windows and relative positions of plain transformers: what they change, and what stays as it was."""

import copy

import pytest
import torch

from conftest import lively
from fastmim.encoders.build import build_encoder
from fastmim.encoders.plain_attention import TABLE, set_plain_attention
from fastmim.encoders.pyramid import FeaturePyramid, fit_image_size, freeze_unused
from fastmim.errors import UsageError

KWARGS = {"embed_dim": 32, "depth": 8, "num_heads": 2}


def built(name: str = "vit_tiny_patch16_224", size: tuple[int, int] = (96, 128), **kwargs):
    encoder = build_encoder(name, (64, 64), model_kwargs={**KWARGS, **kwargs})
    fit_image_size(encoder, size)
    lively(encoder)
    return encoder


def outputs(encoder, images):
    with torch.no_grad():
        return encoder(images)


@pytest.mark.parametrize("fused", [True, False])
def test_a_window_as_large_as_the_image_changes_nothing(fused):
    encoder = built()
    images = torch.randn(2, 3, 96, 128)
    before = outputs(encoder, images)
    for block in encoder.model.blocks:
        block.attn.fused_attn = fused
    set_plain_attention(encoder, 8, relative_positions=False)  # the grid is 6 x 8: two rows are padding
    torch.testing.assert_close(outputs(encoder, images), before, rtol=1e-4, atol=1e-4)


def test_a_block_with_windows_sees_its_window_only():
    """Without global blocks, which are the last of each subset, a token depends on its window alone."""
    encoder = built(class_token=False, global_pool="avg", depth=8)
    set_plain_attention(encoder, 2, relative_positions=False)
    for block in encoder.model.blocks[:2]:  # attention that is not saturated, so that every key tells
        torch.nn.init.normal_(block.attn.qkv.weight, std=0.02)
    tokens = torch.randn(1, 48, 32, generator=torch.Generator().manual_seed(0))
    other = tokens.clone()
    other[0, 0] = tokens[0, 0].flip(0)  # row 0, column 0
    window, everywhere = (affected(encoder.model.blocks[number], tokens, other) for number in (0, 1))
    assert {0} < window <= {0, 1, 8, 9}  # rows of eight
    assert not everywhere <= {0, 1, 8, 9}  # the second of eight blocks ends a subset


def affected(block, tokens, other) -> set[int]:
    """Places of the tokens that differ."""
    with torch.no_grad():
        differences = (block(tokens) - block(other)).abs().sum(-1)[0]
    return set((differences > 1e-6).nonzero().ravel().tolist())


def test_windows_are_those_of_a_reference():
    """The first block against the same block on each window by hand, with padding hidden."""
    encoder = built(class_token=False, global_pool="avg", size=(80, 112))  # 5 x 7 tokens
    plain = copy.deepcopy(encoder.model.blocks[0])
    set_plain_attention(encoder, 3, relative_positions=False)
    tokens = torch.randn(2, 35, 32)
    with torch.no_grad():
        found = encoder.model.blocks[0](tokens).unflatten(1, (5, 7))
        for top in (0, 3):
            for left in (0, 3, 6):
                window = tokens.unflatten(1, (5, 7))[:, top : top + 3, left : left + 3]
                alone = plain(window.flatten(1, 2)).unflatten(1, window.shape[1:3])
                torch.testing.assert_close(found[:, top : top + 3, left : left + 3], alone)


def test_relative_positions_begin_at_zero_and_learn():
    encoder = built()
    images = torch.randn(2, 3, 96, 128)
    before = outputs(encoder, images)
    keys = set(encoder.model.state_dict())
    set_plain_attention(encoder, None, relative_positions=True)
    torch.testing.assert_close(outputs(encoder, images), before)
    added = set(encoder.model.state_dict()) - keys
    assert len(added) == 8
    assert all(TABLE in key for key in added)
    encoder(images).square().mean().backward()
    table = encoder.model.blocks[0].attn.get_submodule(TABLE).relative_position_bias_table
    assert table.grad.abs().sum() > 0
    with torch.no_grad():
        table += torch.randn(table.shape)
    assert not torch.allclose(outputs(encoder, images), before, atol=1e-3)


def test_a_pyramid_with_both_has_gradients_everywhere():
    encoder = built()
    set_plain_attention(encoder, 4, relative_positions=True)
    pyramid = FeaturePyramid(encoder, (96, 128))
    freeze_unused(pyramid)
    maps = pyramid(torch.randn(2, 3, 96, 128))
    torch.stack([map_.square().mean() for map_ in maps]).sum().backward()
    assert [name for name, p in pyramid.named_parameters() if p.requires_grad and p.grad is None] == []


@pytest.mark.parametrize(
    ("name", "kwargs"),
    [
        ("resnet10t", {}),
        ("swin_tiny_patch4_window7_224", {"depths": (1, 1, 1, 1)}),
        ("vit_small_patch16_rope_224", {"depth": 1}),
    ],
)
def test_others_are_refused_in_one_line(name, kwargs):
    encoder = build_encoder(name, (64, 64), model_kwargs=kwargs)
    with pytest.raises(UsageError, match=f"vit_windows = 4: {name} is not a plain vision transformer"):
        set_plain_attention(encoder, 4, relative_positions=False)
