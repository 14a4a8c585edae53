"""Groups of uneven windows, and blocks of an image side by side."""

import itertools

import pytest
import torch

from fastmim.encoders.visible.windows import Windows, best_groups
from fastmim.mim.grids import put_blocks, take_blocks


def partitions(items):
    """Every way to part a list."""
    if not items:
        yield []
        return
    first, *others = items
    for count in range(len(others) + 1):
        for together in itertools.combinations(others, count):
            left = [item for item in others if item not in together]
            for rest in partitions(left):
                yield [(first, *together), *rest]


def fewest_pairs(sizes):
    windows = list(range(len(sizes)))
    return min(
        len(parts) * max(sum(sizes[window] for window in part) for part in parts) ** 2
        for parts in partitions(windows)
    )


def test_groups_compare_as_few_pairs_as_can_be():
    generator = torch.Generator().manual_seed(0)
    for _ in range(150):
        count = int(torch.randint(1, 8, (), generator=generator))
        sizes = tuple(torch.randint(1, 50, (count,), generator=generator).tolist())
        size, groups = best_groups(sizes)
        assert sorted(itertools.chain(*groups)) == list(range(count))
        assert max(sum(sizes[window] for window in group) for group in groups) <= size
        assert len(groups) * size**2 == fewest_pairs(sizes), sizes


@pytest.mark.parametrize("shift", [(0, 0), (3, 3), (2, 0)])
def test_every_token_is_in_one_group_with_all_of_its_window(shift):
    places = torch.tensor([1, 4, 6, 11, 13]).repeat(3, 1)
    windows = Windows(places, (4, 4))
    groups = windows.groups(7, (7, 7), shift)
    tokens = 5 * 49
    assert torch.equal(groups.members_GS.flatten()[groups.place_K], torch.arange(tokens))
    spare = groups.members_GS.numel() - tokens
    assert 0 <= spare < 0.4 * tokens
    assert windows.groups(7, (7, 7), shift) is groups
    together = groups.together_GSS.flatten(0, 1)[groups.place_K].sum(1)
    if shift == (0, 0):
        assert (together == 49).all()  # blocks are windows here
    else:
        assert together.max() < 49


def test_layouts_that_are_known_are_planned_together(monkeypatch):
    places, grid = torch.tensor([[1, 4, 6, 11, 13]]), (4, 4)
    sent = []
    to = torch.Tensor.to
    monkeypatch.setattr(torch.Tensor, "to", lambda *a, **k: sent.append(1) or to(*a, **k))
    layouts = set()
    first = Windows(places, grid, layouts=layouts)
    asked = [(7, (7, 7), (0, 0)), (7, (7, 7), (3, 3)), (2, (4, 4), (2, 2))]
    expected = [first.groups(*layout) for layout in asked]
    assert len(sent) == len(layouts) == 3
    again = Windows(places, grid, places[0], layouts)
    found = [again.groups(*layout) for layout in asked]
    assert len(sent) == 4
    assert all(map(torch.equal, itertools.chain(*expected), itertools.chain(*found)))
    assert len(layouts) == 3


def test_images_with_masks_of_their_own_have_no_common_groups():
    with pytest.raises(ValueError, match="the same mask"):
        Windows(torch.tensor([[0, 1], [0, 2]]), (2, 2))


def test_blocks_side_by_side_go_back_to_their_places():
    images = torch.arange(2 * 3 * 6 * 8.0).view(2, 3, 6, 8)
    places = torch.tensor([[0, 5, 11], [2, 3, 4]])
    strip = take_blocks(images, places, 2)
    assert strip.shape == (2, 3, 2, 6)
    assert torch.equal(strip[0, :, :, 2:4], images[0, :, 2:4, 2:4])
    assert torch.equal(strip[1, :, :, :2], images[1, :, :2, 4:6])
    back = put_blocks(strip, places, (3, 4))
    seen = put_blocks(torch.ones_like(strip), places, (3, 4)).bool()
    assert seen.sum() == strip.numel()
    assert torch.equal(back, images * seen)
    assert torch.equal(take_blocks(back, places, 2), strip)
