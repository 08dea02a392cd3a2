"""What images hold, in one number: other pictures under the same names are other data."""

from __future__ import annotations

import hashlib
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from ferkd.images import ImageSource, fingerprint

BYTES = 1 << 30  # of encoded images that are read at most: a second or two from a disk
_CHUNK = 64
_THREADS = 8  # reading waits, on remote storage for long


def content(source: ImageSource, limit: int = BYTES) -> str:
    """SHA-256 (hex) over the fingerprints of the images' bytes.

    Reads all images of a set of at most ``limit`` bytes. Of a larger set it reads images spread
    over the whole, always the same ones, until they make up ``limit``: another set under the same
    names shows, one changed image may not.
    """
    order = np.random.default_rng(len(source)).permutation(len(source))
    digest = hashlib.sha256()
    taken = 0
    with ThreadPoolExecutor(_THREADS, "ferkd-content") as pool:
        for start in range(0, len(order), _CHUNK):
            some = [int(place) for place in order[start : start + _CHUNK]]
            for found, size in pool.map(lambda place: _seen(source, place), some):
                digest.update(found.to_bytes(8, "little"))
                taken += size
            if taken >= limit:
                break
    return digest.hexdigest()


def _seen(source: ImageSource, place: int) -> tuple[int, int]:
    data = source.read(place)
    return fingerprint(data), len(data)
