import io

import pytest
from PIL import Image

from conftest import photo
from fastmim.bench.crops import QUALITIES, SHORT_SIDES, nearness
from fastmim.bench.loader import VIPS, bench_loader, bench_pack_quality, make_images
from fastmim.bench.vips import VipsCrops, has_vips
from fastmim.data.decode.image import decode
from fastmim.data.sources.base import FileImages
from fastmim.data.sources.open import open_images

FILES = "files as they are"
FAST = "files as they are, --crop.decode fast"
PACKED = ["packed, JPEG 144", "packed, JPEG 192", "packed, raw 144"]


def test_every_way_is_measured_and_has_its_target(photos):
    told = []
    lines = bench_loader(str(photos), 1, told.append)
    assert len(told) == 1
    assert "24 JPEGs" in told[0]
    loaders = {line.name: line for line in lines if line.unit == "images/s"}
    assert set(loaders) == {FILES, FAST, *PACKED, *(VIPS if has_vips() else ())}
    for name, line in loaders.items():
        assert line.ratio == line.ours / line.baseline
        assert line.target.startswith("at least ") == (name in (FILES, *PACKED)), "others have no target"
    psnr = {line.name: line for line in lines if line.unit == "dB"}
    hog = {line.name: line for line in lines if line.unit == "HOG differs by"}
    assert set(psnr) == set(hog) == {f"crops, {name}" for name in loaders}
    assert psnr[f"crops, {FILES}"].ours > 40
    assert psnr[f"crops, {FILES}"].met
    assert hog[f"crops, {FILES}"].met
    assert sum(line.unit == "us/image" for line in lines) == 4


def test_crops_of_the_files_themselves_are_near_and_those_of_a_blurred_copy_are_not(tmp_path):
    source = make_images(tmp_path / "made", 8)
    near = nearness(source, source)
    assert near.psnr > 50
    assert near.hog < 0.001
    assert abs(near.gradient - 1) < 0.01
    small = tmp_path / "small"
    small.mkdir()
    for index in range(8):
        half = Image.open(io.BytesIO(source.read(index))).reduce(4)
        half.save(small / f"{index:04d}.png")
    blurred = nearness(source, open_images(str(small)))
    assert blurred.psnr < 35
    assert blurred.hog > 0.01
    assert blurred.gradient < 0.8


def test_turned_files_are_compared_as_they_are_seen(tmp_path):
    names = []
    for index in range(4):
        image = Image.fromarray(photo(index, 200, 300))
        exif = Image.Exif()
        exif[0x0112] = 6
        image.save(tmp_path / f"{index}.jpg", quality=95, exif=exif)
        names.append(f"{index}.jpg")
    source = FileImages(str(tmp_path), names)
    assert nearness(source, source).psnr > 50


def test_packs_are_measured_by_short_side_and_encoding(photos):
    told = []
    lines = bench_pack_quality(str(photos), told.append)
    assert "24 images" in told[0]
    assert len(lines) == 2 + len(SHORT_SIDES) * (len(QUALITIES) + 1)
    found = {line.name: line.ours for line in lines}
    raw = [found[f"short side {side}, raw"] for side in SHORT_SIDES]
    assert raw == sorted(raw, reverse=True), "more pixels are nearer"
    for side in SHORT_SIDES:
        coded = [found[f"short side {side}, JPEG {quality}"] for quality in QUALITIES]
        assert coded == sorted(coded, reverse=True), "finer quantisation is nearer"
    assert found["files"] < 0.004 < found["files, --crop.decode fast"]
    assert [line.name for line in lines if line.met] == ["files"], "only what training reads has a target"


def test_images_are_made_where_none_are_given(tmp_path):
    made = make_images(tmp_path / "made", 20)
    assert len(made) == 20
    assert {decode(made.read(index)).shape for index in range(20)} == {(375, 500, 3)}
    again = make_images(tmp_path / "again", 20)
    assert [made.read(index) for index in range(20)] == [again.read(index) for index in range(20)]


@pytest.mark.parametrize(("margin", "least"), [(None, 40), (1.0, 30)])
def test_crops_by_libvips_are_of_the_same_parts(tmp_path, margin, least):
    pytest.importorskip("pyvips")
    source = make_images(tmp_path / "made", 8)
    assert nearness(source, source, maker=VipsCrops(source, (128, 128), margin)).psnr > least
