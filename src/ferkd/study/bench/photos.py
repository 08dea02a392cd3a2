"""Photographs for benchmarks: JPEG files of a stated size in pixels, with as many bytes as a
camera's have, made from other photographs or from nothing."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from ferkd.images import ImageSource, decode
from ferkd.system.errors import InputError

MEGAPIXEL_SIDES = (3000, 4000)  # height, width: 12 megapixels
PHOTO_SIDES = (375, 500)  # ImageNet's most common
QUALITY = 90
# A 12-megapixel photograph at quality 90 has 3 to 6 MB.
_BYTES_PER_PIXEL = (0.25, 0.5)
_TRIES = 4
_CLASSES = 4


def write_photos(
    folder: Path,
    count: int,
    *,
    sides: tuple[int, int] = MEGAPIXEL_SIDES,
    sources: Sequence[bytes] = (),
    seed: int = 0,
) -> Path:
    """Write ``count`` JPEGs of (height, width) ``sides`` into class folders; returns ``folder``.

    A picture is one of the encoded ``sources``, enlarged, with detail of its own scale laid over
    it: the fine structure of another source and sensor noise; without sources both are noise of
    all scales. The detail is strengthened or weakened until the file has 0.25 to 0.5 bytes a pixel
    (3 to 6 MB at 12 megapixels), as far as that can be.
    """
    rng = np.random.default_rng(seed)
    for number in range(count):
        place = folder / f"class-{number % _CLASSES}" / f"{number:05d}.jpg"
        place.parent.mkdir(parents=True, exist_ok=True)
        if sources:
            chosen = [decode(sources[i]) for i in rng.integers(0, len(sources), 2)]
            scene = cv2.resize(chosen[0], sides[::-1], interpolation=cv2.INTER_CUBIC)
            detail = _fine(chosen[1], sides, rng)
        else:
            scene = _clouds(sides, rng, coarsest=4, finest=64)
            detail = (
                _clouds(sides, rng, coarsest=64, finest=2 * max(sides)).astype(np.float32) - 128
            )
        place.write_bytes(_encoded(scene, detail, rng.uniform(*_BYTES_PER_PIXEL), rng))
    return folder


def copy_photos(source: ImageSource, folder: Path, count: int) -> Path:
    """Copy ``count`` images of ``source``, evenly spaced, under their ids; returns ``folder``.

    Raises InputError where there are fewer.
    """
    if not 1 <= count <= len(source):
        raise InputError(f"{count} photos of {source.name}, which has {len(source)}: take 1 to all")
    for place in np.linspace(0, len(source) - 1, count).round().astype(int):
        file = folder / source.ids[place]
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(source.read(int(place)))
    return folder


def link_photos(source: ImageSource, root: Path, folder: Path, classes: int) -> Path:
    """Link the images of ``source``, files below ``root``, into ``classes`` folders in turn.

    Images are linked again under other names until every class has one. Returns ``folder``.
    """
    for number in range(max(classes, len(source))):
        image = root / source.ids[number % len(source)]
        place = folder / f"class-{number % classes:05d}" / f"{number:07d}{image.suffix}"
        place.parent.mkdir(parents=True, exist_ok=True)
        place.symlink_to(image.resolve())
    return folder


def _encoded(
    scene: NDArray[Any],
    detail: NDArray[np.float32],
    bytes_per_pixel: float,
    rng: np.random.Generator,
) -> bytes:
    """A JPEG of scene + gain * detail; the gain is searched for, the last try is kept."""
    wanted = bytes_per_pixel * scene.shape[0] * scene.shape[1]
    noise = rng.normal(0, 2, (256, 256, 1)).astype(np.float32)  # a tile of it, equal in the colours
    repeats = [-(-side // 256) for side in scene.shape[:2]]
    texture = detail + np.tile(noise, (*repeats, 1))[: scene.shape[0], : scene.shape[1]]
    low, high = 0.0, 4.0
    gain, data = 1.0, b""
    for _ in range(_TRIES):
        picture = np.clip(scene + gain * texture, 0, 255).astype(np.uint8)
        bgr = cv2.cvtColor(picture, cv2.COLOR_RGB2BGR)
        data = cv2.imencode(".jpg", bgr, [cv2.IMWRITE_JPEG_QUALITY, QUALITY])[1].tobytes()
        if len(data) < wanted:
            low = gain
        else:
            high = gain
        if abs(len(data) - wanted) < 0.1 * wanted:
            break
        gain = (low + high) / 2
    return data


def _fine(
    source: NDArray[np.uint8], sides: tuple[int, int], rng: np.random.Generator
) -> NDArray[np.float32]:
    """What of a photograph is finer than 4 pixels, mirrored side by side over the whole picture."""
    values = source.astype(np.float32)
    fine = values - cv2.GaussianBlur(values, (0, 0), 2.0)
    fine = np.roll(fine, int(rng.integers(0, source.shape[1])), axis=1)
    pair = np.concatenate([fine, fine[:, ::-1]], 1)
    tile = np.concatenate([pair, pair[::-1]], 0)
    down, across = (-(-side // size) for side, size in zip(sides, tile.shape, strict=False))
    return np.tile(tile, (down, across, 1))[: sides[0], : sides[1]]


def _clouds(
    sides: tuple[int, int], rng: np.random.Generator, *, coarsest: int, finest: int
) -> NDArray[np.uint8]:
    """Noise of all scales from ``coarsest`` to ``finest`` cells a side, an octave weaker each."""
    out = np.full((*sides, 3), 128, np.float32)
    cells, amplitude = coarsest, 48.0
    while cells <= finest:
        height, width = (max(2, min(cells, side)) for side in sides)
        octave = rng.normal(0, amplitude, (height, width, 3)).astype(np.float32)
        out += cv2.resize(octave, sides[::-1], interpolation=cv2.INTER_LINEAR)
        cells, amplitude = cells * 2, amplitude * 0.75
    return np.clip(out, 0, 255).astype(np.uint8)
