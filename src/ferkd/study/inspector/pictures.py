"""Images of a store as a page shows them: a small JPEG, all crops with their soft labels."""

from __future__ import annotations

import base64
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from ferkd.images import ImageSource, decode, fingerprint
from ferkd.loading.crop_sources import match
from ferkd.store import LabelStore
from ferkd.study.suspicious import Judged
from ferkd.system.errors import InputError

TOP = 5  # classes shown of a crop's soft label
_QUALITY = 78


class Images:
    """The images of a store, found in their source; safe in threads.

    ``cells`` uint16 [N, crops] and ``scores`` float32 [N, crops] are those of `tables`.
    """

    def __init__(
        self,
        store: LabelStore,
        source: ImageSource | None,
        scores: NDArray[np.float32],
        cells: NDArray[np.uint16],
        judged: Judged,
    ) -> None:
        self.store, self.judged = store, judged
        self._source, self._scores, self._cells = source, scores, cells
        self._places = None if source is None else match(source, store)

    @property
    def pictured(self) -> bool:
        """Whether there are pictures."""
        return self._source is not None

    def describe(self, row: int) -> dict[str, Any]:
        """An image without its picture: size, classes, and by crop the box (top, left, height,
        width), 1 where mirrored, the cell, the score and the first classes with their
        probabilities, all in the order of the crops."""
        store, crops = self.store, np.arange(self.store.crops_per_image)
        table, labels = store.images[row], store.labels(row, crops)
        order = labels.log_probs.argsort(1, descending=True)[:, :TOP]
        classes = labels.classes.gather(1, order).tolist()
        probs = labels.log_probs.gather(1, order).exp().tolist()
        judged = self.judged
        return {
            "row": row,
            "id": store.ids[row],
            "height": int(table["height"]),
            "width": int(table["width"]),
            "given": int(judged.given[row]),
            "other": int(judged.other[row]),
            "p": [_short(judged.p_given[row]), _short(judged.p_other[row])],
            "doubt": _short(judged.suspicion[row], 9),  # whether it is above 0 must stay
            "votes": _short(judged.votes[row]),
            "boxes": store.boxes(row, crops).ravel().tolist(),
            "flips": store.flips(row, crops).astype(int).tolist(),
            "cells": self._cells[row].tolist(),
            "scores": [_short(s) for s in self._scores[row]],
            "top": [
                [v for c, p in zip(cs, ps, strict=True) if p > 0 for v in (c, _short(p))]
                for cs, ps in zip(classes, probs, strict=True)
            ],
        }

    def jpeg(self, row: int, longest: int) -> bytes:
        """The picture, ``longest`` pixels on its longer side at most. Raises InputError where it
        cannot be read, or is not the one that was labelled."""
        if self._source is None or self._places is None:
            raise InputError("no images were given")
        data = self._source.read(int(self._places[row]))
        if fingerprint(data) != int(self.store.images["fingerprint"][row]):
            raise InputError("this file is not the one that was labelled: its content differs")
        pixels = decode(data, exif=self.store.geometry.images.exif)
        scale = longest / max(pixels.shape[:2])
        if scale < 1:
            size = [max(1, round(n * scale)) for n in pixels.shape[1::-1]]
            pixels = np.asarray(cv2.resize(pixels, size, interpolation=cv2.INTER_AREA), np.uint8)
        done, jpeg = cv2.imencode(".jpg", pixels[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, _QUALITY])
        if not done:
            raise InputError(f"a picture of shape {pixels.shape} cannot be written as JPEG")
        return jpeg.tobytes()

    def embedded(self, row: int, longest: int) -> dict[str, Any]:
        """:meth:`describe` with the picture as a data URI, or ``unread``: why there is none."""
        item = self.describe(row)
        if self.pictured:
            try:
                data = base64.b64encode(self.jpeg(row, longest)).decode()
                item["src"] = f"data:image/jpeg;base64,{data}"
            except InputError as error:
                item["unread"] = str(error)
        return item


def sample(judged: Judged, cells: NDArray[np.uint16], count: int) -> list[int]:
    """Rows of ``count`` images to look at, ascending: a third of them the most suspicious, the
    others spread over the classes, those whose crops differ most in confidence first."""
    doubted = judged.ranked()
    chosen = dict.fromkeys(doubted[judged.denied[doubted]][: count // 3].tolist())
    spread = cells.max(1).astype(int) - cells.min(1)
    order = np.lexsort((-spread, judged.given))
    _, starts = np.unique(judged.given[order], return_index=True)
    queues = np.split(order, starts[1:]) if len(order) else []
    for depth in range(max(map(len, queues), default=0)):
        for queue in queues:
            if len(chosen) >= count:
                return sorted(chosen)
            if depth < len(queue):
                chosen.setdefault(int(queue[depth]))
    return sorted(chosen)


def _short(value: float, digits: int = 3) -> float | None:
    """Some decimals; None for NaN, which JSON has not."""
    return None if np.isnan(value) else round(float(value), digits)
