"""Pictures for the report: thumbnails as JPEG data URIs, crops chosen for display."""

from __future__ import annotations

import base64
from collections.abc import Sequence

import cv2
import numpy as np
from numpy.typing import ArrayLike, NDArray

from ferkd.crops import cut
from ferkd.study.report.model import JPEG_URI, REGION_NAMES, CropThumb, GalleryCrop, GalleryItem

Top = Sequence[tuple[str, float]]


def jpeg_uri(image: NDArray[np.uint8], *, longest: int = 320, quality: int = 80) -> str:
    """The RGB image [H,W,3], shrunk to ``longest`` pixels on its longer side, as a data URI."""
    scale = longest / max(image.shape[:2])
    if scale < 1:
        size = [max(1, round(n * scale)) for n in image.shape[1::-1]]
        image = np.asarray(cv2.resize(image, size, interpolation=cv2.INTER_AREA), np.uint8)
    done, data = cv2.imencode(".jpg", image[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, quality])
    if not done:
        raise ValueError(f"an image of shape {image.shape} cannot be written as JPEG")
    return JPEG_URI + base64.b64encode(data.tobytes()).decode("ascii")


def pick_crops(regions: ArrayLike, limit: int) -> list[int]:
    """At most ``limit`` of an image's crops, the regions taken in turn, lowest numbers first.

    A rare region so stays visible beside a common one. Ascending order.
    """
    code = np.asarray(regions)
    queues = [np.flatnonzero(code == r) for r in range(len(REGION_NAMES))]
    turns = sorted((turn, r, int(i)) for r, q in enumerate(queues) for turn, i in enumerate(q))
    return sorted(i for _, _, i in turns[:limit])


def gallery_item(
    image: NDArray[np.uint8],
    boxes: ArrayLike,
    flips: ArrayLike,
    regions: ArrayLike,
    scores: ArrayLike,
    *,
    name: str,
    target: str = "",
    top: Sequence[Top] = (),
    object_box: Sequence[int] | None = None,
    limit: int = 6,
    longest: int = 320,
) -> GalleryItem:
    """An image [H,W,3] with at most ``limit`` of its K crops; the arguments hold all K.

    ``boxes`` [K,4] in pixels of ``image``, ``flips``, ``regions``, ``scores`` [K]; ``top``: the
    teacher's best classes of each crop as (name, probability), best first.
    """
    b, f, r, s = _crop_arrays(boxes, flips, regions, scores)
    chosen = pick_crops(r, limit)
    return GalleryItem(
        name=name,
        image=jpeg_uri(image, longest=longest),
        height=image.shape[0],
        width=image.shape[1],
        crops=tuple(_crop(b[i], f[i], r[i], s[i], top[i] if top else ()) for i in chosen),
        target=target,
        object_box=None if object_box is None else _box(object_box),
    )


def crop_thumb(
    image: NDArray[np.uint8],
    box: ArrayLike,
    flip: bool,
    region: int,
    score: float,
    *,
    name: str,
    target: str = "",
    top: Top = (),
    size: int = 112,
) -> CropThumb:
    """One crop of an image [H,W,3], cut as the student sees it: ``size`` x ``size`` pixels."""
    crop = _crop(np.asarray(box), flip, region, score, top)
    view = cut(image, crop.box, crop.flip, size)
    return CropThumb(name=name, image=jpeg_uri(view), crop=crop, target=target)


def _crop_arrays(
    boxes: ArrayLike, flips: ArrayLike, regions: ArrayLike, scores: ArrayLike
) -> tuple[NDArray[np.int64], NDArray[np.bool_], NDArray[np.int64], NDArray[np.float64]]:
    b = np.asarray(boxes, np.int64).reshape(-1, 4)
    f, r = np.asarray(flips, np.bool_).ravel(), np.asarray(regions, np.int64).ravel()
    s = np.asarray(scores, np.float64).ravel()
    if not len(b) == len(f) == len(r) == len(s):
        raise ValueError(f"{len(b)} boxes, {len(f)} flips, {len(r)} regions, {len(s)} scores")
    return b, f, r, s


def _crop(
    box: NDArray[np.integer],
    flip: bool | np.bool_,
    region: int | np.integer,
    score: float,
    top: Top,
) -> GalleryCrop:
    return GalleryCrop(
        box=_box(box),
        flip=bool(flip),
        region=int(region),
        score=float(score),
        top=tuple((str(name), float(p)) for name, p in top),
    )


def _box(box: Sequence[int] | NDArray[np.integer]) -> tuple[int, int, int, int]:
    top, left, height, width = (int(v) for v in box)
    return top, left, height, width
