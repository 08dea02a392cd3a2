from __future__ import annotations

import io
import struct
import sys
import zlib
from functools import cache
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import PIL
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image, ImageFile, ImageOps, PngImagePlugin, features

from ferkd.images import (
    DECODER,
    MAX_PIXELS,
    Unreadable,
    UnreadableImage,
    check_unreadable_share,
    decode,
)
from ferkd.system.errors import InputError

MODULE = sys.modules[decode.__module__]  # ferkd.images.decode names the function
FLOWERS = Path(__file__).parents[3] / "shared" / "data" / "flowers" / "train"


def picture(height: int = 37, width: int = 53, channels: int = 3) -> np.ndarray:
    """A smooth picture with a different ramp in each channel, so that no turn or swap hides."""
    y, x = np.mgrid[:height, :width].astype(float)
    y, x = y / max(height - 1, 1), x / max(width - 1, 1)
    ramps = [255 * x, 255 * y, 128 + 60 * x - 60 * y, 255 * (1 - x * y)]
    return np.stack(ramps[:channels], axis=-1).round().astype(np.uint8)


def encode(image: Image.Image | np.ndarray, kind: str = "JPEG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    image = image if isinstance(image, Image.Image) else Image.fromarray(image)
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def by_pillow(data: bytes) -> np.ndarray:
    with Image.open(io.BytesIO(data)) as image:
        return np.array(image.convert("RGB"))


def png_chunks(*chunks: tuple[bytes, bytes]) -> bytes:
    """A PNG from its chunks, for what Pillow cannot write."""
    parts = [b"\x89PNG\r\n\x1a\n"]
    for name, body in chunks:
        parts += [struct.pack(">I", len(body)), name, body]
        parts.append(struct.pack(">I", zlib.crc32(name + body)))
    return b"".join(parts)


def png16(samples: np.ndarray) -> bytes:
    """A 16-bit PNG of [H, W, channels] samples (1 grey, 2 LA, 3 RGB, 4 RGBA)."""
    height, width, channels = samples.shape
    colour = {1: 0, 2: 4, 3: 2, 4: 6}[channels]
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in samples)
    header = struct.pack(">IIBBBBB", width, height, 16, colour, 0, 0, 0)
    return png_chunks((b"IHDR", header), (b"IDAT", zlib.compress(rows)), (b"IEND", b""))


def check_form(pixels: np.ndarray, height: int, width: int) -> None:
    assert pixels.shape == (height, width, 3)
    assert pixels.dtype == np.uint8
    assert pixels.flags.c_contiguous


# --- what is read, and how ------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "BMP", "TIFF", "PPM", "GIF"])
@pytest.mark.parametrize("size", [(1, 1), (1, 9), (7, 1), (37, 53), (64, 48)])
def test_sizes_and_kinds(kind: str, size: tuple[int, int]) -> None:
    options = {"quality": 98, "subsampling": 0} if kind == "JPEG" else {}
    options |= {"lossless": True} if kind == "WEBP" else {}
    image = picture(*size)
    pixels = decode(encode(image, kind, **options))
    check_form(pixels, *size)
    if kind == "GIF":  # a palette of 256 colours at best
        assert np.abs(pixels.astype(int) - image).mean() < 12
    else:
        tolerance = 6 if kind == "JPEG" else 0
        assert np.abs(pixels.astype(int) - image).max() <= tolerance


@pytest.mark.parametrize("subsampling", [0, 1, 2])
@pytest.mark.parametrize("progressive", [False, True])
@pytest.mark.parametrize("channels", [1, 3])
def test_both_back_ends_read_a_jpeg_alike(
    monkeypatch: pytest.MonkeyPatch, subsampling: int, progressive: bool, channels: int
) -> None:
    image = picture() if channels == 3 else picture(channels=1)[:, :, 0]
    data = encode(image, quality=80, subsampling=subsampling, progressive=progressive)
    expected = by_pillow(data)
    through_pillow = decode(data + b"\0")  # a byte behind the end marker: Pillow's
    monkeypatch.setattr(MODULE, "_decode_pillow", None)  # the file itself: OpenCV's
    through_opencv = decode(data)
    check_form(through_opencv, 37, 53)
    assert np.array_equal(through_pillow, expected)
    assert np.abs(through_opencv.astype(int) - expected).max() <= 1
    if channels == 1:
        assert (through_opencv == through_opencv[:, :, :1]).all()


def test_rgb_stored_in_a_jpeg() -> None:
    data = encode(picture(), quality=95, keep_rgb=True)
    assert np.abs(decode(data).astype(int) - picture()).max() <= 6


def test_cmyk() -> None:
    cmyk = picture(channels=4)
    data = encode(Image.fromarray(cmyk, "CMYK"), quality=98, subsampling=0)
    assert b"Adobe" in data[:200]
    c, m, y, k = np.moveaxis(cmyk.astype(float), -1, 0)
    expected = np.stack([(255 - ink) * (255 - k) / 255 for ink in (c, m, y)], axis=-1)
    pixels = decode(data)
    check_form(pixels, 37, 53)
    assert np.abs(pixels - expected).max() <= 8
    assert np.array_equal(pixels, by_pillow(data))
    # Without Adobe's marker the polarity stays the same, whatever else reads the file.
    start = data.index(b"\xff\xee")
    bare = data[:start] + data[start + 2 + int.from_bytes(data[start + 2 : start + 4]) :]
    assert b"Adobe" not in bare
    assert np.array_equal(decode(bare), pixels)


def test_ycck() -> None:
    # Telling libjpeg by Adobe's marker that the four channels are YCCK (transform 2) makes
    # channels 1..3 inverted luma and chroma: neutral chroma (128) must give neutral colours.
    grey = np.full((16, 16, 4), (55, 128, 128, 255), np.uint8)
    data = encode(Image.fromarray(255 - grey, "CMYK"), quality=98)
    at = data.index(b"Adobe") + 11
    pixels = decode(data[:at] + b"\x02" + data[at + 1 :]).astype(int)
    assert np.ptp(pixels, axis=2).max() <= 2
    assert np.abs(pixels - 200).max() <= 3  # ink 255 - 55 comes from luma; K 255 is no black


def test_palette_with_transparency(recwarn: pytest.WarningsRecorder) -> None:
    index = (np.arange(12) % 4).astype(np.uint8).reshape(3, 4)
    colours = np.array([[250, 10, 20], [0, 0, 0], [1, 200, 3], [9, 9, 255]], np.uint8)
    image = Image.fromarray(index, "P")
    image.putpalette(colours.tobytes())
    for transparency in (None, 1, bytes([0, 255, 3, 128])):
        options = {} if transparency is None else {"transparency": transparency}
        assert np.array_equal(decode(encode(image, "PNG", **options)), colours[index])
    assert not recwarn.list


def test_alpha_is_dropped_and_not_composited() -> None:
    rgba = picture(channels=4)
    rgba[:9, :, 3] = 0
    for kind, options in (("PNG", {}), ("WEBP", {"lossless": True, "exact": True}), ("TIFF", {})):
        assert np.array_equal(decode(encode(rgba, kind, **options)), rgba[:, :, :3])
    la = Image.fromarray(rgba[:, :, [0, 3]].copy(), "LA")
    assert np.array_equal(decode(encode(la, "PNG")), np.repeat(rgba[:, :, :1], 3, axis=2))


def test_sixteen_bits_keep_the_high_byte() -> None:
    grey = np.array([[0x0000, 0x00FF, 0x0100, 0x7FFF], [0x8000, 0xFE80, 0xFF00, 0xFFFF]], np.uint16)
    expected = np.array([[0, 0, 1, 127], [128, 254, 255, 255]], np.uint8)
    for data in (
        png16(grey[:, :, None]),
        encode(Image.fromarray(grey), "TIFF"),
        b"P5 4 2 65535\n" + grey.astype(">u2").tobytes(),
    ):
        pixels = decode(data)
        check_form(pixels, 2, 4)
        assert np.array_equal(pixels, np.repeat(expected[:, :, None], 3, axis=2))
    for channels in (2, 3, 4):
        samples = np.stack([np.roll(grey, i, axis=1) for i in range(channels)], axis=-1)
        high = (samples >> 8).astype(np.uint8)
        wanted = high[:, :, [0, 0, 0]] if channels == 2 else high[:, :, :3]
        assert np.array_equal(decode(png16(samples)), wanted)
        if channels == 3:
            encoded, tiff = cv2.imencode(".tif", samples[:, :, ::-1])
            assert encoded and np.array_equal(decode(tiff.tobytes()), wanted)


def test_black_and_white() -> None:
    bits = np.array([[True, False, True]])
    assert decode(encode(Image.fromarray(bits), "PNG")).tolist() == [
        [[255] * 3, [0] * 3, [255] * 3]
    ]


@pytest.mark.parametrize("mode", ["I", "F"])
def test_samples_without_a_range_are_refused(mode: str) -> None:
    with pytest.raises(UnreadableImage, match="32-bit samples have no stated range"):
        decode(encode(Image.new(mode, (3, 3), 7), "TIFF"))


@pytest.mark.parametrize("kind", ["GIF", "PNG", "WEBP", "TIFF"])
def test_the_first_picture_of_several(kind: str) -> None:
    colours = [(255, 0, 0), (0, 255, 0), (0, 0, 255)]
    first, *rest = (Image.new("RGB", (8, 6), colour) for colour in colours)
    options = {"lossless": True} if kind == "WEBP" else {}
    data = encode(first, kind, save_all=True, append_images=rest, **options)
    pixels = decode(data)
    check_form(pixels, 6, 8)
    assert (pixels == colours[0]).all()


# --- orientation ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "kind", ["JPEG", "trailing", "CMYK", "PNG", "WEBP", "AVIF", "TIFF", "TIFFs"]
)
@pytest.mark.parametrize("orientation", range(10))
def test_orientation(kind: str, orientation: int) -> None:
    if kind == "AVIF" and not features.check("avif"):
        pytest.skip("this Pillow was built without AVIF")
    exif = Image.Exif()
    exif[0x010F] = "a maker"
    exif[0x0112] = orientation
    image = Image.fromarray(picture())
    options: dict[str, Any] = {"lossless": True} if kind == "WEBP" else {}
    if kind == "TIFFs":
        options |= {"save_all": True, "append_images": [image]}
    image = image.convert("CMYK") if kind == "CMYK" else image
    name = {"trailing": "JPEG", "CMYK": "JPEG", "TIFFs": "TIFF"}.get(kind, kind)
    data = encode(image, name, exif=exif, **options) + b"\0" * (kind == "trailing")
    with Image.open(io.BytesIO(data)) as opened:
        expected = np.array(ImageOps.exif_transpose(opened).convert("RGB"))
    upright = decode(data)
    assert upright.flags.c_contiguous
    assert upright.shape == ((53, 37, 3) if orientation in (5, 6, 7, 8) else (37, 53, 3))
    assert np.abs(upright.astype(int) - expected).max() <= 1
    stored = decode(data, exif=False)
    plain = decode(encode(image, name, **options))
    assert stored.flags.c_contiguous
    assert np.array_equal(stored, plain)


def tiff_block(order: str, kind: int = 3, value: int = 6, entries: int = 1) -> bytes:
    mark = b"II*\0" if order == "<" else b"MM\0*"
    field = struct.pack(order + ("H2x" if kind == 3 else "I"), value)
    entry = struct.pack(order + "HHI", 0x0112, kind, 1) + field
    return mark + struct.pack(order + "IH", 8, entries) + entry + bytes(4)


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("kind", [3, 4])
def test_exif_byte_orders(order: str, kind: int) -> None:
    data = encode(picture(), exif=b"Exif\0\0" + tiff_block(order, kind))
    assert decode(data).shape == (53, 37, 3)
    assert decode(data + b"\0").shape == (53, 37, 3)


def with_exif(data: bytes, block: bytes) -> bytes:
    """A JPEG with one more EXIF segment in front of its others."""
    segment = b"Exif\0\0" + block
    return data[:2] + b"\xff\xe1" + struct.pack(">H", len(segment) + 2) + segment + data[2:]


def test_the_first_exif_block_counts() -> None:
    data = with_exif(with_exif(jpeg(), tiff_block("<", value=6)), tiff_block("<", value=3))
    for tail in (b"", b"\0"):  # OpenCV's, Pillow's
        assert np.array_equal(decode(data + tail), decode(jpeg())[::-1, ::-1])


@settings(max_examples=60, deadline=None)
@given(st.binary(max_size=40) | st.integers(0, 26).map(lambda n: tiff_block("<")[:n]))
@example(tiff_block("<", value=77))
@example(tiff_block(">", kind=7))
@example(tiff_block(">", entries=65535))
def test_a_damaged_exif_block_never_stops_decoding(block: bytes) -> None:
    data = with_exif(jpeg(), block)
    pixels = decode(data, exif=False)
    assert np.array_equal(pixels, decode(jpeg()))
    assert sorted(decode(data).shape[:2]) == [37, 53]


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_xmp_does_not_turn(kind: str) -> None:
    xmp = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><a tiff:Orientation="6"/></x:xmpmeta>'
    text = PngImagePlugin.PngInfo()
    text.add_itxt("XML:com.adobe.xmp", xmp.decode())
    special: dict[str, Any] = {"TIFF": {"tiffinfo": {700: xmp}}, "PNG": {"pnginfo": text}}
    options = special.get(kind, {"xmp": xmp})
    data = encode(picture(), kind, **options)
    assert b'tiff:Orientation="6"' in data
    assert decode(data).shape == decode(data, exif=False).shape == (37, 53, 3)


# --- what is refused ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "the file is empty"),
        (b"just some text\n" * 50, "it begins b'just some text"),
        (b"<!DOCTYPE html><html><body>404</body></html>", "it begins b'<!DOCTYPE html>"),
        (b"\xff\xd8", "damaged header"),
        (b"\xff\xd8\xff\xd9", "."),
        (b"\xff\xd8" + b"\xff" * 40 + b"\xff\xd9", "."),
        (b"\x89PNG\r\n\x1a\n", "damaged header"),
        (b"GIF89a" + bytes(7), "."),
    ],
)
def test_not_an_image(data: bytes, reason: str) -> None:
    with pytest.raises(UnreadableImage, match=reason) as caught:
        decode(data)
    assert isinstance(caught.value, InputError)
    assert "0x" not in str(caught.value)  # no address of an object: the same text every time


def test_postscript_is_never_run() -> None:
    Image.init()  # as another library may have done: every reader is registered
    data = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\nshowpage\n"
    with Image.open(io.BytesIO(data)) as image:
        assert image.format == "EPS"
    with pytest.raises(UnreadableImage, match="no image of a known kind"):
        decode(data)


@cache
def jpeg(progressive: bool = False, exif: bool = False) -> bytes:
    options: dict[str, Any] = {"exif": b"Exif\0\0" + tiff_block("<")} if exif else {}
    return encode(picture(), quality=85, progressive=progressive, **options)


@settings(max_examples=150, deadline=None)
@given(st.data(), st.booleans(), st.booleans())
def test_a_truncated_jpeg_never_comes_back(
    data: st.DataObject, progressive: bool, exif: bool
) -> None:
    whole = jpeg(progressive, exif)
    cut = data.draw(st.integers(0, len(whole) - 3))
    with pytest.raises(UnreadableImage):
        decode(whole[:cut])


def test_a_truncated_jpeg_never_reaches_opencv(monkeypatch: pytest.MonkeyPatch) -> None:
    """Many versions of OpenCV fill the missing rows with grey and only print a warning."""

    def never(*_: object) -> None:
        raise AssertionError("OpenCV was asked")

    monkeypatch.setattr(cv2, "imdecode", never)
    for cut in (1, 2, 3, 100):
        with pytest.raises(UnreadableImage):
            decode(jpeg()[:-cut])


def test_a_thumbnail_s_end_is_not_the_end() -> None:
    """A file cut right behind the thumbnail in its EXIF block does end in the end marker."""
    whole = with_exif(jpeg(), tiff_block("<") + encode(picture(8, 8)))
    assert decode(whole).shape == (53, 37, 3)
    with pytest.raises(UnreadableImage):
        decode(whole[: 2 + len(whole) - len(jpeg())])


@settings(max_examples=150, deadline=None)
@given(
    st.data(),
    st.sampled_from(["PNG", "interlaced", "WEBP", "GIF", "BMP", "TIFF", "lzw", "PPM", "CMYK"]),
)
def test_a_truncated_file_gives_all_its_pixels_or_none(data: st.DataObject, kind: str) -> None:
    whole = others()[kind]
    cut = data.draw(st.integers(1, len(whole) - 1))
    try:
        pixels = decode(whole[:cut])
    except UnreadableImage:
        return
    assert np.array_equal(pixels, decode(whole)), f"{kind} cut at {cut} of {len(whole)}"


@cache
def others() -> dict[str, bytes]:
    image = picture()
    interlaced = adam7(image)
    assert np.array_equal(decode(interlaced), image)
    return {
        "interlaced": interlaced,
        "lzw": encode(image, "TIFF", compression="tiff_lzw"),
        "CMYK": encode(Image.fromarray(picture(channels=4), "CMYK")),
        **{kind: encode(image, kind) for kind in ("PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM")},
    }


def adam7(image: np.ndarray) -> bytes:
    """An interlaced PNG: the seven passes of the PNG standard, section 8."""
    passes = [(0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4), (2, 0, 4, 2), (0, 1, 2, 2)]
    passes.append((1, 0, 2, 1))
    rows = b"".join(
        b"\0" + row.tobytes()
        for top, left, down, right in passes
        for row in image[top::down, left::right]
    )
    header = struct.pack(">IIBBBBB", image.shape[1], image.shape[0], 8, 2, 0, 0, 1)
    return png_chunks((b"IHDR", header), (b"IDAT", zlib.compress(rows)), (b"IEND", b""))


@settings(max_examples=150, deadline=None)
@given(st.data(), st.sampled_from(["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "CMYK"]))
def test_damage_raises_one_kind_of_error(data: st.DataObject, kind: str) -> None:
    whole = bytearray(jpeg() if kind == "JPEG" else others()[kind])
    # The header's bytes are where the readers' branches are.
    place = st.integers(0, min(len(whole), 700) - 1)
    for position, value in data.draw(st.lists(st.tuples(place, st.integers(0, 255)), max_size=4)):
        whole[position] = value
    try:
        pixels = decode(bytes(whole))
    except UnreadableImage:
        return
    assert pixels.dtype == np.uint8 and pixels.ndim == 3 and pixels.shape[2] == 3


def resized_header(kind: str, width: int, height: int) -> bytes:
    if kind == "PNG":
        header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
        return png_chunks((b"IHDR", header), (b"IDAT", zlib.compress(b"")), (b"IEND", b""))
    data = jpeg()
    start = data.index(b"\xff\xc0") + 5
    return data[:start] + struct.pack(">HH", height, width) + data[start + 4 :]


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_bombs_are_refused_before_decoding(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*_: object) -> None:
        raise AssertionError("pixels were decoded")

    monkeypatch.setattr(cv2, "imdecode", never)
    monkeypatch.setattr(ImageFile.ImageFile, "load", never)
    side = int(MAX_PIXELS**0.5)
    for width, height in ((side + 1, side + 1), (60_000, 60_000)):
        with pytest.raises(UnreadableImage, match=r"pixels|limit"):
            decode(resized_header(kind, width, height))
    with pytest.raises(UnreadableImage, match=r"no pixels|damaged header"):
        decode(resized_header(kind, 0, 5))


def test_the_limit_is_the_same_for_both_back_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    assert 2 * (Image.MAX_IMAGE_PIXELS or 0) > MAX_PIXELS  # where Pillow refuses
    for data in (jpeg(), others()["PNG"]):
        monkeypatch.setattr(MODULE, "MAX_PIXELS", 37 * 53)
        check_form(decode(data), 37, 53)
        monkeypatch.setattr(MODULE, "MAX_PIXELS", 37 * 53 - 1)
        with pytest.raises(UnreadableImage, match="53x37 are 1961 pixels, over the limit of 1960"):
            decode(data)


def test_a_process_that_loads_truncated_images_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    assert ImageFile.LOAD_TRUNCATED_IMAGES is False
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)
    check_form(decode(jpeg()), 37, 53)
    with pytest.raises(InputError, match="LOAD_TRUNCATED_IMAGES is set") as caught:
        decode(jpeg()[:-40])
    assert not isinstance(caught.value, UnreadableImage)  # no fault of this image: never a skip


# --- the rest -------------------------------------------------------------------------------


def test_decoder_names_versions_and_rule() -> None:
    assert f"opencv {cv2.__version__} / pillow {PIL.__version__}, rule 2" == DECODER


def test_unreadable_share() -> None:
    skips = [Unreadable(f"a/{i}.jpg", "the file is empty") for i in range(7)]
    check_unreadable_share([], 0)
    check_unreadable_share(skips, 700)  # exactly 1 % passes
    check_unreadable_share(skips[:1], 2, limit=0.5)
    with pytest.raises(InputError, match=r"^7 of 699 images \(1\.0%\)") as caught:
        check_unreadable_share(skips, 699)
    message = str(caught.value)
    assert "a/0.jpg (the file is empty)" in message
    assert "a/4.jpg" in message and "a/5.jpg" not in message
    assert "and 2 more" in message and "Repair or remove" in message
    with pytest.raises(InputError, match=r"1 of 3 images .* more than the 0\.0% allowed"):
        check_unreadable_share(skips[:1], 3, limit=0)
    assert "larger share" not in str(caught.value)  # nothing sets the limit here
    with pytest.raises(InputError, match=r"or allow a larger share with --max-unreadable$"):
        check_unreadable_share(skips, 7, option="--max-unreadable")
    with pytest.raises(InputError, match=r"a/\\x1b\.jpg"):
        check_unreadable_share([Unreadable("a/\x1b.jpg", "it is empty")], 1)


def test_real_photos() -> None:
    if not FLOWERS.is_dir():
        pytest.skip("the shared photos (../shared/data/flowers) are not here")
    paths = sorted(FLOWERS.glob("*/*.jpg"))[::97]
    assert len(paths) > 20
    for path in paths:
        data = path.read_bytes()
        pixels, expected = decode(data, exif=False), by_pillow(data)
        check_form(pixels, *expected.shape[:2])
        assert np.abs(pixels.astype(int) - expected).max() <= 2
        with pytest.raises(UnreadableImage):
            decode(data[: len(data) * 2 // 3])
