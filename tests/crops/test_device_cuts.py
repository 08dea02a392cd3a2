"""Crops cut in one call on the device: the same as one by one, and without waiting for it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ferkd.crops import cut, largest_reduction, random_boxes
from ferkd.crops import device as device_cuts
from ferkd.crops.device import Decoded, cut_batch, raw_images
from ferkd.images import decode
from ferkd.images.scaled import decode_scaled

PHOTOS = Path(__file__).parents[3] / "shared" / "data" / "photos"


def raw(images, boxes, flips=None, size=8, scales=None, whole=None):
    """RawImages of arrays; ``boxes`` [n, m, 4]."""
    boxes = np.array(boxes, np.int32)
    flips = np.zeros(boxes.shape[:2], bool) if flips is None else np.array(flips)
    whole = np.array([i.shape[:2] for i in images] if whole is None else whole)
    scales = scales or [None] * len(images)
    decoded = [Decoded(*both) for both in zip(images, scales, strict=True)]
    return raw_images(decoded, whole, boxes, flips, size)


def pixels(found):
    """Batches [B, 3, S, S] as the arrays that cut gives, [B, S, S, 3], of signed numbers."""
    return found.permute(0, 2, 3, 1).numpy().astype(int)


def one_by_one(images, boxes, flips, size):
    return np.stack(
        [
            cut(image, box, bool(flip), size)
            for image, some, mirrored in zip(images, boxes, flips, strict=True)
            for box, flip in zip(some, mirrored, strict=True)
        ]
    ).astype(int)


def noise(height, width, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def test_whole_images_at_their_own_size_are_themselves():
    a, b = noise(8, 8), noise(8, 8, 1)
    found = cut_batch(raw([a, b], [[[0, 0, 8, 8]] * 2] * 2, [[False, True]] * 2))
    assert found.shape == (4, 3, 8, 8) and found.dtype == torch.uint8
    assert found.is_contiguous(memory_format=torch.channels_last)
    assert (pixels(found) == np.stack([a, a[:, ::-1], b, b[:, ::-1]])).all()


def test_bilinear_and_area_by_hand():
    """Two pixels 0 and 100 stretched to four: centres at -.25, .25, .75, 1.25 of a pixel, the
    first and last repeated. Two columns averaged: the mean of 0, 100, 50, 53 is 50.75."""
    row = np.repeat(np.array([[0, 100]], np.uint8)[..., None], 3, 2)
    stretched = pixels(cut_batch(raw([row], [[[0, 0, 1, 2]]], size=4)))
    assert stretched[0, :, :, 0].tolist() == [[0, 25, 75, 100]] * 4
    square = np.repeat(np.array([[0, 100], [50, 53]], np.uint8)[..., None], 3, 2)
    assert (
        pixels(cut_batch(raw([square], [[[0, 0, 2, 2]]], size=1))).reshape(-1).tolist() == [51] * 3
    )


@st.composite
def batches(draw):
    m = draw(st.integers(1, 3))
    images, boxes = [], []
    for i in range(draw(st.integers(1, 4))):
        height, width = draw(st.integers(1, 70)), draw(st.integers(1, 70))
        images.append(noise(height, width, i))
        for _ in range(m):
            h, w = draw(st.integers(1, height)), draw(st.integers(1, width))
            top, left = draw(st.integers(0, height - h)), draw(st.integers(0, width - w))
            boxes.append((top, left, h, w))
    flips = draw(st.lists(st.booleans(), min_size=len(boxes), max_size=len(boxes)))
    shape = (len(images), m)
    return images, np.array(boxes).reshape(*shape, 4), np.array(flips).reshape(shape)


@given(batches(), st.integers(1, 24))
@settings(max_examples=150, deadline=None)
def test_every_pixel_is_that_of_cut_within_one_level(batch, size):
    """Noise, odd sizes, boxes of one pixel and at the borders, enlarged and reduced up to 70
    times: the worst that rounding can tell apart."""
    images, boxes, flips = batch
    found = pixels(cut_batch(raw(images, boxes, flips, size)))
    difference = np.abs(found - one_by_one(images, boxes, flips, size))
    assert difference.max() <= 1


@given(batches(), st.integers(1, 24), st.integers(1, 3000))
@settings(max_examples=30, deadline=None)
def test_how_the_work_is_divided_changes_nothing(batch, size, at_once):
    images, boxes, flips = batch
    whole = cut_batch(raw(images, boxes, flips, size))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(device_cuts, "_AT_ONCE", at_once)
        assert torch.equal(cut_batch(raw(images, boxes, flips, size)), whole)
    alone = [
        cut_batch(raw([image], [some], [mirrored], size))
        for image, some, mirrored in zip(images, boxes, flips, strict=True)
    ]
    assert torch.equal(torch.cat(alone), whole)


@given(
    st.data(), st.sampled_from([1.0, 1.5, 2.0, 3.7, 8.0]), st.sampled_from([6, 24]), st.booleans()
)
@settings(max_examples=100, deadline=None)
def test_a_crop_of_a_smaller_copy_lies_where_the_whole_images_does(data, factor, size, flip):
    """A plane of brightness, sampled into the copy: each pixel of a crop is the plane's value at
    its centre, but for the edge, beyond which the last pixel is repeated. A mean over w pixels is
    off by 1 / (8 w) of a pixel at most, rounding by half a level in the copy and in the crop."""
    rows, columns = 20, 25
    whole = np.array([rows * factor, columns * factor]).astype(int)
    scale = (whole[0] / rows, whole[1] / columns)
    y, x = np.mgrid[:rows, :columns]
    image = np.repeat((6 * x + 4 * y).astype(np.uint8)[..., None], 3, 2)
    box, places, inside = [0, 0, 0, 0], [], []
    for axis in range(2):
        box[2 + axis] = data.draw(st.integers(max(1, int(whole[axis]) // 4), int(whole[axis])))
        box[axis] = data.draw(st.integers(0, int(whole[axis]) - box[2 + axis]))
        begin, span = box[axis] / scale[axis], box[2 + axis] / scale[axis]
        places.append(begin + (np.arange(size) + 0.5) * span / size - 0.5)
        edges = np.floor(begin), np.ceil(begin + span) - 1
        inside.append((places[-1] >= edges[0]) & (places[-1] <= edges[1]))
    found = pixels(cut_batch(raw([image], [[box]], [[flip]], size, [scale], [whole])))[0, :, :, 0]
    found = found[:, ::-1] if flip else found
    expected = 4 * places[0][:, None] + 6 * places[1][None]
    wrong = np.abs(found - expected)[inside[0][:, None] & inside[1][None]]
    assert wrong.max(initial=0) <= 10 / 8 + 1


@pytest.fixture(scope="module")
def photos():
    if not PHOTOS.is_dir():
        pytest.skip("the shared photos are not here")
    return [path.read_bytes() for path in sorted(PHOTOS.glob("*/*.jpg"))[::40][:12]]


def placed(photos, size, seed=3):
    images = [decode(data) for data in photos]
    whole = np.array([image.shape[:2] for image in images])
    ids = [str(i) for i in range(len(images))]
    boxes, flips = random_boxes(whole[:, 0], whole[:, 1], crops=4, seed=seed, ids=ids)
    return images, whole, boxes, flips, one_by_one(images, boxes, flips, size)


@pytest.mark.parametrize("size", [224, 128, 48])
def test_crops_of_photos_are_those_of_cut(photos, size):
    """Mean absolute distance at most 0.2 of 255 levels (OpenCV rounds its fixed-point weights),
    never more than 1."""
    images, _, boxes, flips, expected = placed(photos, size)
    distance = np.abs(pixels(cut_batch(raw(images, boxes, flips, size))) - expected)
    assert distance.max() <= 1 and distance.mean((1, 2, 3)).max() < 0.2


@pytest.mark.parametrize("size", [24, 64])
def test_crops_of_photos_decoded_small_stay_close(photos, size):
    """Mean absolute distance to the crops of the whole photo below 3 levels."""
    _, whole, boxes, flips, expected = placed(photos, size)
    decoded = []
    for data, some in zip(photos, boxes, strict=True):
        small, found = decode_scaled(data, largest_reduction(some, size))
        decoded.append(Decoded(small, (found, found) if found > 1 else None))
    scaled = np.repeat([image.scale is not None for image in decoded], 4)
    assert scaled.any()
    found = pixels(cut_batch(raw_images(decoded, whole, boxes, flips, size)))
    assert np.abs(found - expected)[scaled].mean() < 3


@pytest.mark.parametrize("box", [(-1, 0, 2, 2), (0, 0, 9, 2), (0, 7, 2, 2), (0, 0, 0, 2)])
def test_a_box_outside_its_image_is_refused(box):
    with pytest.raises(ValueError, match="does not lie inside the image of 8x8"):
        raw([noise(9, 9), noise(8, 8)], [[[0, 0, 9, 9]], [box]])


def test_no_number_is_asked_of_the_device():
    """On the meta device, where there are shapes and no numbers, every question fails."""
    images = raw([noise(40, 60), noise(9, 300)], [[[0, 0, 40, 60]] * 2, [[0, 0, 9, 250]] * 2])
    found = cut_batch(images.to("meta"))
    assert found.device.type == "meta" and found.shape == (4, 3, 8, 8)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_cuda_device_cuts_the_same_and_nothing_waits_for_it():
    sizes = ((300, 260), (900, 700))
    images = [noise(*size) for size in sizes]
    boxes = [[(3, 5, 200, 180), (0, 0, *size)] for size in sizes]
    here = raw(images, boxes, [[False, True]] * 2, 64)
    pinned = here.pin_memory()
    torch.cuda.set_sync_debug_mode("error")
    try:
        found = cut_batch(pinned.to("cuda", non_blocking=True))
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert np.abs(pixels(found.cpu()) - pixels(cut_batch(here))).max() <= 1
