"""What is measured: every image once, its centre, in order, and unreadable ones told."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fastmim.data.images import open_images
from fastmim.data.views import CenterBox, Views


@given(st.integers(1, 3000), st.integers(1, 3000), st.integers(2, 400), st.integers(2, 400))
def test_the_box_lies_within_the_image_and_in_its_middle(height, width, h, w):
    box = CenterBox((h, w))(height, width)
    assert box.top >= 0
    assert box.top + box.height <= height
    assert box.left >= 0
    assert box.left + box.width <= width
    assert abs(2 * box.top + box.height - height) <= 1
    assert abs(2 * box.left + box.width - width) <= 1


def test_of_large_images_a_border_is_cut_and_of_small_ones_none():
    assert CenterBox((224, 224))(512, 512)[2:] == (448, 448)
    assert CenterBox((384, 384))(768, 768)[2:] == (768, 768)
    assert CenterBox((32, 32))(32, 32)[2:] == (32, 32)
    assert CenterBox((224, 224))(64, 128)[2:] == (64, 64)
    assert CenterBox((64, 128))(200, 400)[2:] == (175, 350)


@pytest.mark.parametrize("workers", [0, 2])
def test_each_image_is_seen_once_in_order_and_broken_ones_are_told(photos, tmp_path, workers):
    names = sorted(photos.rglob("*.jpg"))
    for number, path in enumerate(names[:7]):
        (tmp_path / f"{number}.jpg").write_bytes(path.read_bytes() if number != 3 else b"broken")
    source = open_images(str(tmp_path))
    views = Views(source, np.arange(7), (16, 16), 3, 2, workers, torch.zeros(3), torch.ones(3))
    shown, broken = [], []
    for images, indices, unreadable in views:
        assert images.shape == (len(indices), 3, 16, 16)
        shown += indices.tolist()
        broken += unreadable
    assert shown == [0, 1, 2, 4, 5, 6]
    assert [item.name for item in broken] == ["3.jpg"]
