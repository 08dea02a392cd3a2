"""Files made to mislead or to exhaust: refused early, by name, with others unharmed."""

from __future__ import annotations

import io
import threading
import time
import zlib
from pathlib import Path
from struct import pack

import cv2
import numpy as np
import pytest
from pictures import write_noise
from PIL import Image, PngImagePlugin

from ferkd.images import Pictures, UnreadableImage, decode, open_images, room
from ferkd.images.jpeg import too_many_scans
from ferkd.images.scaled import decode_scaled, image_size
from ferkd.system.errors import InputError

EOI, SOS = b"\xff\xd9", b"\xff\xda"


def jpeg(pixels: np.ndarray | Image.Image, **options: object) -> bytes:
    buffer = io.BytesIO()
    image = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
    image.save(buffer, "JPEG", **options)
    return buffer.getvalue()


def photo(height: int = 120, width: int = 160, channels: int = 3) -> np.ndarray:
    small = np.random.default_rng(7).integers(0, 256, (9, 12, channels), dtype=np.uint8)
    big = cv2.resize(small, (width, height), interpolation=cv2.INTER_CUBIC)
    return big.reshape(height, width, channels)


# --- data that end early behind a valid end marker ------------------------------------------


@pytest.mark.parametrize("share", [0.3, 0.5, 0.8])
@pytest.mark.parametrize("kind", ["colour", "grey", "progressive", "restart", "cmyk", "trailer"])
def test_a_jpeg_cut_short_behind_an_end_marker(kind: str, share: float) -> None:
    image: Image.Image | np.ndarray = photo()
    options: dict[str, object] = {"quality": 90}
    if kind == "grey":
        image = photo()[:, :, 0]
    elif kind == "progressive":  # cut in its first scan, of which all the others depend
        options["progressive"] = True
    elif kind == "restart":
        options["restart_marker_rows"] = 1
    elif kind == "cmyk":
        image = Image.fromarray(photo(channels=4), "CMYK")
    whole = jpeg(image, **options)
    start = whole.index(SOS)
    stop = whole.index(b"\xff\xc4", start) if kind == "progressive" else len(whole)
    cut = whole[: start + 14 + int((stop - start - 14) * share)].rstrip(b"\xff") + EOI
    tail = b"trailer" if kind == "trailer" else b""
    assert decode(whole + tail).shape == (120, 160, 3)
    with pytest.raises(UnreadableImage, match="truncated"):
        decode(cut + tail)
    with pytest.raises(UnreadableImage, match="truncated"):
        decode_scaled(cut + tail, 4)


@pytest.mark.parametrize("progressive", [False, True])
@pytest.mark.parametrize("shape", [(64, 64), (65, 43), (1, 1)])
def test_a_grey_picture_is_whole(progressive: bool, shape: tuple[int, int]) -> None:
    grey = np.full((*shape, 3), 128, np.uint8)
    assert (decode(jpeg(grey, progressive=progressive)) == 128).all()
    bordered = photo(64, 64)
    bordered[-20:], bordered[:, -20:] = 128, 128
    assert decode(jpeg(bordered, quality=95)).shape == (64, 64, 3)


# --- scans ----------------------------------------------------------------------------------


def with_scans(extra: int, side: int = 64) -> bytes:
    """A progressive JPEG whose last scan is repeated."""
    whole = jpeg(np.full((side, side), 90, np.uint8), progressive=True)
    last = whole[whole.rindex(SOS) : -2]
    return whole[:-2] + last * extra + EOI


def test_a_jpeg_of_a_thousand_scans_is_refused_before_it_is_decoded(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert decode(with_scans(20)).shape == (64, 64, 3)
    data = with_scans(1000)
    monkeypatch.setattr(cv2, "imdecode", None)
    scans = with_scans(0).count(SOS) + 1000
    for bad in (data, data + b"trailer"):  # OpenCV's, Pillow's
        with pytest.raises(UnreadableImage, match=rf"{scans} scans over 4096 pixels.* 100 "):
            decode(bad)
    with pytest.raises(UnreadableImage, match="scans"):
        decode_scaled(data, 8)


def test_fewer_scans_are_allowed_of_more_pixels() -> None:
    data = with_scans(30)
    scans = data.count(SOS)
    assert too_many_scans(data, 2_500_000_000 // scans) == ""
    assert f"more than the {scans - 1} " in too_many_scans(data, 2_500_000_000 // scans + 1)


def test_scans_of_a_thumbnail_do_not_count() -> None:
    segment = b"Exif\0\0" + SOS * 500
    data = with_scans(0)
    data = data[:2] + b"\xff\xe1" + pack(">H", len(segment) + 2) + segment + data[2:]
    assert decode(data).shape == (64, 64, 3)


# --- memory ---------------------------------------------------------------------------------


def one_bit_png(side: int) -> bytes:
    def chunk(name: bytes, body: bytes) -> bytes:
        return pack(">I", len(body)) + name + body + pack(">I", zlib.crc32(name + body))

    packer = zlib.compressobj(1)
    row = bytes(1 + -(-side // 8))
    rows = b"".join(packer.compress(row) for _ in range(side)) + packer.flush()
    header = pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")
    )


def test_large_images_are_decoded_few_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    # 20 million pixels at 10 bytes: of 1 GB free memory, half holds two of them.
    monkeypatch.setattr(room, "free_memory", lambda: 1_000_000_000)
    busy, most, lock = 0, 0, threading.Lock()

    def work() -> None:
        nonlocal busy, most
        with room.room(20_000_000, 10):
            with lock:
                busy += 1
                most = max(most, busy)
            time.sleep(0.02)
            with lock:
                busy -= 1

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == 2


def test_an_image_beyond_the_memory_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_noise(tmp_path, {"a/small.png": (20, 30)})
    (tmp_path / "a" / "big.png").write_bytes(one_bit_png(4096))
    pictures = Pictures(open_images(tmp_path))
    assert pictures.open(0).pixels()[0].shape == (4096, 4096, 3)
    monkeypatch.setattr(room, "free_memory", lambda: 100_000_000)
    monkeypatch.setattr(room, "_PATIENCE", 0.0)
    with pytest.raises(InputError, match=r"^a/big\.png of .*16777216 pixels takes about 0\.12 GB"):
        pictures.open(0)
    assert pictures.open(1).pixels()[0].shape == (20, 30, 3)


# --- EXIF that ImageMagick keeps in a PNG ---------------------------------------------------


def png(texts: dict[str, str], *, behind: bool = False, **options: object) -> bytes:
    info = PngImagePlugin.PngInfo()
    for name, text in texts.items():
        info.add_text(name, text, zip=True)
    buffer = io.BytesIO()
    Image.fromarray(photo(40, 60)).save(buffer, "PNG", pnginfo=info, **options)
    return buffer.getvalue()


def raw_profile(block: bytes, name: str = "exif") -> str:
    digits = block.hex()
    lines = [digits[i : i + 72] for i in range(0, len(digits), 72)]
    return f"\n{name}\n{len(block):8d}\n" + "\n".join(lines) + "\n"


TURNED = b"Exif\0\0II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0\x06\0\0\0\0\0\0\0"  # orientation 6


@pytest.mark.parametrize("name", ["exif", "APP1"])
def test_a_raw_profile_turns_a_png(name: str) -> None:
    data = png({f"Raw profile type {name}": raw_profile(TURNED, name)})
    upright = decode(data)
    assert np.array_equal(upright, np.rot90(photo(40, 60), -1))  # 6: turn clockwise
    assert np.array_equal(decode(data, exif=False), photo(40, 60))
    assert image_size(data) == (60, 40)


@pytest.mark.parametrize(
    "text", ["", "\nexif\n  4\nxyz!\n", "no lines", raw_profile(b"http://ns.adobe.com/xap/1.0/")]
)
def test_a_damaged_raw_profile_counts_for_nothing(text: str) -> None:
    assert np.array_equal(decode(png({"Raw profile type exif": text})), photo(40, 60))


def test_the_format_s_own_exif_goes_first() -> None:
    upside_down = TURNED.replace(b"\x06\0\0\0\0\0\0\0", b"\x03\0\0\0\0\0\0\0")
    data = png({"Raw profile type exif": raw_profile(TURNED)}, exif=upside_down)
    assert np.array_equal(decode(data), photo(40, 60)[::-1, ::-1])
