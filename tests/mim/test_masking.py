from fractions import Fraction

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fastmim.errors import UsageError
from fastmim.mim.grids import grid_of, mask_to_cells, mask_to_pixels
from fastmim.mim.masking import blockwise_mask, draw_blocks, masked_count, random_block_mask
from fastmim.mim.settings import Masking


def test_the_count_does_not_suffer_from_floats():
    assert masked_count(100, 0.9) == 90  # in floats int(100 * (1 - 0.9)) is 9, and 91 would be masked
    assert masked_count(64, 0.75) == 48
    assert masked_count(16, 0.6) == 10  # 16 - int(6.4)
    assert masked_count(196, 0.4) == 79  # 196 - int(117.6)
    assert masked_count(196, 0.4, "blockwise") == 78  # int(78.4), as MaskFeat
    assert masked_count(4, 0.1, "blockwise") == 1


@given(st.integers(2, 1000), st.integers(1, 999))
def test_something_is_always_masked_and_something_visible(blocks, thousandths):
    ratio = thousandths / 1000
    count = masked_count(blocks, ratio)
    assert 1 <= count <= blocks - 1
    assert abs(count - blocks * Fraction(thousandths, 1000)) <= 1


def test_one_block_cannot_be_masked():
    with pytest.raises(UsageError, match="1 block"):
        masked_count(1, 0.5)


@settings(deadline=None, max_examples=30)
@given(
    st.sampled_from([(128, 128), (160, 160), (96, 224), (64, 32)]),
    st.sampled_from([8, 16, 24, 32, 64]),
    st.sampled_from([0.5, 0.65, 0.75, 0.85]),
    st.integers(0, 100),
)
def test_every_sample_has_the_exact_count(size, block, ratio, seed):
    h, w = grid_of(size, block)
    if h * w < 2:
        return
    for pattern, draw in (("random", random_block_mask), ("blockwise", blockwise_mask)):
        mask = draw(torch.Generator().manual_seed(seed), 5, size, block, ratio)
        assert mask.shape == (5, h, w)
        assert mask.dtype == torch.bool
        assert mask.sum((1, 2)).eq(masked_count(h * w, ratio, pattern)).all()
        assert mask_to_pixels(mask, block, size).shape == (5, *size)


def test_rectangles_hang_together():
    def borders(pattern):
        generator = torch.Generator().manual_seed(0)
        mask = draw_blocks(Masking(0.4, pattern=pattern), generator, 200, (224, 224), 16)
        changes = (mask[:, 1:] != mask[:, :-1]).sum() + (mask[:, :, 1:] != mask[:, :, :-1]).sum()
        return changes / 200, mask.float().mean(0)

    (blockwise, share), (random, _) = borders("blockwise"), borders("random")
    assert blockwise < 0.5 * random
    assert share.min() > 0.02  # as with BEiT, corners are seldom within a rectangle
    assert not torch.equal(*(blockwise_mask(torch.Generator(), 2, (224, 224), 16, 0.4)))


def test_every_block_is_masked_equally_often():
    mask = random_block_mask(torch.Generator().manual_seed(0), 4000, (64, 64), 16, 0.75)
    share = mask.float().mean(0)
    assert (share - 0.75).abs().max() < 0.04


def test_masks_follow_the_generator_alone():
    draw = lambda seed: random_block_mask(torch.Generator().manual_seed(seed), 3, (64, 64), 8, 0.5)  # noqa: E731
    assert torch.equal(draw(1), draw(1))
    assert not torch.equal(draw(1), draw(2))


@pytest.mark.parametrize(("block", "cell"), [(32, 8), (16, 16), (8, 16), (12, 8), (64, 8)])
def test_a_cell_is_masked_where_all_its_pixels_are(block, cell):
    size = (160, 96)
    mask = random_block_mask(torch.Generator().manual_seed(0), 3, size, block, 0.75)
    pixels = mask_to_pixels(mask, block, size)
    expected = pixels.view(3, size[0] // cell, cell, size[1] // cell, cell).all(4).all(2)
    assert torch.equal(mask_to_cells(mask, block, cell, size), expected)


@pytest.mark.parametrize("ratio", [0.0, 1.0, -1, 2])
def test_a_ratio_out_of_range_is_refused(ratio):
    with pytest.raises(UsageError, match=r"mask\.ratio"):
        Masking(ratio=ratio)
