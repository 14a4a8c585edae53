"""Maps at four strides of any backbone: which layers they come from, their sizes, and their gradients."""

import re
from pathlib import Path

import pytest
import torch
from torch import nn

from conftest import lively
from fastmim.encoders.adapter import Encoder
from fastmim.encoders.build import build_encoder
from fastmim.encoders.intermediates import Layer
from fastmim.encoders.pyramid import STRIDES, FeaturePyramid, choose_levels, fit_image_size, freeze_unused
from fastmim.encoders.sizes import working_sizes
from fastmim.errors import UsageError

SMALL = {
    "vit_tiny_patch16_224": {"embed_dim": 32, "depth": 4, "num_heads": 2},
    "swin_tiny_patch4_window7_224": {"embed_dim": 16, "depths": [1, 1, 1, 1], "num_heads": [1, 2, 2, 4]},
    "resnet10t": {},
    "convnext_atto": {"dims": [8, 16, 24, 32], "depths": [1, 1, 1, 1]},
}
FAMILIES = [
    found[1]
    for line in (Path(__file__).parents[2] / "docs" / "backbones.md").read_text().splitlines()
    if (found := re.match(r"\| \w+ \| ([\w.]+) \| *[\d.]", line))
]


def layers(size: int, *strides: int) -> list[Layer]:
    return [Layer(10 + number, (size // stride, size // stride)) for number, stride in enumerate(strides)]


@pytest.mark.parametrize(
    ("strides", "expected"),
    [
        ((4, 8, 16, 32), [(0, 0), (1, 0), (2, 0), (3, 0)]),
        ((2, 4, 8, 16, 32), [(1, 0), (2, 0), (3, 0), (4, 0)]),
        ((16,) * 12, [(2, 2), (5, 1), (8, 0), (11, -1)]),  # four subsets of three blocks
        ((16,) * 4, [(0, 2), (1, 1), (2, 0), (3, -1)]),
        ((8, 16, 16), [(0, 1), (0, 0), (2, 0), (2, -1)]),  # begins at 8, ends at 16
        ((32,), [(0, 3), (0, 2), (0, 1), (0, 0)]),  # final features only
        ((14,) * 4, [(0, 2), (1, 1), (2, 0), (3, -1)]),
    ],
)
def test_layers_of_the_four_maps(strides, expected):
    levels = choose_levels(layers(448, *strides), (448, 448))
    assert [level.stride for level in levels] == list(STRIDES)
    assert [(level.layer, level.octaves) for level in levels] == expected


def built(name: str, kwargs: dict, size: tuple[int, int]) -> FeaturePyramid:
    encoder = build_encoder(name, (64, 64), model_kwargs=kwargs)
    fit_image_size(encoder, size)
    return FeaturePyramid(encoder, size)


@pytest.mark.parametrize("name", SMALL)
def test_maps_have_their_sizes_and_all_parameters_gradients(name):
    size = (75, 110)  # neither square nor a multiple of any stride
    pyramid = built(name, SMALL[name], size)
    freeze_unused(pyramid)
    maps = pyramid(torch.randn(2, 3, *size))
    for map_, width, stride in zip(maps, pyramid.widths, STRIDES, strict=True):
        assert map_.shape == (2, width, -(-size[0] // stride), -(-size[1] // stride))
    torch.stack([map_.square().mean() for map_ in maps]).sum().backward()
    assert [name for name, p in pyramid.named_parameters() if p.requires_grad and p.grad is None] == []


@pytest.mark.parametrize("name", ["swin_tiny_patch4_window7_224", "resnet10t"])
def test_a_pyramids_maps_are_those_of_its_stages(name):
    """Without a norm, which is one more layer, they are timm's own, whatever their layout."""
    pyramid = built(name, SMALL[name], (64, 96))
    lively(pyramid)
    pyramid.norms = nn.ModuleList(nn.Identity() for _ in STRIDES)
    images = torch.randn(1, 3, 64, 96)
    stages = pyramid.encoder.model.forward_intermediates(images, output_fmt="NCHW", intermediates_only=True)
    for map_, stage in zip(pyramid(images), stages[-4:], strict=True):
        torch.testing.assert_close(map_, stage)


def test_padding_is_black_at_the_bottom_and_on_the_right():
    pyramid = built("resnet10t", {}, (60, 90)).eval()
    assert pyramid.encoder.image_size == (64, 96)
    images = torch.randn(1, 3, 60, 90)
    padded = torch.zeros(1, 3, 64, 96)
    padded[:, :, :60, :90] = images
    whole = built("resnet10t", {}, (64, 96)).eval()
    whole.load_state_dict(pyramid.state_dict())
    for small, large in zip(pyramid(images), whole(padded), strict=True):
        torch.testing.assert_close(small, large[:, :, : small.shape[2], : small.shape[3]])


def test_position_embeddings_are_resampled():
    encoder = build_encoder("vit_tiny_patch16_224", (64, 64), model_kwargs=SMALL["vit_tiny_patch16_224"])
    before = encoder.model.pos_embed.shape[1]
    fit_image_size(encoder, (96, 128))
    assert before == 1 + 16
    assert encoder.model.pos_embed.shape[1] == 1 + 6 * 8


class Plain(nn.Module):
    """A module of the user's own, which gives its last features only."""

    def __init__(self) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(3, 8, 16, 16)

    def forward(self, images):
        return self.convolution(images)


def test_a_module_without_layers_is_resampled_from_its_last_features():
    encoder = Encoder(Plain(), "own", {}, (64, 64), 3)
    fit_image_size(encoder, (64, 80))
    pyramid = FeaturePyramid(encoder, (64, 80))
    assert [map_.shape[2:] for map_ in pyramid(torch.randn(1, 3, 64, 80))] == [
        (16, 20),
        (8, 10),
        (4, 5),
        (2, 3),
    ]
    assert [level.octaves for level in pyramid.levels] == [2, 1, 0, -1]


class Square(Plain):
    def forward(self, images):
        if images.shape[2:] != (64, 64):
            raise ValueError("64 x 64 only")
        return super().forward(images)


def test_a_model_of_one_size_takes_smaller_images_and_refuses_larger_ones():
    encoder = Encoder(Square(), "own", {}, (64, 64), 3)
    fit_image_size(encoder, (40, 64))
    assert encoder.image_size == (64, 64)
    with pytest.raises(UsageError, match=r"image_size = 65x65: own does not run there: .*64 x 64 only"):
        fit_image_size(encoder, (65, 65))


@pytest.mark.slow
@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_gives_four_maps(name):
    side, size = working_sizes(name).best(128), (160, 224)
    encoder = build_encoder(name, (side, side))
    try:
        fit_image_size(encoder, size)
    except UsageError as error:
        pytest.xfail(str(error))
    pyramid = FeaturePyramid(encoder, size)
    freeze_unused(pyramid)
    maps = pyramid(torch.randn(2, 3, *size))
    for map_, width, stride in zip(maps, pyramid.widths, STRIDES, strict=True):
        assert map_.shape == (2, width, -(-size[0] // stride), -(-size[1] // stride))
        assert bool(torch.isfinite(map_).all())
    torch.stack([map_.mean() for map_ in maps]).sum().backward()
    assert [key for key, p in pyramid.named_parameters() if p.requires_grad and p.grad is None] == []


def test_there_are_a_hundred_families():
    assert len(FAMILIES) == 100
