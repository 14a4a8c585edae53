import pytest
import torch
import torch.nn.functional as F

from fastmim.mim.losses import constant_prediction, masked_loss

NAMES = ["l2", "l1", "smooth-l1", "cosine"]


@pytest.fixture
def batch():
    generator = torch.Generator().manual_seed(0)
    prediction, target = torch.randn(2, 3, 6, 4, 4, generator=generator)
    mask = torch.rand(3, 4, 4, generator=generator) < 0.6
    return prediction, target, mask


@pytest.mark.parametrize("name", NAMES)
def test_visible_cells_have_no_influence(name, batch):
    prediction, target, mask = batch
    loss = masked_loss(name, prediction, target, mask)
    spoiled = torch.where(mask.unsqueeze(1), prediction, torch.nan)
    assert masked_loss(name, spoiled, target, mask) == loss
    changed = torch.where(mask.unsqueeze(1), prediction + 1, prediction)
    assert masked_loss(name, changed, target, mask) != loss


def test_l2_is_the_mean_squared_error_of_masked_cells(batch):
    prediction, target, mask = batch
    inside = mask.unsqueeze(1).expand_as(target)
    expected = F.mse_loss(prediction[inside], target[inside])
    assert torch.allclose(masked_loss("l2", prediction, target, mask), expected)


@pytest.mark.parametrize("name", NAMES)
def test_perfect_predictions_cost_nothing(name, batch):
    _, target, mask = batch
    assert float(masked_loss(name, target, target, mask)) == pytest.approx(0, abs=1e-6)


def test_channel_weights_scale_each_channel(batch):
    prediction, target, mask = batch
    weights = [2.0, 0, 0, 0, 0, 0]
    first = masked_loss("l2", prediction[:, :1], target[:, :1], mask)
    assert torch.allclose(masked_loss("l2", prediction, target, mask, weights), 2 * first / 6)


def test_no_constant_beats_the_constant_baseline(batch):
    _, target, mask = batch
    constant = constant_prediction(target, mask)
    best = masked_loss("l2", constant, target, mask)
    for shift in (-0.1, 0.05, 0.3):
        assert masked_loss("l2", constant + shift, target, mask) > best
