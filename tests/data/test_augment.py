"""Augmentations are functions of their seeds, and targets stay distributions."""

import pickle
import random

import numpy as np
import pytest
import torch

from conftest import photo
from fastmim.data.settings import AugmentConfig
from fastmim.data.transforms.augment import Mixing, RandAugment, seeded
from fastmim.errors import UsageError


def test_rand_augment_is_a_function_of_its_seeds():
    augment = RandAugment(AugmentConfig(), (48, 64), (0.5, 0.5, 0.5))
    crop = photo(0)
    before = random.getstate(), np.random.get_state()[1].copy()  # noqa: NPY002
    results = [augment(crop, (1, seed)) for seed in range(40)]
    assert random.getstate() == before[0]
    assert np.array_equal(np.random.get_state()[1], before[1])  # noqa: NPY002
    again = pickle.loads(pickle.dumps(augment))  # as a loader's process gets it
    assert all(np.array_equal(again(crop, (1, seed)), result) for seed, result in enumerate(results))
    assert len({result.tobytes() for result in results}) > 20
    assert all(result.shape == crop.shape and result.dtype == np.uint8 for result in results)


def test_the_strongest_never_fails():
    augment = RandAugment(AugmentConfig(rand_magnitude=10, rand_std=5), (48, 64), (0.5, 0.5, 0.5))
    for seed in range(300):
        augment(photo(1), (seed,))


def test_images_that_it_cannot_change_stay():
    augment = RandAugment(AugmentConfig(), (8, 8), (0.5,))
    for crop in (np.zeros((8, 8, 13), np.uint8), np.zeros((8, 8, 3), np.float32)):
        assert augment(crop, (0,)) is crop


@pytest.mark.parametrize("count", [1, 2, 7, 8])
@pytest.mark.parametrize("mixes", [{}, {"mixup": 0.0}, {"cutmix": 0.0}, {"mixup": 0.0, "cutmix": 0.0}])
def test_targets_sum_to_one_and_odd_batches_work(count, mixes):
    mixing = Mixing(AugmentConfig(erase=0.5, **mixes), 5)
    images = torch.randn(count, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(count) % 5
    mixed, targets = mixing(images.clone(), labels, (3, 4))
    assert mixed.shape == images.shape
    assert targets.shape == (count, 5)
    torch.testing.assert_close(targets.sum(1), torch.ones(count))
    torch.manual_seed(0)
    first = mixing(images.clone(), labels, (3, 4))
    torch.manual_seed(0)
    second = mixing(images.clone(), labels, (3, 4))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_without_any_the_images_stay_and_the_targets_are_smoothed():
    plain = AugmentConfig(mixup=0, cutmix=0, erase=0, smoothing=0.1)
    images = torch.randn(3, 3, 8, 8)
    mixed, targets = Mixing(plain, 4)(images, torch.tensor([0, 1, 3]), (0,))
    assert mixed is images
    torch.testing.assert_close(targets[0], torch.tensor([0.925, 0.025, 0.025, 0.025]))


def test_mixed_targets_follow_the_mixed_pixels():
    """Under mixup a pixel and its target are mixed alike."""
    mixing = Mixing(AugmentConfig(mixup=1.0, cutmix=0, smoothing=0, erase=0), 2)
    images = torch.cat([torch.zeros(1, 1, 4, 4), torch.ones(1, 1, 4, 4)])
    mixed, targets = mixing(images, torch.tensor([0, 1]), (5,))
    torch.testing.assert_close(mixed[:, 0, 0, 0], targets[:, 1])


def test_seeds_are_put_back_after_an_error():
    state = random.getstate()
    with pytest.raises(KeyError), seeded((1,)):
        raise KeyError
    assert random.getstate() == state


@pytest.mark.parametrize("setting", [{"rand_magnitude": 11}, {"smoothing": 2}, {"mixup": -1}, {"erase": 1.5}])
def test_values_out_of_range_are_named(setting):
    (name,) = setting
    with pytest.raises(UsageError, match=f"augment.{name}"):
        AugmentConfig(**setting)
