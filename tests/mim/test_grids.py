import pytest
import torch

from fastmim.errors import UsageError
from fastmim.mim import grids


def test_tokens_and_maps_undo_each_other():
    tokens = torch.randn(2, 12, 5)
    features = grids.tokens_to_map(tokens, (3, 4))
    assert torch.equal(features[0, :, 1, 2], tokens[0, 1 * 4 + 2])
    assert torch.equal(grids.map_to_tokens(features), tokens)


def test_space_and_depth_undo_each_other():
    images = torch.randn(2, 3, 16, 24)
    folded = grids.space_to_depth(images, 8)
    assert folded.shape == (2, 3 * 64, 2, 3)
    assert torch.equal(folded[0, :, 1, 2].view(3, 8, 8), images[0, :, 8:16, 16:24])
    assert torch.equal(grids.depth_to_space(folded, 8), images)


@pytest.mark.parametrize(("stride", "cell"), [(32, 8), (16, 16), (16, 1), (4, 8), (14, 7)])
def test_predictions_reach_the_targets_grid(stride, cell):
    channels = grids.channels_per_token(27, stride, cell)
    size = (2 * stride * max(1, cell // stride), 4 * stride * max(1, cell // stride))
    predictions = torch.randn(2, channels, size[0] // stride, size[1] // stride)
    cells = grids.tokens_to_cells(predictions, stride, cell)
    assert cells.shape == (2, 27, size[0] // cell, size[1] // cell)


def test_a_cell_that_fits_no_token_is_refused_with_those_that_do():
    with pytest.raises(UsageError, match="1, 2, 7, 14"):
        grids.check_cell(8, 14)
