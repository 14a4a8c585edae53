"""Tars as they come: what an unpacked one holds is found, and what is not is said."""

import io
import os
import tarfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastmim.data.sources.base import Subset, fingerprint, notes_of
from fastmim.data.sources.open import open_images
from fastmim.data.sources.tars import TarImages
from fastmim.errors import UsageError

BLOCK = 512


def content(number: int) -> bytes:
    """What stands for an image: no two alike, of lengths that are no multiples of a block."""
    return np.random.default_rng(number).bytes(700 + 13 * number)


def entry(name: str, kind: bytes = tarfile.REGTYPE, link: str = "", size: int = 0, **more) -> tarfile.TarInfo:
    member = tarfile.TarInfo(name)
    member.type, member.linkname, member.size = kind, link, size
    for key, value in more.items():
        setattr(member, key, value)
    return member


def write(path: Path, count: int = 6, more=lambda tar: None, form: int = tarfile.GNU_FORMAT) -> Path:
    with tarfile.open(path, "w", format=form) as tar:
        for number in range(count):
            data = content(number)
            tar.addfile(entry(f"c{number % 2}/{number}.jpg", size=len(data)), io.BytesIO(data))
        more(tar)
    return path


def header_at(path: Path, number: int) -> int:
    with tarfile.open(path) as tar:
        return tar.getmembers()[number].offset


def opened(path: Path) -> tuple[dict[str, bytes], str]:
    source = open_images(str(path))
    return {source.name(i): source.read(i) for i in range(len(source))}, "\n".join(notes_of(source))


def unpacked(path: Path, place: Path) -> list[bytes]:
    """What the folder holds that the standard library makes of a tar."""
    with tarfile.open(path) as tar:
        tar.extractall(place, filter="data")
    return sorted(file.read_bytes() for file in place.rglob("*.jpg") if file.is_file())


@pytest.mark.parametrize("form", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT, tarfile.USTAR_FORMAT])
def test_a_plain_tar_has_nothing_to_be_said_of(tmp_path, form):
    found, said = opened(write(tmp_path / "a.tar", form=form))
    assert found == {f"c{n % 2}/{n}.jpg": content(n) for n in range(6)}
    assert not said


def test_the_digest_of_a_plain_tar_is_that_of_its_names(tmp_path):
    names = [f"c{n % 2}/{n}.jpg" for n in range(6)]
    import hashlib

    expected = hashlib.sha256(b"6" + b"".join(name.encode() + b"\0" for name in names)).hexdigest()[:16]
    assert fingerprint(open_images(str(write(tmp_path / "a.tar")))) == expected


def test_links_within_a_tar_are_followed(tmp_path):
    def links(tar):
        tar.addfile(entry("blobs/x", size=4), io.BytesIO(b"blob"))
        tar.addfile(entry("c0/hard.jpg", tarfile.LNKTYPE, "c1/1.jpg"))
        tar.addfile(entry("c1/soft.jpg", tarfile.SYMTYPE, "../c0/hard.jpg"))
        tar.addfile(entry("c1/chain.jpg", tarfile.SYMTYPE, "./soft.jpg"))
        tar.addfile(entry("c1/blob.jpg", tarfile.LNKTYPE, "blobs/x"))
        tar.addfile(entry("latest", tarfile.SYMTYPE, "c0"))
        tar.addfile(entry("through.jpg", tarfile.SYMTYPE, "latest/2.jpg"))

    path = write(tmp_path / "a.tar", more=links)
    found, said = opened(path)
    assert found["c0/hard.jpg"] == found["c1/soft.jpg"] == found["c1/chain.jpg"] == content(1)
    assert found["c1/blob.jpg"] == b"blob"
    assert found["through.jpg"] == content(2)
    assert "left out: links" not in said
    assert sorted(found.values()) == unpacked(path, tmp_path / "out")


def test_links_that_lead_nowhere_are_counted(tmp_path):
    def links(tar):
        tar.addfile(entry("l.jpg", tarfile.SYMTYPE, "/etc/passwd"))
        tar.addfile(entry("up.jpg", tarfile.SYMTYPE, "../../etc/passwd"))
        tar.addfile(entry("gone.jpg", tarfile.LNKTYPE, "c0/none.jpg"))
        tar.addfile(entry("a.jpg", tarfile.SYMTYPE, "b.jpg"))
        tar.addfile(entry("b.jpg", tarfile.SYMTYPE, "a.jpg"))
        tar.addfile(entry("d.jpg", tarfile.CHRTYPE))
        tar.addfile(entry("f.jpg", tarfile.FIFOTYPE))

    found, said = opened(write(tmp_path / "a.tar", more=links))
    assert len(found) == 6
    assert "5 files left out: links to files that are not in the tar" in said
    assert "2 files left out: devices or FIFOs" in said


@pytest.mark.parametrize("number", [1, 3, 5])
def test_a_damaged_header_costs_one_image_and_is_said(tmp_path, number):
    path = write(tmp_path / "a.tar")
    place = header_at(path, number)
    data = bytearray(path.read_bytes())
    data[place + 148 : place + 156] = b"xxxxxxxx"
    path.write_bytes(data)
    found, said = opened(path)
    assert sorted(found.values()) == sorted(content(n) for n in range(6) if n != number)
    assert f"1 damaged header, the first at byte {place:,}" in said


@pytest.mark.parametrize("cut", ["in a header", "in data", "in a long name"])
def test_a_tar_that_is_cut_off_is_refused(tmp_path, cut):
    def longer(tar):
        tar.addfile(entry("d" * 300 + ".jpg", size=3), io.BytesIO(b"abc"))

    path = write(tmp_path / "a.tar", more=longer)
    place = {"in a header": header_at(path, 3) + 100, "in data": header_at(path, 3) + 900}
    place["in a long name"] = header_at(path, 6) + 700
    path.write_bytes(path.read_bytes()[: place[cut]])
    with pytest.raises(UsageError, match="is cut off"):
        open_images(str(path))


def test_a_cut_between_two_entries_is_said(tmp_path):
    path = write(tmp_path / "a.tar")
    path.write_bytes(path.read_bytes()[: header_at(path, 3)])
    found, said = opened(path)
    assert len(found) == 3
    assert "it has no end mark, so it may be cut off after the last of its 3 entries" in said


def test_tars_in_one_file_are_read_to_the_last(tmp_path):
    first, second = write(tmp_path / "a.tar", 3), write(tmp_path / "b.tar", 6)
    both = tmp_path / "both.tar"
    both.write_bytes(first.read_bytes() + second.read_bytes())
    source = open_images(str(both))
    assert len(source) == 9
    assert [source.read(i) for i in range(3, 9)] == [content(n) for n in range(6)]
    assert "2 tars in one file" in notes_of(source)[0]


def test_names_that_stand_twice_are_said(tmp_path):
    """As ``tar -r`` leaves them, which appends a newer file to a tar that has it."""

    def again(tar):
        for name, number in (("c0/0.jpg", 7), ("./c1/1.jpg", 8), ("c2/0.jpg", 9)):
            tar.addfile(entry(name, size=len(content(number))), io.BytesIO(content(number)))

    source = open_images(str(write(tmp_path / "t.tar", 6, again)))
    assert len(source) == 9
    assert [source.read(i) for i in (0, 1, 6, 7)] == [content(n) for n in (0, 1, 7, 8)]
    assert "2 images have the name of an earlier one" in " ".join(notes_of(source))


def test_what_follows_the_end_and_is_no_tar_is_said(tmp_path):
    path = write(tmp_path / "a.tar")
    path.write_bytes(path.read_bytes() + b"x" * 5000)
    found, said = opened(path)
    assert len(found) == 6
    assert "5,000 bytes after its end mark are not a tar" in said


def test_a_hole_after_the_end_costs_no_time(tmp_path):
    path = write(tmp_path / "a.tar")
    with open(path, "ab") as file:
        file.truncate(1 << 42)
    assert len(open_images(str(path))) == 6


def test_hidden_folders_and_those_of_systems_are_no_data(tmp_path):
    def hidden(tar):
        names = [".git/a.jpg", "c0/.cache/b.jpg", "__MACOSX/c0/0.jpg", "c0/@eaDir/t.jpg", "c0/._0.jpg"]
        for name in names:
            tar.addfile(entry(name, size=1), io.BytesIO(b"x"))

    found, said = opened(write(tmp_path / "a.tar", more=hidden))
    assert set(found) == {f"c{n % 2}/{n}.jpg" for n in range(6)}
    assert "5 files left out: hidden, or in hidden folders" in said


def test_other_kinds_of_files_are_counted(tmp_path):
    def others(tar):
        for name in ("a.heic", "b.heic", "notes.txt", "README", "e.avif"):
            tar.addfile(entry(name, size=1), io.BytesIO(b"x"))

    found, said = opened(write(tmp_path / "a.tar", more=others))
    assert "e.avif" in found
    assert "4 files of other kinds were left out: .heic (2)" in said


def test_odd_names_are_names(tmp_path):
    names = [
        "../../etc/evil.jpg",
        "/etc/evil.jpg",
        "a\nb.jpg",
        "caf\udce9.jpg",
        "x" * 5000 + ".jpg",
        "./y.jpg",
    ]

    def odd(tar):
        for name in names:
            tar.addfile(entry(name, size=1), io.BytesIO(b"x"))

    found, _ = opened(write(tmp_path / "a.tar", more=odd))
    assert len(found) == 12
    assert set(names) <= {*found, "/etc/evil.jpg"}


def test_files_with_holes_are_counted(tmp_path):
    def sparse(tar):
        pax = {"GNU.sparse.map": "0,6", "GNU.sparse.size": "99999999999999", "GNU.sparse.numblocks": "1"}
        tar.addfile(entry("s.jpg", size=6, pax_headers=pax), io.BytesIO(b"broken"))

    found, said = opened(write(tmp_path / "a.tar", more=sparse, form=tarfile.PAX_FORMAT))
    assert len(found) == 6
    assert "1 file left out: stored with holes (sparse)" in said


@pytest.mark.parametrize("size", ["-5", "-1024", "-5000"])
def test_a_size_that_leads_back_is_a_damaged_header(tmp_path, size):
    def back(tar):
        tar.addfile(entry("p.jpg", size=6, pax_headers={"size": size}), io.BytesIO(b"broken"))

    found, said = opened(write(tmp_path / "a.tar", more=back, form=tarfile.PAX_FORMAT))
    assert len(found) >= 6
    assert "damaged header" in said


def test_no_tar_and_a_packed_one_are_told_apart(tmp_path):
    (tmp_path / "a.bin").write_bytes(b"no tar" * 1000)
    with pytest.raises(UsageError, match="neither a tar nor parquet"):
        open_images(str(tmp_path / "a.bin"))
    for kind in ("gz", "bz2", "xz"):
        with tarfile.open(tmp_path / f"a.tar.{kind}", f"w:{kind}") as tar:  # type: ignore[call-overload]
            tar.addfile(entry("a.jpg", size=1), io.BytesIO(b"x"))
        with pytest.raises(UsageError, match="unpack it first"):
            open_images(str(tmp_path / f"a.tar.{kind}"))


@settings(max_examples=150, deadline=2000)
@given(st.integers(0, 5), st.integers(0, 511), st.integers(0, 255), st.booleans())
def test_no_header_whatever_it_says_escapes(tmp_path_factory, number, offset, value, repaired):
    path = write(tmp_path_factory.mktemp("fuzz") / "a.tar")
    place = header_at(path, number)
    data = bytearray(path.read_bytes())
    data[place + offset] = value
    if repaired:
        data[place + 148 : place + 156] = b" " * 8
        data[place + 148 : place + 156] = b"%06o\0 " % sum(data[place : place + BLOCK])
    path.write_bytes(data)
    try:
        source = open_images(str(path))
    except UsageError:
        return
    images = {bytes(content(n)) for n in range(6)}
    kept = sum(source.read(i) in images for i in range(len(source)))
    assert kept == 6 or notes_of(source)


def test_a_header_that_claims_records_and_has_none_is_damaged(tmp_path):
    """The type of an image's header is flipped to that of an extended one: its pixels are no records."""
    path = write(tmp_path / "a.tar")
    place = header_at(path, 2)
    for kind in b"xgX":
        data = bytearray(path.read_bytes())
        data[place + 156] = kind
        data[place + 148 : place + 156] = b" " * 8
        data[place + 148 : place + 156] = b"%06o\0 " % sum(data[place : place + BLOCK])
        damaged = tmp_path / f"{kind}.tar"
        damaged.write_bytes(data)
        source = open_images(str(damaged))
        assert len(source) == 5
        assert "damaged header" in " ".join(notes_of(source))


def test_a_part_of_a_tar_keeps_what_is_to_be_said(tmp_path):
    path = write(tmp_path / "a.tar")
    path.write_bytes(path.read_bytes()[: header_at(path, 3)])
    whole = TarImages(str(path))
    assert notes_of(Subset(whole, np.array([0]))) == notes_of(whole) != ()
    assert os.fspath(path) in whole.notes[0]
