"""Sizes from headers, decoding at a fraction of the size, and the crops cut from it."""

from __future__ import annotations

import io
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from ferkd.crops import cut, cut_scaled, largest_reduction, random_boxes
from ferkd.images import UnreadableImage, decode
from ferkd.images.scaled import decode_scaled, image_size, jpeg_size

PHOTOS = Path(__file__).parents[3] / "shared" / "data" / "photos"


def smooth(height: int, width: int, seed: int = 0) -> np.ndarray:
    """A picture without fine detail, so that every fair way to shrink it agrees."""
    rng = np.random.default_rng(seed)
    small = rng.integers(0, 256, (max(2, height // 16), max(2, width // 16), 3), dtype=np.uint8)
    return cv2.resize(small, (width, height), interpolation=cv2.INTER_CUBIC)


def jpeg(pixels: np.ndarray, orientation: int = 1) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=98, subsampling=0, exif=exif)
    return buffer.getvalue()


@given(st.integers(1, 70), st.integers(1, 70), st.integers(1, 8), st.booleans())
@settings(max_examples=40, deadline=None)
def test_a_headers_size_is_the_decoded_size(height, width, orientation, exif):
    data = jpeg(np.zeros((height, width, 3), np.uint8), orientation)
    assert jpeg_size(data, exif=exif) == decode(data, exif=exif).shape[:2]
    assert image_size(data, exif=exif) == jpeg_size(data, exif=exif)


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "WEBP", "GIF", "BMP"])
def test_sizes_of_other_kinds(kind):
    buffer = io.BytesIO()
    Image.fromarray(np.zeros((5, 9, 3), np.uint8)).save(buffer, kind)
    assert image_size(buffer.getvalue()) == (5, 9)
    assert jpeg_size(buffer.getvalue()) is None
    assert image_size(b"nothing") is None


@given(st.integers(8, 120), st.integers(8, 120), st.integers(1, 8), st.sampled_from([2, 4, 8]))
@settings(max_examples=60, deadline=None)
def test_scaled_pixels_are_the_means_of_their_blocks(height, width, orientation, reduction):
    """A pixel covers reduction x reduction pixels from the top left, whatever the turn."""
    data = jpeg(smooth(height, width), orientation)
    full = decode(data)
    small, found = decode_scaled(data, reduction)
    exact = orientation == 1 or (height % reduction == 0 and width % reduction == 0)
    assert found == (reduction if exact else 1)
    if not exact:
        assert (small == full).all()
        return
    assert small.shape == (-(-full.shape[0] // found), -(-full.shape[1] // found), 3)
    rows, columns = full.shape[0] // found, full.shape[1] // found
    means = full[: rows * found, : columns * found].astype(float)
    means = means.reshape(rows, found, columns, found, 3).mean((1, 3))
    assert np.abs(small[:rows, :columns] - means).mean() < 4


def test_what_is_no_plain_jpeg_is_decoded_in_full_or_refused():
    pixels = smooth(64, 64)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    found, reduction = decode_scaled(buffer.getvalue(), 4)
    assert reduction == 1 and (found == pixels).all()
    grey = io.BytesIO()
    Image.fromarray(pixels[..., 0]).save(grey, "JPEG")
    assert decode_scaled(grey.getvalue(), 4)[0].shape == (16, 16, 3)
    with pytest.raises(UnreadableImage):
        decode_scaled(jpeg(pixels)[:-200], 2)


def test_the_largest_reduction_leaves_every_crop_at_least_its_size():
    def of(*sides: tuple[int, int]) -> int:
        return largest_reduction(np.array([(0, 0, *side) for side in sides]), 100)

    assert [of((s, 900)) for s in (99, 199, 200, 399, 400, 799, 800)] == [1, 1, 2, 2, 4, 4, 8]
    assert of((900, 900), (900, 250)) == 2


@given(st.data(), st.integers(0, 10**6), st.sampled_from([2, 4]), st.booleans())
@settings(max_examples=40, deadline=None)
def test_a_crop_of_a_smaller_copy_lies_where_the_whole_images_does(data, seed, factor, flip):
    """On a ramp the crop's pixels are its coordinates: the place is right to 1/4 pixel."""
    height, width = data.draw(st.integers(100, 251)), data.draw(st.integers(100, 251))
    ramp = np.zeros((height, width, 3), np.float32)
    ramp[..., 0] = np.arange(height)[:, None]
    ramp[..., 1] = np.arange(width)
    boxes, _ = random_boxes([height], [width], crops=1, seed=seed, ids=["x"])
    box = boxes[0, 0]
    rows, columns = -(-height // factor) * factor, -(-width // factor) * factor
    padded = np.pad(ramp, ((0, rows - height), (0, columns - width), (0, 0)), "edge")
    small = padded.reshape(rows // factor, factor, columns // factor, factor, 3).mean((1, 3))
    size = max(2, int(box[2:].min()) // factor)
    # uint8 would round to whole pixels: the function works on any type that OpenCV samples.
    found = cut_scaled(small, (height, width), (factor, factor), box, flip, size)
    centre = (np.arange(size) + 0.5) / size
    down = box[0] + centre * box[2] - 0.5
    across = box[1] + centre * box[3] - 0.5
    inner = slice(1, -1)  # at a border the copy's last pixel may be a partial mean
    expected = across[::-1] if flip else across
    assert np.abs(found[inner, inner, 0] - down[inner, None]).max(initial=0) < 0.25 + factor / 16
    assert (
        np.abs(found[inner, inner, 1] - expected[None, inner]).max(initial=0) < 0.25 + factor / 16
    )


@pytest.mark.parametrize("bad", [(0, 0, 101, 5), (-1, 0, 5, 5), (0, 99, 5, 5)])
def test_a_box_outside_the_whole_image_is_refused(bad):
    with pytest.raises(ValueError, match="does not lie inside the image of 100x100"):
        cut_scaled(np.zeros((50, 50, 3), np.uint8), (100, 100), (2, 2), bad, False, 8)


@pytest.mark.skipif(not PHOTOS.is_dir(), reason="the shared photos are not here")
@pytest.mark.parametrize("size", [24, 40, 64])
def test_crops_of_photos_decoded_small_stay_close(size):
    """Mean absolute difference to the crop of the full image below 3 of 255 levels."""
    distances, to_pillow, full_to_pillow = [], [], []
    for path in sorted(PHOTOS.glob("*/*.jpg"))[::40]:
        data = path.read_bytes()
        full = decode(data)
        shape = full.shape[:2]
        boxes, flips = random_boxes(shape[:1], shape[1:], crops=12, seed=1, ids=[path.name])
        for box, flip in zip(boxes[0], flips[0], strict=True):
            reduction = largest_reduction(box[None], size)
            if reduction == 1:
                continue
            small, found = decode_scaled(data, reduction)
            assert found == reduction
            ours = cut_scaled(small, shape, (found, found), box, bool(flip), size).astype(int)
            whole = cut(full, box, bool(flip), size).astype(int)
            top, left, h, w = (int(v) for v in box)
            pillow = Image.fromarray(full).resize(
                (size, size), Image.Resampling.BILINEAR, box=(left, top, left + w, top + h)
            )
            reference = np.asarray(pillow).astype(int)[:, :: -1 if flip else 1]
            distances.append(np.abs(ours - whole).mean())
            to_pillow.append(np.abs(ours - reference).mean())
            full_to_pillow.append(np.abs(whole - reference).mean())
    assert len(distances) > 20
    print(size, np.mean(distances), np.max(distances), np.mean(to_pillow), np.mean(full_to_pillow))
    assert np.mean(distances) < 3 and np.mean(to_pillow) < 4
