"""What every source of images gives: ids, ground truth, and the encoded bytes."""

from __future__ import annotations

import hashlib
import unicodedata
from collections.abc import Iterable, Sequence
from typing import Protocol

import numpy as np

from ferkd.system.errors import InputError


class ImageSource(Protocol):
    """A fixed, ordered set of encoded images."""

    @property
    def name(self) -> str:
        """Where the images come from, for messages."""

    @property
    def ids(self) -> Sequence[str]:
        """One id an image, unique, sorted by code point, with '/' on every system."""

    @property
    def targets(self) -> np.ndarray:
        """The ground-truth class of each image, int32 [N]; -1 where there is none."""

    @property
    def class_names(self) -> tuple[str, ...]:
        """The names that targets index; () where there is no ground truth."""

    def __len__(self) -> int: ...

    def read(self, index: int) -> bytes:
        """The encoded bytes of one image; InputError naming its id if it cannot be read."""


def fingerprint(data: bytes) -> int:
    """64-bit content fingerprint of encoded bytes: BLAKE2b-8 read as a little-endian integer."""
    return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "little")


def check_ids(ids: Sequence[str], name: str) -> None:
    """Raise InputError for an id that is not valid Unicode."""
    for image_id in ids:
        try:
            image_id.encode()
        except UnicodeEncodeError:
            raise InputError(
                f"{name}: the file name {image_id!a} is not valid Unicode (UTF-8). Rename it"
            ) from None


def check_look_alike(class_names: Sequence[str], name: str) -> None:
    """Raise InputError for classes that are spelt differently in Unicode and look the same."""
    seen: dict[str, str] = {}
    for found in class_names:
        other = seen.setdefault(unicodedata.normalize("NFC", found), found)
        if other != found:
            raise InputError(
                f"{name}: the classes {other!a} and {found!a} look the same and differ in Unicode "
                "normalisation only. Put their images into one of them"
            )


def spelt_otherwise(wanted: Iterable[str], found: Iterable[str]) -> str:
    """A sentence where the first of ``wanted`` that is not found differs in its spelling alone.

    Systems write an accent as a letter's part or behind it (Unicode normalisation), and both look
    the same. Empty where that is not the reason.
    """
    there = set(found)
    alike = {unicodedata.normalize("NFC", name): name for name in there}
    for name in wanted:
        if name not in there:
            other = alike.get(unicodedata.normalize("NFC", name))
            return (
                ""
                if other is None
                else f". {name!a} and {other!a} look the same and differ in Unicode normalisation "
                "only: rename one, as by convmv"
            )
    return ""


def some(names: Sequence[str], what: str) -> str:
    """'7 images (a, b, c, d, e, ...)'."""
    shown = ", ".join(ascii(n) if not n.isprintable() else n for n in names[:5])
    plural = "es" if what.endswith("s") else "s"
    more = ", ..." if len(names) > 5 else ""
    return f"{len(names)} {what}{plural if len(names) > 1 else ''} ({shown}{more})"
