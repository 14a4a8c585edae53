from typing import Any

import pytest
import torch

import fastmim
from fastmim.errors import UsageError
from fastmim.mim.losses import masked_loss
from fastmim.mim.settings import TargetConfig
from fastmim.mim.targets import Hog, Image, Lines, Pixels, Weighted, build_target


def images(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    ("name", "channels", "cell"),
    [("hog", 27, 8), ("pixels", 3, 1), ("pixels-norm", 3, 1), ("hog+pixels", 27 + 192, 8)],
)
def test_shapes(name, channels, cell):
    target = build_target(TargetConfig(name=name), stride=16)
    assert target.channels(3) == channels
    assert target(images(2, 3, 32, 48)).shape == (2, channels, 32 // cell, 48 // cell)


def test_hog_follows_its_settings():
    target = build_target(TargetConfig(bins=6, cell=4, normalize=False), stride=16)
    batch = images(1, 3, 16, 16)
    assert torch.equal(target(batch), fastmim.hog(batch, bins=6, cell=4, normalize=False))


def test_normalised_patches_have_mean_zero_and_variance_one():
    values = Pixels(patch=16)(5 + 3 * images(2, 3, 32, 48))
    patches = values.unfold(2, 16, 16).unfold(3, 16, 16).permute(0, 2, 3, 1, 4, 5).flatten(3)
    assert patches.mean(3).abs().max() < 1e-4
    assert (patches.var(3, correction=1) - 1).abs().max() < 1e-3


def test_two_targets_at_once_add_their_weighted_losses():
    both = Weighted(((Hog(cell=8), 1.0), (Pixels(), 0.25)))
    batch, guess = images(2, 3, 32, 32), torch.randn(2, 3, 32, 32)
    mask = torch.rand(2, 4, 4) < 0.5
    together = masked_loss("l2", both(guess), both(batch), mask, both.channel_weights(3))
    hog = masked_loss("l2", Hog()(guess), Hog()(batch), mask)
    pixels = masked_loss("l2", guess, batch, mask.repeat_interleave(8, 1).repeat_interleave(8, 2))
    assert torch.allclose(together, hog + 0.25 * pixels, rtol=1e-5)
    parts = [values for _, values in both.parts_of(both(batch), 3)]
    assert torch.equal(parts[0], Hog()(batch))
    assert torch.equal(parts[1], batch)


@pytest.mark.parametrize(("stride", "cell"), [(16, 8), (32, 8), (4, 4), (14, 7), (28, 7), (12, 6)])
def test_the_cell_follows_the_stride_where_eight_does_not_fit(stride, cell):
    assert build_target(TargetConfig(), stride).cell == cell


def test_a_cell_that_does_not_fit_is_refused():
    with pytest.raises(UsageError, match=r"target\.cell = 5"):
        build_target(TargetConfig(cell=5), 16)


def test_a_target_says_how_it_is_drawn():
    """Raw pixels give the image back, a vertical edge one line, and a pair its parts."""
    mean, std = (0.4, 0.5, 0.6), (0.2, 0.3, 0.4)
    plain = torch.rand(3, 16, 16, generator=torch.Generator().manual_seed(0))
    scale, shift = torch.tensor(std).view(3, 1, 1), torch.tensor(mean).view(3, 1, 1)
    picture = Pixels().draw((plain - shift) / scale, plain, mean, std)
    assert isinstance(picture, Image)
    torch.testing.assert_close(picture.values_CHW, plain)

    edge = torch.zeros(1, 3, 16, 16)
    edge[..., 8:] = 1
    hog = Hog(cell=16)
    lines = hog.draw(hog(edge)[0], hog(edge)[0], mean, std)
    assert isinstance(lines, Lines)
    assert lines.lengths_Ahw.shape == (9, 1, 1)
    assert lines.lengths_Ahw.argmax() == hog(edge)[0, :9].argmax()

    both = Weighted(((hog, 1.0), (Pixels(), 0.5)))
    assert [type(part) for part, _ in both.parts_of(both(edge), 3)] == [Hog, Pixels]
    assert both.title == "HOG and pixels"
    compiled: Any = both.compile().parts[0][0]
    kept: Any = both.parts[0][0]
    assert compiled.compiled
    assert not kept.compiled
