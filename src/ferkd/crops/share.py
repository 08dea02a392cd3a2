"""How much of an object a crop shows."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray


def object_share(crops: ArrayLike, objects: ArrayLike) -> NDArray[np.float64]:
    """Share of each object's area that lies inside the crop, 0..1; nan for an empty object.

    Boxes are (top, left, height, width) on the last axis; the other axes broadcast, so crops
    [N,K,4] go with objects [N,1,4].
    """
    c, o = np.asarray(crops, np.float64), np.asarray(objects, np.float64)
    start = np.maximum(c[..., :2], o[..., :2])
    stop = np.minimum(c[..., :2] + c[..., 2:], o[..., :2] + o[..., 2:])
    inside = np.maximum(stop - start, 0).prod(-1)
    area = np.broadcast_to(o[..., 2:].prod(-1), inside.shape)
    return np.divide(inside, area, out=np.full(inside.shape, np.nan), where=area > 0)
