import json
import os
import pickle
import re
import shutil
import subprocess
import sys
import time

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

import fastmim
from conftest import TINY, mostly_slow, photo
from fastmim.cli.entry import main
from fastmim.data.decode.image import decode
from fastmim.data.decode.pixels import UnreadableImage
from fastmim.data.labelled import class_names, open_labelled
from fastmim.data.packing import pack as packing
from fastmim.data.packing.pack import pack, verify
from fastmim.data.sources.base import fingerprint
from fastmim.data.sources.open import open_images
from fastmim.data.sources.packed import PackedImages
from fastmim.errors import RunError, UsageError


@pytest.fixture
def four(monkeypatch):
    """Four images a file, so that 24 are six files."""
    monkeypatch.setattr(packing, "SHARD_IMAGES", 4)


def contents(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("encoding", ["jpeg", "raw"])
def test_order_paths_classes_and_pixels_are_kept(photos, tmp_path, four, encoding):
    manifest = pack(str(photos), tmp_path / "p", 32, encoding)
    assert "images=24 of 24" in repr(manifest)
    assert "files=6, complete=True" in repr(manifest)
    source, packed = open_images(str(photos)), open_images(str(tmp_path / "p"))
    assert isinstance(packed, PackedImages)
    assert [packed.name(i) for i in range(24)] == [source.name(i) for i in range(24)]
    assert class_names("", packed) == class_names("", source)
    assert fingerprint(packed) == fingerprint(source)
    for index in (0, 5, 23):
        small = Image.fromarray(decode(source.read(index))).resize((43, 32), Image.Resampling.BICUBIC)
        pixels = decode(packed.read(index))
        assert pixels.shape == (32, 43, 3)
        assert np.abs(pixels.astype(int) - np.asarray(small)).mean() < (8 if encoding == "jpeg" else 2)
    with pytest.raises(IndexError):
        packed.read(24)


def test_raw_pixels_are_views_of_the_file(photos, tmp_path):
    pack(str(photos), tmp_path / "p", 32, "raw")
    packed = pickle.loads(pickle.dumps(open_images(str(tmp_path / "p"))))
    first, again = packed.read(3), packed.read(3)
    assert np.may_share_memory(first, again)
    assert not first.flags.writeable


def test_small_jpegs_are_kept_as_they_are_and_nothing_is_enlarged(photos, tmp_path):
    pack(str(photos), tmp_path / "p", 48)
    source, packed = open_images(str(photos)), open_images(str(tmp_path / "p"))
    assert packed.read(7) == source.read(7)
    pack(str(photos), tmp_path / "raw", 500, "raw")
    assert np.array_equal(open_images(str(tmp_path / "raw")).read(7), decode(source.read(7)))


@pytest.mark.parametrize("encoding", ["jpeg", "raw"])
def test_datasets_opens_it(photos, tmp_path, four, encoding):
    datasets = pytest.importorskip("datasets")
    pack(str(photos), tmp_path / "p", 32, encoding)
    table = datasets.load_from_disk(str(tmp_path / "p"))
    assert len(table) == 24
    row = table[13]
    assert row["path"] == open_images(str(photos)).name(13)
    assert table.features["label"].int2str(row["label"]) == row["path"].split("/")[0]
    if encoding == "jpeg":
        assert row["image"].size == (43, 32)
    else:
        assert len(row["pixels"]) == row["height"] * row["width"] * row["channels"] == 32 * 43 * 3


def test_parquet(photos, tmp_path, four):
    datasets = pytest.importorskip("datasets")
    pack(str(photos), tmp_path / "p", 32, format="parquet")
    assert sorted(path.suffix for path in tmp_path.rglob("data-*")) == [".parquet"] * 6
    table = datasets.Dataset.from_parquet([str(path) for path in sorted((tmp_path / "p").glob("*.parquet"))])
    assert table[5]["image"].size == (43, 32)
    source = open_images(str(tmp_path / "p"))
    assert len(source) == 24
    assert class_names("", source) == class_names("", open_images(str(photos)))
    assert not verify(tmp_path / "p")


@pytest.mark.parametrize("workers", [1, 2])
def test_a_pack_that_was_stopped_ends_as_one_that_was_not(photos, tmp_path, four, monkeypatch, workers):
    pack(str(photos), tmp_path / "whole", 32)
    calls = []
    real = packing.write_shard

    def stops(*arguments):
        if len(calls) == 3:
            raise KeyboardInterrupt
        calls.append(arguments)
        return real(*arguments)

    monkeypatch.setattr(packing, "write_shard", stops)
    with pytest.raises(KeyboardInterrupt):
        pack(str(photos), tmp_path / "p", 32)
    with pytest.raises(UsageError, match="is incomplete"):
        open_images(str(tmp_path / "p"))
    monkeypatch.setattr(packing, "write_shard", real)
    before = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "p").glob("data-*")}
    assert len(before) == 3
    pack(str(photos), tmp_path / "p", 32, workers=workers)
    after = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "p").glob("data-*")}
    assert before.items() <= after.items()
    assert contents(tmp_path / "p") == contents(tmp_path / "whole")
    pack(str(photos), tmp_path / "p", 32)  # nothing is left to do
    assert contents(tmp_path / "p") == contents(tmp_path / "whole")


def test_a_killed_pack_goes_on_and_leaves_no_process(tmp_path, monkeypatch):
    Image.fromarray(photo(1, 300, 400)).save(tmp_path / "0.png")
    (tmp_path / "images").mkdir()
    for number in range(120):
        (tmp_path / "images" / f"{number:03d}.png").hardlink_to(tmp_path / "0.png")
    code = (
        "import sys; from fastmim.data.packing import pack; pack.SHARD_IMAGES = 8; "
        "pack.pack(sys.argv[1], sys.argv[2], 64, workers=2)"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "images")]
    process = subprocess.Popen([*command, str(tmp_path / "p")], start_new_session=True)
    until = time.monotonic() + 60
    while not list((tmp_path / "p").glob("shards/*.json")) and time.monotonic() < until:
        time.sleep(0.01)
    process.kill()
    process.wait()
    while time.monotonic() < until and alive(process.pid):
        time.sleep(0.05)
    assert not alive(process.pid)
    monkeypatch.setattr(packing, "SHARD_IMAGES", 8)
    for name in ("p", "whole"):
        pack(str(tmp_path / "images"), tmp_path / name, 64, workers=2)
    assert contents(tmp_path / "p") == contents(tmp_path / "whole")


def alive(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True


def test_unreadable_images_are_skipped_and_listed(photos, tmp_path, four):
    folder = tmp_path / "images"
    folder.mkdir()
    for number, path in enumerate(sorted(photos.rglob("*.jpg"))):
        broken = number in (4, 5, 6, 7, 9)
        (folder / f"{number:02d}.jpg").write_bytes(b"no" if broken else path.read_bytes())
    Image.fromarray(photo(0)[..., 0].astype(np.uint16) << 8).save(folder / "deep.png")
    manifest = pack(str(folder), tmp_path / "p", 32)
    listed = [json.loads(line) for line in (tmp_path / "p" / "skipped.jsonl").read_text().splitlines()]
    assert [(entry["index"], entry["image"]) for entry in listed] == [
        (number, f"{number:02d}.jpg") for number in (4, 5, 6, 7, 9)
    ]
    assert listed[0]["reason"] == "not an image in a format that Pillow reads"
    packed = open_images(str(tmp_path / "p"))
    assert len(packed) == sum(shard.rows for shard in manifest.shards) == 20
    assert packed.name(7) == "12.jpg"
    assert packed.name(19) == "deep.png"
    assert class_names("", packed) is None
    assert not verify(tmp_path / "p")


def test_where_nothing_can_be_read_it_is_said(tmp_path):
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "a.jpg").write_text("no")
    with pytest.raises(RunError, match=r"none of the 1 images can be read; the first is a\.jpg"):
        pack(str(tmp_path / "images"), tmp_path / "p")


@pytest.mark.parametrize("encoding", ["jpeg", "raw"])
def test_one_flipped_byte_is_found_and_its_row_named(photos, tmp_path, four, encoding, capsys):
    pack(str(photos), tmp_path / "p", 32, encoding)
    assert main(["pack", "--out", str(tmp_path / "p"), "--verify"]) == 0
    packed = open_images(str(tmp_path / "p"))
    image = packed.read(9)
    payload = image if isinstance(image, bytes) else image.tobytes()
    (file,) = [path for path in (tmp_path / "p").glob("data-*") if payload in path.read_bytes()]
    del packed, image
    content = bytearray(file.read_bytes())
    content[content.index(payload) + len(payload) // 2] ^= 1
    file.write_bytes(content)
    capsys.readouterr()
    assert main(["pack", "--out", str(tmp_path / "p"), "--verify"]) == 1
    printed = capsys.readouterr()
    assert f"{file.name}, row 1 (class0/18.jpg): its checksum" in printed.out
    assert len(printed.err.strip().splitlines()) == 1


@pytest.mark.parametrize("damage", ["cut", "missing", "end"])
def test_a_damaged_file_is_found(photos, tmp_path, four, damage):
    pack(str(photos), tmp_path / "p", 32)
    file = sorted((tmp_path / "p").glob("data-*"))[2]
    content = file.read_bytes()
    if damage == "missing":
        file.unlink()
    else:
        file.write_bytes(content[:-3000] if damage == "cut" else content[:-1] + b"\1")
    (found,) = verify(tmp_path / "p")
    assert found.file == file.name
    if damage != "end":  # what a look at the folder shows is said before a run begins
        with pytest.raises(UsageError, match=f"{file.name} is missing or damaged"):
            open_images(str(tmp_path / "p"))


def test_another_pack_is_not_overwritten_unless_that_is_asked_for(photos, tmp_path, four):
    out = tmp_path / "p"
    pack(str(photos), out, 32)
    with pytest.raises(UsageError, match="short_side = 32, not 40; give another folder, or --overwrite"):
        pack(str(photos), out, 40)
    with pytest.raises(UsageError, match="quality = 85, not 80"):
        pack(str(photos), out, 32, quality=80)
    with pytest.raises(UsageError, match="images = 24, not 12"):
        pack(str(photos / "class0"), out, 32)
    pack(str(photos), out, 40, "raw", overwrite=True)
    assert open_images(str(out)).read(0).shape == (40, 53, 3)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "text.txt").write_text("x")
    with pytest.raises(UsageError, match="holds other files"):
        pack(str(photos), tmp_path / "mine", overwrite=True)


@pytest.mark.parametrize(
    ("terminal", "flags", "shown"),
    [
        (True, [], r"packed.*24/24"),
        (False, [], r"^packed \d+ of 24 images$"),
        (True, ["--quiet"], None),
        (False, ["--quiet"], None),
    ],
)
def test_progress_is_a_bar_on_a_terminal_lines_elsewhere_and_nothing_when_quiet(
    photos, tmp_path, monkeypatch, capsys, terminal, flags, shown
):
    monkeypatch.setattr("fastmim.cli.progress.SECONDS_APART", 0.0)
    if terminal:
        monkeypatch.setenv("FORCE_COLOR", "1")
    out = tmp_path / "p"
    flags = [*flags, "--data", str(photos), "--out", str(out), "--workers", "0", "--short-side", "32"]
    assert main(["pack", *flags]) == 0
    said = capsys.readouterr()
    assert "24 images" in said.out
    assert re.search(shown, said.err, re.MULTILINE) if shown else said.err == ""


@pytest.mark.parametrize(
    ("flags", "part"),
    [
        (["--out", "p"], "data is missing"),
        (["--data", "demo:photos"], "out is missing"),
        (["--out", "p", "--verify"], "was not written by `fastmim pack`"),
        (["--data", "nowhere", "--out", "p"], "nowhere does not exist"),
        (["--data", "demo:digits", "--out", "p", "--short-side", "0"], "short_side = 0"),
        (["--data", "demo:digits", "--out", "p", "--quality", "101"], "quality = 101"),
        (["--data", "demo:digits", "--out", "p", "--quality", "9", "--encoding", "raw"], "quality goes with"),
        (
            ["--data", "demo:digits", "--out", "p", "--format", "parquet", "--encoding", "raw"],
            "parquet needs",
        ),
        (["--data", "demo:digits", "--out", "p", "--in-chans", "13"], "in_chans = 13"),
        (["--data", "demo:digits", "--out", "p", "--workers", "-1"], "workers = -1"),
    ],
)
def test_wrong_usage_is_one_line(flags, part, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["pack", *flags]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert part in line
    assert not (tmp_path / "p").exists()


def test_a_full_disk_is_one_line(photos, tmp_path, monkeypatch, capsys):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(pa, "RecordBatchStreamWriter", full)
    assert main(["pack", "--data", str(photos), "--out", str(tmp_path / "p")]) == 1
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert line.endswith("No space left on device; the same command resumes it")


def test_the_last_line_says_what_was_done(photos, tmp_path, capsys):
    assert main(["pack", "--data", str(photos), "--out", str(tmp_path / "p"), "--short-side", "32"]) == 0
    assert "24 images, 0.0 MB" in capsys.readouterr().out


@pytest.mark.parametrize("encoding", mostly_slow(["jpeg", "raw"], ["jpeg"]))
def test_a_pack_trains(photos, tmp_path, encoding):
    pack(str(photos), tmp_path / "p", 36, encoding)
    result = fastmim.pretrain(data=tmp_path / "p", out=tmp_path / "run", steps=1, **TINY | {"workers": 1})
    assert np.isfinite(result.held_out_loss)


def test_splits_and_classes_of_a_pack_are_those_of_its_source(photos, tmp_path, four):
    for split in ("train", "val"):
        shutil.copytree(photos, tmp_path / "all" / split)
    pack(str(tmp_path / "all"), tmp_path / "p", 32)
    expected, found = (open_labelled(str(tmp_path / name), 0.1, 0) for name in ("all", "p"))
    for ours, theirs in zip(found, expected, strict=True):
        assert ours.classes == theirs.classes == ("class0", "class1")
        assert np.array_equal(ours.labels, theirs.labels)
        assert [ours.source.name(i).partition("/")[2] for i in range(24)] == [
            theirs.source.name(i) for i in range(24)
        ]
    pack(str(photos), tmp_path / "flat", 32)
    training, validation = open_labelled(str(tmp_path / "flat"), 0.25, 0)
    assert (len(training), len(validation)) == (18, 6)


def set_in(values, path, value):
    *folders, last = path
    for key in folders:
        values = values[key]
    values[last] = value


@pytest.mark.parametrize(
    ("path", "value", "part"),
    [
        (("shards", 0, "rows"), 10**9, "cannot have 1000000000 rows"),
        (("shards", 0, "rows"), -5, "shards.0.rows = -5"),
        (("shards", 0, "rows"), "4", "shards.0.rows"),
        (("shards", 0, "rows"), True, "shards.0.rows"),
        (("shards", 0, "bytes"), 1.5, "shards.0.bytes"),
        (("shards", 0, "file"), "../other.arrow", "shards.0.file"),
        (("shards", 0, "file"), "/etc/passwd", "shards.0.file"),
        (("shards", 0, "file"), "", "shards.0.file"),
        (("shards",), {"a": 1}, "shards"),
        (("settings", "quality"), 1000, "settings.quality"),
        (("settings", "encoding"), "pickle", "settings.encoding"),
        (("settings", "short_side"), 0, "settings.short_side"),
        (("settings", "classes"), "os:system", "settings.classes"),
        (("settings",), [], "settings"),
        (("complete",), "yes", "complete"),
        (("version",), 99, "version 99"),
    ],
    ids=str,
)
def test_a_manifest_that_cannot_be_is_one_line(photos, tmp_path, path, value, part):
    pack(str(photos), tmp_path, 32, workers=0)
    file = tmp_path / "fastmim-pack.json"
    values = json.loads(file.read_text())
    set_in(values, path, value)
    file.write_text(json.dumps(values))
    with pytest.raises(UsageError) as error:
        open_images(str(tmp_path))
    assert part in str(error.value)
    assert len(str(error.value).splitlines()) == 1


@pytest.mark.parametrize("text", ["", "[]", "{", "null", "[" * 5000])
def test_a_manifest_that_is_none_is_one_line(photos, tmp_path, text):
    pack(str(photos), tmp_path, 32, workers=0)
    (tmp_path / "fastmim-pack.json").write_text(text)
    with pytest.raises(UsageError) as error:
        open_images(str(tmp_path))
    assert "fastmim-pack.json" in str(error.value)
    assert len(str(error.value).splitlines()) == 1


@pytest.mark.parametrize("encoding", mostly_slow(["jpeg", "raw"], ["raw"]))
def test_a_changed_row_is_never_taken_for_the_image(photos, tmp_path, encoding):
    """Every 97th byte of a file with one bit turned: each row gives its pixels, or is unreadable."""
    pack(str(photos), tmp_path, 32, encoding, workers=0)
    (file,) = tmp_path.glob("*.arrow")
    whole = file.read_bytes()
    source = open_images(str(tmp_path))
    wanted = [decode(source.read(index)).tobytes() for index in range(len(source))]
    found = 0
    for place in range(0, len(whole), max(97, len(whole) // 200)):
        changed = bytearray(whole)
        changed[place] ^= 1
        file.write_bytes(changed)
        try:
            images = PackedImages(tmp_path)
        except UsageError:
            found += 1
            continue
        for index in range(len(wanted)):
            try:
                assert decode(images.read(index)).tobytes() == wanted[index], place
            except (UnreadableImage, UsageError, OSError):  # what a loader takes for an unreadable image
                found += 1
    assert found > 50


def test_an_image_too_long_for_a_jpeg_costs_itself_and_is_named(tmp_path):
    (tmp_path / "data").mkdir()
    for number, (height, width) in enumerate([(4, 70_000), (70_000, 4), (65_500, 2), (8, 140_000), (16, 16)]):
        Image.new("RGB", (width, height), (9, 99, number)).save(tmp_path / "data" / f"{number}.png")
    pack(str(tmp_path / "data"), tmp_path / "p", 8, "jpeg")
    source = open_images(str(tmp_path / "p"))
    assert [source.name(index) for index in range(len(source))] == ["2.png", "4.png"]
    listed = [json.loads(line) for line in (tmp_path / "p" / "skipped.jsonl").read_text().splitlines()]
    assert [line["image"] for line in listed] == ["0.png", "1.png", "3.png"]
    assert all("65500" in line["reason"] and "raw" in line["reason"] for line in listed)
    pack(str(tmp_path / "data"), tmp_path / "r", 8, "raw")
    assert [image.shape[:2] for image in map(open_images(str(tmp_path / "r")).read, range(5))] == [
        (4, 70_000),
        (70_000, 4),
        (65_500, 2),
        (8, 140_000),
        (8, 8),
    ]
