import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

import fastmim
from conftest import shared
from fastmim.errors import UsageError


def plain_hog(images: torch.Tensor, bins: int, cell: int, normalize: bool) -> torch.Tensor:
    """HOG the usual way, in float64: convolution, atan2, hard binning, scatter."""
    images = images.double()
    batch, channels, height, width = images.shape
    kernel = torch.tensor([[1.0, 0, -1], [2, 0, -2], [1, 0, -1]], dtype=torch.float64)
    padded = F.pad(images, (1, 1, 1, 1), mode="reflect").flatten(0, 1).unsqueeze(1)
    gx = F.conv2d(padded, kernel[None, None]).view_as(images)
    gy = F.conv2d(padded, kernel.T[None, None]).view_as(images)
    gx, gy = (torch.where(g.abs() < 1e-4, 0, g) for g in (gx, gy))
    number = (torch.atan2(gx, gy) / math.pi * bins).floor().long() % bins
    votes = torch.zeros(batch, channels, bins, height, width, dtype=torch.float64)
    votes.scatter_add_(2, number.unsqueeze(2), torch.hypot(gx, gy).unsqueeze(2))
    cells = votes.view(batch, channels, bins, height // cell, cell, width // cell, cell).sum((4, 6))
    if normalize:
        cells = F.normalize(cells, dim=2)
    return cells.flatten(1, 2)


@pytest.mark.parametrize("normalize", [True, False])
def test_equals_the_golden_values(normalize):
    golden = np.load(shared("golden", "hog.npz"))
    expected = torch.from_numpy(golden["hog_l2" if normalize else "hog_raw"])
    result = fastmim.hog(torch.from_numpy(golden["images"]), normalize=normalize)
    assert result.dtype == torch.float32
    assert (result - expected).norm() / expected.norm() < 1e-5


@settings(deadline=None, max_examples=25)
@given(
    st.integers(1, 4),
    st.integers(2, 12),
    st.sampled_from([2, 4, 7, 8]),
    st.integers(1, 4),
    st.integers(1, 4),
    st.booleans(),
    st.integers(0, 1000),
)
def test_equals_the_plain_form(channels, bins, cell, rows, columns, normalize, seed):
    generator = torch.Generator().manual_seed(seed)
    images = torch.randn(2, channels, rows * cell, columns * cell, generator=generator, dtype=torch.float64)
    result = fastmim.hog(images, bins, cell, normalize)
    expected = plain_hog(images, bins, cell, normalize)
    assert result.shape == (2, channels * bins, rows, columns)
    torch.testing.assert_close(result, expected, rtol=1e-6, atol=1e-9)


def test_ignores_contrast_and_brightness_but_not_without_normalisation():
    images = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(fastmim.hog(images), fastmim.hog(3 * images + 1), atol=1e-5)
    assert not torch.allclose(fastmim.hog(images, normalize=False), fastmim.hog(3 * images, normalize=False))


def test_a_flat_image_has_no_orientation_even_with_rounding_noise():
    flat = torch.full((1, 3, 16, 16), 0.3) + 1e-6 * torch.randn(1, 3, 16, 16)
    assert fastmim.hog(flat).abs().max() == 0


def test_half_precision_and_autocast_give_float32():
    images = torch.randn(1, 3, 16, 16)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        result = fastmim.hog(images)
    assert result.dtype == torch.float32
    assert torch.equal(result, fastmim.hog(images))
    assert fastmim.hog(images.bfloat16()).dtype == torch.float32


def test_differentiable_by_choice():
    images = torch.randn(1, 2, 16, 16, dtype=torch.float64, requires_grad=True)
    assert not fastmim.hog(images).requires_grad
    result = fastmim.hog(images, differentiable=True)
    (gradient,) = torch.autograd.grad(result.square().sum() + result[0, 0].sum(), images)
    assert torch.isfinite(gradient).all()
    assert gradient.abs().sum() > 0
    step = 1e-6 * torch.randn_like(images)
    change = fastmim.hog(images.detach() + step)[0, 0].sum() - fastmim.hog(images.detach())[0, 0].sum()
    (slope,) = torch.autograd.grad(fastmim.hog(images, differentiable=True)[0, 0].sum(), images)
    assert float((slope * step).sum()) == pytest.approx(float(change), rel=1e-3)


def test_gradient_is_finite_where_the_image_is_flat():
    images = torch.zeros(1, 1, 16, 16, requires_grad=True)
    (gradient,) = torch.autograd.grad(fastmim.hog(images, differentiable=True).sum(), images)
    assert torch.isfinite(gradient).all()


@pytest.mark.parametrize(
    ("shape", "arguments", "part"),
    [
        ((3, 16, 16), {}, "(B, C, H, W)"),
        ((1, 3, 20, 16), {}, "20x16"),
        ((1, 3, 16, 16), {"bins": 0}, "at least 1 bin"),
        ((1, 3, 16, 16), {"cell": 0}, "at least 1 pixel"),
    ],
)
def test_says_what_does_not_fit(shape, arguments, part):
    with pytest.raises(UsageError, match="hog") as raised:
        fastmim.hog(torch.zeros(shape), **arguments)
    assert part in str(raised.value)
