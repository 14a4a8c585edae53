import os
import pickle
import time

import numpy as np
import pytest

from fastmim.data.sources import index
from fastmim.data.sources.base import FileImages, fingerprint
from fastmim.data.sources.names import NameList
from fastmim.data.sources.open import open_images
from fastmim.errors import RunError
from fastmim.system.cache import SWITCH

NAMES = ["a", "", "überlang/ж.jpg", "a b\udcff"]


@pytest.fixture
def tree(tmp_path, monkeypatch):
    """Two folders of six images that seem to have been there for a while, and a cache of one's own."""
    monkeypatch.setenv(SWITCH, str(tmp_path / "cache"))
    monkeypatch.setattr(index, "LEAST_KEPT", 4)
    root = tmp_path / "images"
    for number in range(6):
        path = root / f"class{number % 2}" / f"{number}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    settle(root)
    return root


def settle(root):
    for folder in (root, *(path for path in root.rglob("*") if path.is_dir())):
        earlier = folder.stat().st_mtime - 100
        os.utime(folder, (earlier, earlier))


def listed(root):
    names, _ = index.list_images(root)
    return [names[number] for number in range(len(names))]


def no_walk(*_, **__):
    raise AssertionError("the folder is walked again")


def test_a_list_that_is_mapped_is_the_one_that_was_saved(tmp_path):
    names = NameList(NAMES)
    names.save(tmp_path / "names")
    mapped = NameList.load(tmp_path / "names")
    assert [mapped[number] for number in range(4)] == NAMES
    assert bytes(mapped.joined()) == bytes(names.joined())
    assert [path.name for path in tmp_path.iterdir()] == ["names"]


def test_pickled_a_mapped_list_is_a_path_and_a_missing_file_is_said(tmp_path):
    NameList(f"{number:08d}.jpg" for number in range(50_000)).save(tmp_path / "names")
    pickled = pickle.dumps(FileImages("root", NameList.load(tmp_path / "names")))
    assert len(pickled) < 1000
    assert pickle.loads(pickled).name(49_999) == "00049999.jpg"
    NameList(["another"]).save(tmp_path / "names")
    with pytest.raises(RunError, match="has changed"):
        pickle.loads(pickled)
    (tmp_path / "names").write_bytes(b"damaged")
    with pytest.raises(RunError, match="the index of the images is missing"):
        pickle.loads(pickled)
    assert [pickle.loads(pickle.dumps(NameList(NAMES)))[number] for number in range(4)] == NAMES


def test_a_folder_is_walked_once(tree, monkeypatch):
    first = listed(tree)
    assert first == sorted(f"class{number % 2}/{number}.jpg" for number in range(6))
    monkeypatch.setattr(index.os, "walk", no_walk)
    assert listed(tree) == first
    assert listed(tree / ".." / "images") == first


@pytest.mark.parametrize("change", ["add", "remove", "rename", "folder"])
def test_what_changes_is_seen(tree, change):
    before = listed(tree)
    image = tree / "class1" / "1.jpg"
    if change == "add":
        (tree / "class0" / "9.jpg").touch()
    elif change == "remove":
        image.unlink()
    elif change == "rename":
        image.rename(tree / "class1" / "7.jpg")
    else:
        (tree / "class0" / "deep").mkdir()
        (tree / "class0" / "deep" / "8.jpg").touch()
    after = listed(tree)
    assert after != before
    assert after == sorted(str(path.relative_to(tree)) for path in tree.rglob("*.jpg"))
    settle(tree)
    assert listed(tree) == after == listed(tree)


def test_what_was_changed_just_now_is_not_kept(tree, tmp_path):
    (tree / "class0" / "9.jpg").touch()
    now = time.time()
    os.utime(tree / "class0", (now, now))
    listed(tree)
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize("damage", ["folders", "names", "no names", "read-only", "off"])
def test_a_cache_that_cannot_be_used_is_ignored(tree, tmp_path, monkeypatch, damage):
    expected = listed(tree)
    (place,) = (tmp_path / "cache" / "index").iterdir()
    (names,) = place.glob("*.names")
    if damage == "folders":
        (place / "folders.json").write_text("[1, 2")
    elif damage == "names":
        names.write_bytes(names.read_bytes()[:-3])
    elif damage == "no names":
        names.unlink()
    elif damage == "read-only":
        monkeypatch.setenv(SWITCH, "/proc/nowhere")
    else:
        monkeypatch.setenv(SWITCH, "off")
    assert listed(tree) == expected


def test_a_small_folder_leaves_nothing_behind(tree, tmp_path, monkeypatch):
    monkeypatch.setattr(index, "LEAST_KEPT", 7)
    listed(tree)
    assert not (tmp_path / "cache").exists()


class Named:
    """A source that only knows single names."""

    def __len__(self):
        return len(NAMES)

    def name(self, number):
        return NAMES[number]

    def read(self, number):
        return np.zeros((1, 1, 3), np.uint8)


def test_the_digest_is_the_same_however_names_are_kept(tree):
    walked = fingerprint(open_images(str(tree)))
    assert fingerprint(open_images(str(tree))) == walked  # from the cache
    assert fingerprint(FileImages("", NAMES)) == fingerprint(Named())


def test_a_link_to_a_folder_of_the_data_takes_nothing_from_it(tmp_path):
    """Each image is there once, by the folder that holds it; links to elsewhere are followed."""
    root = tmp_path / "root"
    for name in ("root/zebra/1.png", "root/.store/hidden/2.png", "elsewhere/3.png", "root/deep/all/4.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    for link, target in {
        "ant": root / "zebra",
        "deep/again": root / "deep" / "all",
        "deep/up": root,
        "bee": root / ".store" / "hidden",
        "cat": tmp_path / "elsewhere",
    }.items():
        (root / link).symlink_to(target)
    assert listed(root) == ["bee/2.png", "cat/3.png", "deep/all/4.png", "zebra/1.png"]
