"""Which files are images: by their names, and by the Pillow plug-ins that the user has."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Mapping
from functools import cache
from importlib import import_module
from typing import NamedTuple

from ferkd.system.errors import InputError

_JPEG = (".jpg", ".jpeg", ".jpe", ".jfif")
_TIFF = (".tif", ".tiff")
_NETPBM = (".ppm", ".pgm", ".pbm", ".pnm")
EXTENSIONS = frozenset((*_JPEG, ".png", ".webp", ".gif", ".bmp", ".avif", *_TIFF, *_NETPBM))

# Named so that Pillow never tries the others: its EPS reader runs Ghostscript on the file.
_FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "AVIF")


class _Plugin(NamedTuple):
    """A kind of image that Pillow reads with a package of the user's."""

    format: str
    package: str  # as pip names it
    module: str
    registers: str | None  # what to call after the import


_HEIF = _Plugin("HEIF", "pillow-heif", "pillow_heif", "register_heif_opener")
_JXL = _Plugin("JXL", "pillow-jxl-plugin", "pillow_jxl", None)
PLUGGED: dict[str, _Plugin] = {".heic": _HEIF, ".heif": _HEIF, ".hif": _HEIF, ".jxl": _JXL}
# What these formats say of orientation is a part of the picture and applied by their decoders.
TURNED_BY_DECODER = frozenset((_HEIF.format, _JXL.format))


def formats() -> tuple[str, ...]:
    """The formats that Pillow may try here, by its names."""
    return (*_FORMATS, *(p.format for p in (_HEIF, _JXL) if _has(p)))


def extensions() -> frozenset[str]:
    """The extensions, in lower case, of the files that are read as images here."""
    return EXTENSIONS | {end for end, plugin in PLUGGED.items() if _has(plugin)}


def extension(name: str) -> str:
    """The extension of a file's name or path, in lower case, with its dot."""
    return os.path.splitext(name)[1].lower()


def unread(names: Iterable[str]) -> dict[str, int]:
    """How many of these files are images of kinds that are not read here, by extension."""
    counts = Counter(extension(name) for name in names)
    missing = sorted((PLUGGED.keys() - extensions()) & counts.keys())
    return {end: counts[end] for end in missing}


def describe_unread(counts: Mapping[str, int]) -> str:
    """One line: "3 images are passed over (2 .heic, 1 .jxl): pip install ..."."""
    total = sum(counts.values())
    kinds = ", ".join(f"{count} {end}" for end, count in counts.items())
    packages = " and ".join(dict.fromkeys(PLUGGED[end].package for end in counts))
    verb = "image is" if total == 1 else "images are"
    return f"{total} {verb} passed over ({kinds}): to read them, pip install {packages}"


@cache
def _has(plugin: _Plugin) -> bool:
    """Whether the plug-in is installed; it is registered with Pillow then."""
    try:
        module = import_module(plugin.module)
    except ImportError:
        return False
    try:
        if plugin.registers is not None:
            getattr(module, plugin.registers)()
    except Exception as error:  # whatever a package of the user's raises
        raise InputError(
            f"{plugin.package} is installed but cannot be used ({error}); repair or remove it"
        ) from None
    return True
