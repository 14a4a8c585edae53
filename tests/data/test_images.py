import tarfile

import numpy as np
import pytest
from PIL import Image

from conftest import photo
from fastmim.data.decode.image import decode
from fastmim.data.sources.base import fingerprint
from fastmim.data.sources.names import NameList
from fastmim.data.sources.open import open_images
from fastmim.errors import UsageError


def test_names_survive_whatever_they_are():
    names = ["a", "", "überlang/ж.jpg", "a b\udcff"]
    assert [NameList(names)[i] for i in range(4)] == names


def test_a_nested_folder_in_sorted_order(photos, tmp_path):
    source = open_images(str(photos))
    names = [source.name(i) for i in range(len(source))]
    assert len(names) == 24
    assert names == sorted(names)
    assert source.read(3) == (photos / names[3]).read_bytes()


def test_hidden_files_are_left_out_and_links_followed(photos, tmp_path):
    (tmp_path / ".hidden").mkdir()
    Image.fromarray(photo(0)).save(tmp_path / ".hidden" / "a.png")
    Image.fromarray(photo(0)).save(tmp_path / "._b.png")
    (tmp_path / "more").symlink_to(photos)
    (tmp_path / "loop").symlink_to(tmp_path)
    assert len(open_images(str(tmp_path))) == 24


def test_a_tar_holds_the_same_images(photos, tmp_path):
    with tarfile.open(tmp_path / "photos.tar", "w") as tar:
        tar.add(photos, "photos")
    source, folder = open_images(str(tmp_path / "photos.tar")), open_images(str(photos))
    assert len(source) == len(folder)
    assert {source.read(i) for i in range(24)} == {folder.read(i) for i in range(24)}


def test_parquet_and_saved_datasets_hold_the_same_images(photos, tmp_path):
    datasets = pytest.importorskip("datasets")
    files = sorted(str(path) for path in photos.rglob("*.jpg"))
    table = datasets.Dataset.from_dict({"label": list(range(24)), "image": files})
    table = table.cast_column("image", datasets.Image())
    table.save_to_disk(str(tmp_path / "saved"))
    (tmp_path / "parquet").mkdir()
    table.to_parquet(str(tmp_path / "parquet" / "0.parquet"))
    expected = open(files[5], "rb").read()  # noqa: SIM115
    for spec in ("saved", "parquet", "parquet/0.parquet"):
        source = open_images(str(tmp_path / spec))
        assert len(source) == 24
        assert source.read(5) == expected


def test_the_embedded_data():
    photographs = open_images("demo:photos")
    assert len(photographs) >= 16
    for index in range(len(photographs)):
        assert min(decode(photographs.read(index)).shape[:2]) >= 300
    digits = open_images("demo:digits")
    assert len(digits) == 1797
    assert np.asarray(digits.read(0)).shape == (16, 16, 3)


def test_a_fingerprint_sees_a_renamed_file(photos, tmp_path):
    before = fingerprint(open_images(str(photos)))
    assert before == fingerprint(open_images(str(photos)))
    Image.fromarray(photo(0)).save(tmp_path / "a.jpg")
    first = fingerprint(open_images(str(tmp_path)))
    (tmp_path / "a.jpg").rename(tmp_path / "b.jpg")
    assert fingerprint(open_images(str(tmp_path))) != first


def test_what_cannot_be_opened_is_said(photos, tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "a.txt").write_text("x")
    (tmp_path / "a.txt").write_text("x")
    (tmp_path / "bad.parquet").write_text("x")
    (tmp_path / "photos.zip").write_bytes(b"PK")
    for kind in ("tar", "zip"):
        (tmp_path / f"{kind}s").mkdir()
        (tmp_path / f"{kind}s" / f"0.{kind}").write_bytes(b"x")
    with tarfile.open(tmp_path / "photos.tar.gz", "w:gz") as tar:
        tar.add(photos, "photos")
    cases = {
        "nowhere": "does not exist",
        "empty": "holds no images (found: nothing)",
        "texts": "1 .txt",
        "a.txt": "neither a tar nor parquet",
        "bad.parquet": "parquet",
        "photos.zip": "unpack it",
        "tars": "1 .tar); give one of the tars by its name",
        "zips": "1 .zip); unpack",
        "photos.tar.gz": "unpack it first",
    }
    for name, part in cases.items():
        with pytest.raises(UsageError) as raised:
            open_images(str(tmp_path / name))
        assert part in str(raised.value)
    with pytest.raises(UsageError, match="demo:photos or demo:digits"):
        open_images("demo:nothing")
