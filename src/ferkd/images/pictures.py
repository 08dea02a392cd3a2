"""Images ready to be cut: from the cache, or else decoded as small as their crops allow."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from .cache import PixelCache, made_for
from .decode import UnreadableImage, decode
from .room import named
from .scaled import decode_scaled, jpeg_size
from .sources import ImageSource, fingerprint


class Picture:
    """One image at hand: its size is known, its pixels come on demand.

    ``height`` and ``width`` are those of the whole upright image.
    """

    def __init__(
        self,
        height: int,
        width: int,
        *,
        data: bytes = b"",
        exif: bool = True,
        pixels: NDArray[np.uint8] | None = None,
        content: int | None = None,
    ) -> None:
        self.height, self.width = height, width
        self._data, self._exif = data, exif
        self._pixels, self._content = pixels, content

    @property
    def fingerprint(self) -> int:
        """The content fingerprint of the image's file."""
        if self._content is None:
            self._content = fingerprint(self._data)
        return self._content

    def pixels(self, reduction: int = 1) -> tuple[NDArray[np.uint8], tuple[float, float] | None]:
        """Pixels uint8 [h, w, 3] and how many of the whole image's lie in one, down and across.

        The second is None for the whole image itself. ``reduction`` (1, 2, 4 or 8) allows a copy
        smaller by that factor. Raises UnreadableImage.
        """
        if self._pixels is not None:
            rows, columns = self._pixels.shape[:2]
            if (rows, columns) == (self.height, self.width):
                return self._pixels, None
            return self._pixels, (self.height / rows, self.width / columns)
        pixels, found = decode_scaled(self._data, reduction, exif=self._exif)
        if found > 1:
            return pixels, (found, found)
        if pixels.shape[:2] != (self.height, self.width):
            raise UnreadableImage(
                f"its header says {self.height}x{self.width} pixels, but it holds "
                f"{pixels.shape[0]}x{pixels.shape[1]}"
            )
        return pixels, None


class Pictures:
    """The images of a source, opened one by one; safe to be used by several workers.

    ``scaled`` False decodes every image in full.
    """

    def __init__(
        self,
        source: ImageSource,
        *,
        exif: bool = True,
        scaled: bool = True,
        cache: PixelCache | None = None,
    ) -> None:
        if cache is not None:
            made_for(cache, source, exif)
        self.source, self.exif, self.scaled, self.cache = source, exif, scaled, cache

    def open(self, place: int) -> Picture:
        """The image at ``place`` of the source. Raises UnreadableImage, InputError for no file."""
        with named(self.source.ids[place], self.source.name):
            return self._open(place)

    def _open(self, place: int) -> Picture:
        cache = self.cache
        if cache is None:
            data = self.source.read(place)
            size = jpeg_size(data, exif=self.exif) if self.scaled else None
            if size is not None:
                return Picture(*size, data=data, exif=self.exif)
            pixels = decode(data, exif=self.exif)
            return Picture(*pixels.shape[:2], data=data, pixels=pixels)
        kept = cache.get(place) if cache.trusts(place) else None
        if kept is None:
            data = self.source.read(place)
            kept = cache.get(place, data)
        if kept is None:
            content = fingerprint(data)
            pixels = decode(data, exif=self.exif)
            kept = cache.put(place, pixels, content)
            if kept is None:
                return Picture(*pixels.shape[:2], pixels=pixels, content=content)
        return Picture(kept.height, kept.width, pixels=kept.pixels, content=kept.fingerprint)
