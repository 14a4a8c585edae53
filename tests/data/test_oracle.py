"""The whole decoding path against values worked out by hand, over formats, modes, bits, photometric
interpretations, pages, subsampling, orientations and alpha."""

import io
import struct
import zlib

import numpy as np
import pytest
import tifffile
from PIL import Image

from conftest import encoded, mostly_slow, photo, whole
from fastmim.data.decode.image import crop_and_resize, decode, shrink
from fastmim.data.decode.pixels import UnreadableImage
from fastmim.data.decode.resize import Box
from fastmim.data.sources.open import open_images

SIDE = 32


def ramp(levels: int) -> np.ndarray:
    """(SIDE, SIDE): every level, or 1,024 of them, from left to right and down."""
    return (np.arange(SIDE * SIDE) * (levels - 1) // (SIDE * SIDE - 1)).reshape(SIDE, SIDE)


def as_8_bits(pixels: np.ndarray) -> np.ndarray:
    return pixels.astype(float) * (1 if pixels.dtype == np.uint8 else 255)


def agree(data: bytes, chans: int, truth: np.ndarray, tolerance: float = 1.01) -> None:
    """Whole, as a crop of all, and as a crop of a part."""
    truth = truth[..., None] if truth.ndim == 2 else truth
    truth = np.broadcast_to(truth, (*truth.shape[:2], chans)).astype(float)
    height, width = truth.shape[:2]
    box = Box(3, 5, height - 8, width - 10)
    part = crop_and_resize(data, lambda h, w: box, (box.height, box.width), chans)
    for got, wanted in (
        (decode(data, chans), truth),
        (crop_and_resize(data, whole, (height, width), chans), truth),
        (part, truth[3:-5, 5:-5]),
    ):
        assert got.shape == wanted.shape
        assert np.abs(as_8_bits(got) - wanted).max() <= tolerance


def refused(data: bytes, chans: int = 3) -> str:
    reasons = []
    for read in (decode, lambda d, c: crop_and_resize(d, whole, (8, 8), c), lambda d, c: shrink(d, 8, c)):
        with pytest.raises(UnreadableImage) as raised:
            read(data, chans)
        reasons.append(str(raised.value))
    return reasons[0]


def read_or_refused(read, data: bytes) -> bool:
    """Whether ``data`` gives RGB pixels or a reason, and nothing else."""
    try:
        return read(data).shape[2] == 3
    except UnreadableImage as error:
        return str(error) != ""


def packed_rows(samples: np.ndarray, bits: int) -> bytes:
    """(H, W * S) -> rows of samples of so many bits, the first in the highest bits, each row whole bytes."""
    shifts = np.arange(bits - 1, -1, -1)
    wide = (samples.astype(np.int64)[..., None] >> shifts & 1).astype(np.uint8)
    return np.packbits(wide.reshape(len(samples), -1), axis=1).tobytes()


def tiff(
    pages: list[np.ndarray],
    bits: int,
    photometric: int,
    extra: tuple[int, ...] = (),
    colormap: np.ndarray | None = None,
    sample_format: int = 1,
    orientation: int | None = None,
    nodata: str | None = None,
) -> bytes:
    """A TIFF made by hand, uncompressed: pages of (H, W) or (H, W, S), in order."""
    file = bytearray(b"II*\0\0\0\0\0")
    link = 4
    for page in pages:
        height, width = page.shape[:2]
        samples = page.shape[2] if page.ndim == 3 else 1
        rows = page.reshape(height, -1)
        content = (
            rows.tobytes() if sample_format == 3 or bits in (32, 64) else
            rows.astype(f"<i{bits // 8}" if sample_format == 2 else f"<u{max(bits // 8, 1)}").tobytes()
            if bits % 8 == 0 else packed_rows(rows, bits)
        )  # fmt: skip
        strip = len(file)
        file += content + b"\0" * (len(content) % 2)
        entries = {
            256: ("I", [width]), 257: ("I", [height]), 258: ("H", [bits] * samples), 259: ("H", [1]),
            262: ("H", [photometric]), 273: ("I", [strip]), 277: ("H", [samples]), 278: ("I", [height]),
            279: ("I", [len(content)]), 339: ("H", [sample_format] * samples),
        }  # fmt: skip
        if orientation:
            entries[274] = ("H", [orientation])
        if colormap is not None:
            entries[320] = ("H", colormap.ravel().tolist())
        if extra:
            entries[338] = ("H", list(extra))
        if nodata:
            entries[42113] = ("s", nodata.encode() + b"\0")
        table = b""
        for tag, (kind, values) in sorted(entries.items()):
            raw = values if kind == "s" else struct.pack(f"<{len(values)}{kind}", *values)
            if len(raw) > 4:
                place = len(file)
                file += raw + b"\0" * (len(raw) % 2)
                raw = struct.pack("<I", place)
            code = {"H": 3, "I": 4, "s": 2}[kind]
            table += struct.pack("<HHI", tag, code, len(values)) + raw.ljust(4, b"\0")
        file[link : link + 4] = struct.pack("<I", len(file))
        file += struct.pack("<H", len(entries)) + table
        link = len(file)
        file += b"\0\0\0\0"
    return bytes(file)


@pytest.mark.parametrize("pages", [1, 2, 3, 4])
@pytest.mark.parametrize("photometric", [0, 1], ids=["white is zero", "black is zero"])
@pytest.mark.parametrize("bits", range(1, 17))
def test_grey_tiffs_of_every_depth(bits, photometric, pages):
    if bits not in (1, 2, 4, 8, 16):
        pytest.importorskip("imagecodecs")
    stored = ramp(2**bits)
    truth = stored * 255 / (2**bits - 1)
    truth = 255 - truth if photometric == 0 else truth
    data = tiff([stored] * pages, bits, photometric)
    agree(data, 1, truth)
    agree(data, 3, truth)


@pytest.mark.parametrize("bits", range(2, 17))
def test_rgb_tiffs_of_every_depth(bits):
    if bits not in (8, 16):
        pytest.importorskip("imagecodecs")
    grey = ramp(2**bits)
    stored = np.dstack([grey, grey[::-1], grey.T])
    truth = stored * 255 / (2**bits - 1)
    agree(tiff([stored], bits, 2), 3, truth)
    agree(tiff([stored], bits, 2), 1, truth @ [0.299, 0.587, 0.114], 1.6)


@pytest.mark.parametrize("pages", [1, 2, 3])
@pytest.mark.parametrize("bits", [1, 2, 4, 8, 16])
def test_palette_tiffs_of_any_pages(bits, pages):
    if bits == 16:
        pages = 1
    stored = ramp(2**bits)
    colours = np.random.default_rng(bits).integers(0, 256, (3, 2**bits))
    truth = np.moveaxis(colours[:, stored], 0, -1)
    agree(tiff([stored] * pages, bits, 3, colormap=colours * 257), 3, truth)


@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize("meaning", [0, 1, 2], ids=["unspecified", "premultiplied", "alpha"])
def test_a_fourth_sample_of_rgb_tiffs(bits, meaning):
    top = 2**bits - 1
    colours = np.dstack([ramp(256), ramp(256)[::-1], ramp(256).T]) / 255
    alpha = (ramp(256)[:, ::-1] / 255)[..., None]
    stored = np.rint(np.dstack([colours * alpha if meaning == 1 else colours, alpha]) * top).astype(int)
    truth = 255 * (colours if meaning == 0 else colours * alpha + 1 - alpha)
    agree(tiff([stored], bits, 2, extra=(meaning,)), 3, truth, 3 if meaning == 1 and bits == 8 else 1.6)


@pytest.mark.parametrize("bits", [8, 16])
def test_ink_tiffs(bits):
    inks = np.dstack([ramp(256), ramp(256)[::-1], ramp(256).T, ramp(256) // 2]) / 255
    truth = 255 * (1 - inks[..., :3]) * (1 - inks[..., 3:])
    agree(tiff([np.rint(inks * (2**bits - 1)).astype(int)], bits, 5), 3, truth, 2.5)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize("samples", [1, 3])
def test_turned_tiffs(orientation, bits, samples):
    stored = np.dstack([ramp(256)[:24]] * samples) if samples > 1 else ramp(256)[:24]
    turned = {
        1: lambda a: a, 2: lambda a: a[:, ::-1], 3: lambda a: a[::-1, ::-1], 4: lambda a: a[::-1],
        5: lambda a: a.swapaxes(0, 1), 6: lambda a: a.swapaxes(0, 1)[:, ::-1],
        7: lambda a: a.swapaxes(0, 1)[::-1, ::-1], 8: lambda a: a.swapaxes(0, 1)[::-1],
    }[orientation]  # fmt: skip
    data = tiff([stored * (2**bits - 1) // 255], bits, 2 if samples == 3 else 1, orientation=orientation)
    agree(data, 3, turned(stored))


@pytest.mark.parametrize(
    ("stored", "bits", "sample_format", "chans", "reason"),
    [
        (ramp(256).astype("<u4"), 32, 1, 3, "range is unknown"),
        (ramp(256).astype("<i4"), 32, 2, 1, "range is unknown"),
        (ramp(256).astype("<u8"), 64, 1, 3, "range is unknown"),
        (ramp(256) - 128, 8, 2, 3, "signed"),
        (ramp(65536) - 32768, 16, 2, 3, "signed"),
        (ramp(256).astype("<f4"), 32, 3, 3, "floating-point"),
        (np.full((SIDE, SIDE), -3.4028235e38, "<f4"), 32, 3, 1, "missing"),
        (np.full((SIDE, SIDE), np.inf, "<f4"), 32, 3, 1, "not finite"),
    ],
    ids=["uint32", "int32", "uint64", "int8", "int16", "float32", "no data", "infinite"],
)
def test_tiffs_whose_range_nobody_knows(stored, bits, sample_format, chans, reason):
    assert reason in refused(tiff([stored], bits, 1, sample_format=sample_format), chans)


def test_a_tiff_with_pixels_that_its_writer_calls_missing():
    stored = ramp(256).astype("<f4") / 255
    agree(tiff([stored], 32, 1, sample_format=3, nodata="-9999"), 1, 255 * stored)
    stored[0, :8] = -9999
    assert "GDAL_NODATA -9999" in refused(tiff([stored], 32, 1, sample_format=3, nodata="-9999"), 1)


@pytest.mark.parametrize(
    "options",
    [
        {"compression": "png"},
        {"compression": "jpegxl"},
        {"compression": "webp", "compressionargs": {"lossless": True}},
        {"compression": "zstd", "predictor": True},
        {"compression": "packbits", "predictor": True},
        {"bigtiff": True, "byteorder": ">"},
        {"bigtiff": True, "byteorder": "<"},
    ],
    ids=str,
)
def test_tiffs_that_pillow_cannot_open_are_read(options):
    pixels = photo(0, SIDE, SIDE)
    file = io.BytesIO()
    try:
        tifffile.imwrite(file, pixels, photometric="rgb", **options)
    except (ImportError, KeyError, ValueError) as error:
        pytest.skip(f"cannot be written here: {error}")
    assert np.array_equal(decode(file.getvalue()), pixels)


def test_a_premultiplied_grey_is_put_on_white():
    grey, alpha = photo(0, SIDE, SIDE)[..., 0], photo(1, SIDE, SIDE)[..., 1]
    stored = np.stack([np.rint(grey / 255.0 * alpha).astype(np.uint8), alpha], axis=-1)
    file = io.BytesIO()
    tifffile.imwrite(
        file, stored, photometric="minisblack", extrasamples=["assocalpha"], planarconfig="contig"
    )
    wanted = np.clip(stored[..., 0].astype(float) + 255 - alpha, 0, 255)
    found = decode(file.getvalue()).astype(float)
    assert np.abs(found - wanted[..., None]).max() <= 1


@pytest.mark.parametrize("compression", ["tiff_lzw", "tiff_adobe_deflate", "packbits", "jpeg", "group4"])
@pytest.mark.parametrize("mode", ["1", "L", "RGB", "CMYK", "P"])
def test_compressed_tiffs_are_as_pillow_has_them(mode, compression):
    if (compression == "group4") != (mode == "1") or (compression == "jpeg" and mode == "P"):
        pytest.skip("no such file")
    image = Image.fromarray(photo(0)).convert(mode)
    data = encoded(image, "TIFF", compression=compression)
    with Image.open(io.BytesIO(data)) as opened:
        truth = np.asarray(opened.convert("RGB"))
    agree(data, 3, truth)


@pytest.mark.parametrize(
    "options", [{"tile": (16, 16)}, {"planarconfig": "separate"}, {"bigtiff": True}], ids=str
)
@pytest.mark.parametrize("kind", [np.uint8, np.uint16])
def test_tiffs_in_tiles_and_planes(kind, options):
    stored = np.dstack([ramp(256), ramp(256)[::-1], ramp(256).T]).astype(kind)
    scale = 257 if kind is np.uint16 else 1
    array = stored * kind(scale)
    if "planarconfig" in options:
        array = np.moveaxis(array, -1, 0)
    buffer = io.BytesIO()
    tifffile.imwrite(buffer, array, photometric="rgb", **options)
    agree(buffer.getvalue(), 3, stored)


def chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def png(samples: np.ndarray, bits: int, colour: int, *chunks: bytes) -> bytes:
    """A PNG made by hand: (H, W) or (H, W, S) of samples of so many bits."""
    height, width = samples.shape[:2]
    rows = packed_rows(samples.reshape(height, -1), bits)
    row = len(rows) // height
    raw = b"".join(b"\0" + rows[y * row : (y + 1) * row] for y in range(height))
    head = struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0)
    body = b"".join(chunks) + chunk(b"IDAT", zlib.compress(raw))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + body + chunk(b"IEND", b"")


@pytest.mark.parametrize("bits", [1, 2, 4, 8, 16])
@pytest.mark.parametrize("clear", [False, True], ids=["opaque", "a transparent grey"])
def test_grey_pngs(bits, clear):
    stored = ramp(2**bits)
    key = int(stored[SIDE // 2, 3])
    truth = stored * 255 / (2**bits - 1)
    if clear:
        truth = np.where(stored == key, 255, truth)
    chunks = [chunk(b"tRNS", struct.pack(">H", key))] if clear else []
    agree(png(stored, bits, 0, *chunks), 3, truth)
    agree(png(stored, bits, 0, *chunks), 1, truth)


@pytest.mark.parametrize("bits", [8, 16])
def test_rgb_pngs_with_a_transparent_colour(bits):
    stored = np.dstack([ramp(2**bits), ramp(2**bits)[::-1], ramp(2**bits).T])
    key = stored[4, 5]
    stored[9, 9] = key + np.array([0, 0, 1 if key[2] < 2**bits - 1 else -1])  # as near as it can be
    truth = stored * 255 / (2**bits - 1)
    truth[(stored == key).all(-1)] = 255
    agree(png(stored, bits, 2, chunk(b"tRNS", struct.pack(">HHH", *key.tolist()))), 3, truth)


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
def test_palette_pngs_with_transparent_entries(bits):
    stored = ramp(2**bits)
    colours = np.random.default_rng(bits).integers(0, 256, (2**bits, 3), np.uint8)
    alpha = np.random.default_rng(9).integers(0, 256, 2**bits, np.uint8)
    truth = colours[stored] * (alpha[stored] / 255)[..., None] + 255 - alpha[stored][..., None]
    chunks = chunk(b"PLTE", colours.tobytes()), chunk(b"tRNS", alpha.tobytes())
    agree(png(stored, bits, 3, *chunks), 3, truth, 1.6)


@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize("colour", [4, 6], ids=["grey", "rgb"])
def test_pngs_with_alpha(bits, colour):
    top = 2**bits - 1
    inks = [ramp(top + 1)] if colour == 4 else [ramp(top + 1), ramp(top + 1)[::-1], ramp(top + 1).T]
    stored = np.dstack([*inks, ramp(top + 1)[:, ::-1]])
    alpha = stored[..., -1:] / top
    truth = 255 * (stored[..., :-1] / top * alpha + 1 - alpha)
    agree(png(stored, bits, colour), 3, truth, 2.1)


def bmp(bgra: np.ndarray, header: int) -> bytes:
    """32 bits with masks for all four channels, of a header of 56 (V3), 108 (V4) or 124 bytes (V5)."""
    height, width = bgra.shape[:2]
    pixels = bgra[::-1].tobytes()
    dib = struct.pack("<IiiHHIIiiII", header, width, height, 1, 32, 3, len(pixels), 2835, 2835, 0, 0)
    dib += struct.pack("<IIII", 0xFF0000, 0xFF00, 0xFF, 0xFF000000)
    dib = (dib + (b"BGRs" if header > 56 else b"")).ljust(header, b"\0")
    return b"BM" + struct.pack("<IHHI", 14 + header + len(pixels), 0, 0, 14 + header) + dib + pixels


@pytest.mark.parametrize("header", [56, 108, 124])
def test_bmps_with_an_alpha_channel_that_nobody_filled(header):
    picture = photo(3, SIDE, SIDE)
    clear = np.dstack([picture[..., ::-1], np.zeros((SIDE, SIDE), np.uint8)])
    agree(bmp(clear, header), 3, picture)
    agree(bmp(clear, header), 1, picture @ [0.299, 0.587, 0.114], 1.6)
    half = np.dstack([picture[..., ::-1], np.full((SIDE, SIDE), 128, np.uint8)])
    half[0, 0, 3] = 0  # a crop elsewhere has no pixel of alpha 0, and one of nothing else
    truth = picture * (128 / 255) + 127
    truth[0, 0] = 255
    agree(bmp(half, header), 3, truth, 1.6)
    clear[-1, -1, 3] = 255
    assert (decode(bmp(clear, header))[0] == 255).all()


EXIF_DAMAGES = {
    "short": b"II*\0",
    "garbage": bytes(range(200)),
    "odd type": None,  # an orientation beside a date that is a fraction
    "empty": b"",
}


def exif_with_odd_type() -> bytes:
    head = b"II*\0" + struct.pack("<I", 8) + struct.pack("<H", 2)
    head += struct.pack("<HHIHH", 0x0112, 3, 1, 6, 0) + struct.pack("<HHII", 0x0132, 5, 1, 38)
    return head + b"\0\0\0\0" + struct.pack("<II", 1, 2)


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "JPEG"])
@pytest.mark.parametrize("damage", EXIF_DAMAGES)
def test_damaged_exif_costs_no_pixel(kind, damage):
    exif = EXIF_DAMAGES[damage] if damage != "odd type" else exif_with_odd_type()
    image = Image.fromarray(photo(4, 40, 40))
    options = {"lossless": True} if kind == "WEBP" else {"quality": 95}
    plain = encoded(image, kind, **options)
    prefixed = b"Exif\0\0" + exif if kind in ("JPEG", "WEBP") else exif
    if kind == "PNG":
        data = plain[:33] + chunk(b"eXIf", exif) + plain[33:]
    elif not exif:
        pytest.skip("written as none")
    else:
        data = encoded(image, kind, exif=prefixed, **options)
    truth = decode(plain)
    turned = damage == "odd type"
    agree(data, 3, np.rot90(truth, -1) if turned else truth)


def xmp(orientation: int) -> bytes:
    return (
        '<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">'
        f'<rdf:Description xmlns:tiff="http://ns.adobe.com/tiff/1.0/" tiff:Orientation="{orientation}"/>'
        "</rdf:RDF></x:xmpmeta>"
    ).encode()


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "EXIF and XMP"])
def test_orientation_in_xmp_turns_every_format_alike(kind, orientation):
    image = Image.fromarray(photo(5, 30, 44))
    plain = encoded(image, kind if kind in ("PNG", "WEBP") else "JPEG", lossless=True, quality=95)
    body = xmp(orientation)
    if kind == "PNG":
        text = chunk(b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + body)
        data = plain[:33] + text + plain[33:]
    elif kind == "WEBP":
        data = encoded(image, "WEBP", lossless=True, xmp=body)
    else:
        name = b"http://ns.adobe.com/xap/1.0/\0"
        data = (
            plain[:2] + b"\xff\xe1" + struct.pack(">H", 2 + len(name) + len(body)) + name + body + plain[2:]
        )
    if kind == "EXIF and XMP":  # EXIF says it first
        exif = Image.Exif()
        exif[0x0112] = 3
        raw = exif.tobytes()
        data = data[:2] + b"\xff\xe1" + struct.pack(">H", 2 + len(raw)) + raw + data[2:]
        orientation = 3
    truth = np.asarray(Image.fromarray(decode(plain)))
    turned = {
        1: lambda a: a, 2: lambda a: a[:, ::-1], 3: lambda a: a[::-1, ::-1], 4: lambda a: a[::-1],
        5: lambda a: a.swapaxes(0, 1), 6: lambda a: a.swapaxes(0, 1)[:, ::-1],
        7: lambda a: a.swapaxes(0, 1)[::-1, ::-1], 8: lambda a: a.swapaxes(0, 1)[::-1],
    }[orientation]  # fmt: skip
    agree(data, 3, turned(truth))
    assert np.array_equal(shrink(data, 1000), turned(truth))


@pytest.mark.parametrize("size", [(240, 320), (333, 251), (480, 640)], ids=str)
@pytest.mark.parametrize("sampling", ["4:4:4", "4:2:2", "4:2:0", "4:4:0", "4:1:1", "grey", "rgb"])
@pytest.mark.parametrize("progressive", [False, True], ids=["baseline", "progressive"])
def test_jpegs_of_every_subsampling_at_every_scale(sampling, progressive, size):
    simplejpeg = pytest.importorskip("simplejpeg")
    picture = photo(6, *size)
    if sampling in ("4:4:0", "4:1:1"):
        data = simplejpeg.encode_jpeg(picture, quality=95, colorsubsampling=sampling.replace(":", ""))
        if progressive:
            pytest.skip("one of each is enough")
    elif sampling == "rgb":
        data = encoded(Image.fromarray(picture), "JPEG", quality=95, keep_rgb=True, progressive=progressive)
    else:
        image = Image.fromarray(picture).convert("L" if sampling == "grey" else "RGB")
        data = encoded(image, "JPEG", quality=95, subsampling=sampling if ":" in sampling else -1,
                       progressive=progressive)  # fmt: skip
    with Image.open(io.BytesIO(data)) as opened:
        upright = opened.convert("RGB")
    for side in (16, 40, 100, 200):
        for box in (Box(0, 0, *size), Box(11, 7, size[0] - 30, size[1] - 21)):
            got = crop_and_resize(data, lambda h, w, box=box: box, (side, side), 3)
            edges = (box.left, box.top, box.left + box.width, box.top + box.height)
            truth = np.asarray(upright.crop(edges).resize((side, side), Image.Resampling.BICUBIC))
            error = np.mean((got.astype(float) - truth) ** 2)
            assert 10 * np.log10(255**2 / max(error, 1e-6)) >= 40


def lossless_jpeg(height: int, width: int, kind: str = "RGB") -> tuple[bytes, np.ndarray]:
    imagecodecs = pytest.importorskip("imagecodecs")
    picture = (
        photo(7, height, width) if kind == "RGB" else np.ascontiguousarray(photo(7, height, width)[..., 0])
    )
    return bytes(imagecodecs.jpeg8_encode(picture, lossless=True)), picture


@pytest.mark.parametrize("kind", ["RGB", "grey"])
@pytest.mark.parametrize("size", [(320, 400), (1000, 1000), (64, 48)], ids=str)
def test_lossless_jpegs_are_whole_or_refused(size, kind):
    """libjpeg-turbo writes all of their pixels whatever scale is asked for."""
    data, picture = lossless_jpeg(size[0], size[1], kind)
    try:
        small = crop_and_resize(data, whole, (32, 32), 3)
    except UnreadableImage:
        refused(data)
        return
    truth = Image.fromarray(picture).convert("RGB").resize((32, 32), Image.Resampling.BICUBIC)
    assert np.abs(small.astype(int) - np.asarray(truth)).max() <= 12
    assert shrink(data, 32).shape[0 if size[0] <= size[1] else 1] == 32


@pytest.mark.parametrize("marker", sorted({*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC}))
def test_a_frame_that_is_not_what_it_says_is_never_written_past_its_buffer(marker):
    """Every start-of-frame marker over the same data: read, or refused."""
    data = bytearray(encoded(Image.fromarray(photo(8, 320, 400)), "JPEG", quality=90))
    place = data.index(b"\xff\xc0")
    data[place + 1] = marker
    for read in (lambda d: crop_and_resize(d, whole, (32, 32), 3), lambda d: shrink(d, 32), decode):
        assert read_or_refused(read, bytes(data))


def test_a_luma_with_less_detail_than_its_colours():
    data = bytearray(encoded(Image.fromarray(photo(9, 32, 48)), "JPEG", quality=95, subsampling=0))
    frame = data.index(b"\xff\xc0")
    for factors in (0x14, 0x41, 0x24, 0x42, 0x12, 0x21, 0x22, 0x44):
        data[frame + 11] = factors
        try:
            with Image.open(io.BytesIO(bytes(data))) as opened:
                truth = np.asarray(opened.convert("RGB"))
        except OSError:
            refused(bytes(data))
            continue
        agree(bytes(data), 3, truth, 3)


@pytest.mark.parametrize(
    ("data", "grey"),
    [
        (b"P4\n8 2\n\xaa\xf0", [[0, 255] * 4, [0] * 4 + [255] * 4]),
        (b"P1\n3 2\n1 0 1\n0 1 0\n", [[0, 255, 0], [255, 0, 255]]),
        (b"P2\n3 1\n255\n0 10 255\n", [[0, 10, 255]]),
        (b"P5\n2 1\n15\n\x00\x0f", [[0, 255]]),
        (b"P5\n2 1\n65535\n\x00\x00\xff\xff", [[0, 255]]),
    ],
    ids=["P4", "P1", "P2", "P5 of 4 bits", "P5 of 16 bits"],
)
def test_the_smallest_of_files(data, grey):
    """Shorter than the header of any other format."""
    for chans in (1, 3):
        assert np.array_equal(decode(data, chans), np.repeat(np.array(grey)[..., None], chans, axis=2))


@pytest.mark.parametrize("kind", ["EPS", "DDS", "TGA", "PCX", "ICO", "SGI", "IM", "MSP", "XBM", "PDF"])
def test_formats_that_are_not_for_photos_are_refused_whatever_their_name(kind):
    image = Image.fromarray(photo(1, 32, 32)).convert("1" if kind in ("MSP", "XBM") else "RGB")
    assert "not an image in a format that Pillow reads" in refused(encoded(image, kind))


@pytest.mark.parametrize("quality", ["exact", "full"])
@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
@pytest.mark.parametrize("side", mostly_slow([128, 224, 384], [224]))
def test_crops_have_the_detail_that_pillow_gives_them(kind, side, quality):
    """40 dB on each photo, and over all of them the energy of the gradients within 3 %."""
    generator = np.random.default_rng(side)
    photos = open_images("demo:photos")
    energies = []
    for index in range(0, len(photos), 2):
        with Image.open(io.BytesIO(photos.read(index))) as opened:
            data = encoded(opened.convert("RGB"), kind, quality=92)
        with Image.open(io.BytesIO(data)) as opened:
            upright = opened.convert("RGB")
        h, w = (int(generator.uniform(0.3, 1) * length) for length in (upright.height, upright.width))
        top, left = generator.integers(upright.height - h + 1), generator.integers(upright.width - w + 1)
        box = Box(int(top), int(left), h, w)
        got = crop_and_resize(data, lambda h, w, box=box: box, (side, side), 3, quality=quality).astype(float)
        part = upright.crop((box.left, box.top, box.left + box.width, box.top + box.height))
        truth = np.asarray(part.resize((side, side), Image.Resampling.BICUBIC), float)
        assert 10 * np.log10(255**2 / max(np.mean((got - truth) ** 2), 1e-6)) >= 40
        energies.append([(np.diff(values, axis=0) ** 2).sum() for values in (got, truth)])
    ours, pillows = np.sum(energies, axis=0)
    assert abs(ours / pillows - 1) <= (1e-9 if quality == "exact" else 0.01)


def test_evaluation_is_exact_whatever_the_content():
    noise = np.random.default_rng(0).integers(0, 256, (301, 457, 3), np.uint8)
    for channels in (1, 2, 3, 4):
        data = noise[..., :1] if channels == 1 else np.dstack([noise, noise[..., :1]])[..., :channels]
        got = crop_and_resize(data, lambda h, w: Box(7, 11, 250, 260), (96, 64), channels)
        for channel in range(channels):
            picture = Image.fromarray(data[7:257, 11:271, channel]).resize((64, 96), Image.Resampling.BICUBIC)
            assert np.array_equal(got[..., channel], np.asarray(picture))


def test_bombs_are_refused_at_once():
    rows = zlib.compress(bytes((12_000 * 3 + 1) * 12_000), 1)
    head = struct.pack(">IIBBBBB", 12_000, 12_000, 8, 2, 0, 0, 0)
    large = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")
    assert "max-pixels" in refused(large)
    still = encoded(Image.new("L", (3000, 3000)), "JPEG", progressive=True, quality=1)
    place = still.rfind(b"\xff\xda")
    scans = still[:place] + still[place:-2] * 200 + b"\xff\xd9"
    assert "scans" in refused(scans)
    assert decode(still).shape == (3000, 3000, 3)
    assert "bomb" in refused(tiff([np.zeros((1, 1), np.uint8)] * 10_002, 8, 1), 3)


def test_the_limit_of_pixels_is_a_setting():
    data = encoded(Image.fromarray(photo(1, 40, 50)), "PNG")
    assert decode(data, 3, max_pixels=2000).shape == (40, 50, 3)
    with pytest.raises(UnreadableImage, match="50x40 pixels, more than max-pixels = 1,999"):
        decode(data, 3, max_pixels=1999)


@pytest.mark.parametrize(
    "header",
    [
        b"{'descr': '<f4', 'fortran_order': False, 'shape': (32, 40, 3(, }",
        b"{'descr': '<f4', 'fortran_order': False, 'shape': (32, 40, 3), ",
        b"{'descr': '<f4', 'fortran_order': False, 'shape': (26000, 26000, 3), }",
        b"{'descr': '<f4', 'fortran_order': False, 'shape': (-1, 5, 3), }",
        b"{'descr': '|O', 'fortran_order': False, 'shape': (4, 5, 3), }",
        b"{'descr': '<U1000000000', 'fortran_order': False, 'shape': (1, 1, 3), }",
        b"{'descr': '|V0', 'fortran_order': False, 'shape': (1000000000, 1000000000, 3), }",
        b"(" * 5000,
        b"\xff\xfe\0",
        b"",
    ],
    ids=range(10),
)
def test_damaged_npy_headers_are_unreadable(header):
    assert refused(b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header) + 1) + header + b"\n" + bytes(100))


@pytest.mark.parametrize("kind", [np.int64, np.uint64, np.int32, np.uint32])
def test_wide_integers_are_no_pixels(kind):
    buffer = io.BytesIO()
    np.save(buffer, np.zeros((8, 8, 3), kind))
    assert "range is unknown" in refused(buffer.getvalue())


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(
    "kind", ["JPEG", "PNG", "WEBP", "AVIF", "TIFF", "GIF", "BMP", "PPM", "JPEG2000", "NPY"]
)
def test_damaged_files_give_pixels_or_a_reason(kind, seed):
    Image.init()
    if kind == "NPY":
        buffer = io.BytesIO()
        np.save(buffer, photo(1, 24, 24))
        data = buffer.getvalue()
    elif kind not in Image.SAVE:
        pytest.skip("this Pillow does not write it")
    else:
        image = Image.fromarray(photo(1, 24, 24)).convert("P" if kind == "GIF" else "RGB")
        exif = Image.Exif()
        exif[0x0112], exif[0x0132] = 6, "2026:01:01 00:00:00"
        options = {"exif": exif.tobytes()} if kind in ("JPEG", "PNG", "WEBP", "AVIF") else {}
        data = encoded(image, kind, **options)
    generator = np.random.default_rng(seed)
    for _ in range(60):
        spoiled = bytearray(data)
        for place in generator.integers(0, len(data), generator.integers(1, 5)):
            spoiled[place] = generator.integers(256)
        if generator.random() < 0.2:
            del spoiled[generator.integers(len(data)) :]
        for read in (decode, lambda d: crop_and_resize(d, whole, (8, 8), 3), lambda d: shrink(d, 8)):
            assert read_or_refused(read, bytes(spoiled))
