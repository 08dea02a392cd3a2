"""The flowers: 3670 photographs of five kinds, as TensorFlow's examples offer them.

By many photographers, CC BY 2.0; the archive's list of credits stays with every copy.
"""

from __future__ import annotations

import hashlib
import io
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

from ferkd.study.data.layout import files_of, new_folder
from ferkd.system.download import download
from ferkd.system.errors import InputError
from ferkd.system.storage import user_cache

URL = "https://storage.googleapis.com/download.tensorflow.org/example_images/flower_photos.tgz"
ARCHIVE_BYTES = 228_813_984
CLASSES = ("daisy", "dandelion", "roses", "sunflowers", "tulips")
# SHA-256 over "CLASS/NAME SHA256\n" of all photographs, sorted; over "SPLIT/CLASS/NAME\n" of what
# is made of them.
PHOTOS = "e4a26f0dfe423fc053bcc4dfd2a4576a2b321a822bb7530632dd3855e09fd403"
LAID_OUT = "1bc8ee860cc72122820d52809008a2157b2fb200ff7a1e868166ba94af998e4e"
# Mislabelled or twice in the training images; nearly the same as one of them in the others.
_DROPPED = frozenset(
    (
        "daisy/10994032453_ac7f8d9e2e.jpg",
        "dandelion/4278757393_bca8415ed4_n.jpg",
        "roses/12406418663_af20dc225f_n.jpg",
        "roses/15922772266_1167a06620.jpg",
        "roses/2093263381_afd51358a3.jpg",
        "sunflowers/15066430311_fb57fa92b0_m.jpg",
        "sunflowers/15072973261_73e2912ef2_n.jpg",
        "sunflowers/2588453601_66f2a03cca_n.jpg",
        "tulips/15922772266_1167a06620.jpg",
        "tulips/2333321040_3960b9d67e_n.jpg",
        "tulips/5700394524_dc6f8fa9cd_n.jpg",
    )
)
SIDE = 192  # pixels of the shorter side at most
_QUALITY = 92
_SEED = 42  # of the split
_PHOTOS = 300  # originals that the benchmarks time
_CREDITS = ("LICENSE.txt", "ATTRIBUTION_LICENSE.txt")


def flowers(
    out: str | Path,
    given: str | Path | None = None,
    *,
    overwrite: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, int]:
    """Lay the flowers out in ``out``: ``train``, ``val`` and ``photos``; returns their counts.

    ``given`` is the archive, a folder of its class folders, or a folder laid out before; None
    fetches the archive. Of each kind a fifth, drawn with a fixed seed, becomes ``val``. Photographs
    whose shorter side is longer than 192 px are resized to it; ``photos`` holds 300 originals,
    evenly spread over the names, and is left out where only resized ones are given. Raises
    InputError where the photographs are not those of the results.
    """
    out = Path(out).expanduser()
    place = None if given is None else Path(given).expanduser()
    with new_folder(out, overwrite=overwrite) as folder:
        if place is not None and (place / "train").is_dir() and (place / "val").is_dir():
            return _copied(place, folder, progress)
        if place is None:
            kept = user_cache() / "downloads" / "flower_photos.tgz"
            place = download(URL, kept, size=ARCHIVE_BYTES, progress=progress)
        return _made(place, folder, progress)


def split(names: list[str]) -> tuple[list[str], list[str]]:
    """The training and validation names of one kind's sorted names."""
    order = np.random.RandomState(_SEED).permutation(len(names))
    held_out = {names[i] for i in order[: math.ceil(len(names) / 5)]}
    return [n for n in names if n not in held_out], [n for n in names if n in held_out]


def resized(data: bytes) -> bytes:
    """A photograph with a shorter side of 192 px at most; one that has it stays as it is."""
    with Image.open(io.BytesIO(data), formats=("JPEG",)) as image:
        scale = SIDE / min(image.size)
        if scale >= 1:
            return data
        width, height = (round(side * scale) for side in image.size)
        small = image.convert("RGB").resize((width, height), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    small.save(buffer, "JPEG", quality=_QUALITY)
    return buffer.getvalue()


def _made(place: Path, folder: Path, progress: Callable[[int, int], None] | None) -> dict[str, int]:
    digests: dict[str, str] = {}
    originals = folder / "originals"
    for parts, data in files_of(place, _wanted):
        name = "/".join(parts[-2:])
        if parts[-1] in _CREDITS:
            (folder / parts[-1]).write_bytes(data)
            continue
        digests[name] = hashlib.sha256(data).hexdigest()
        _write(originals / name, data)
    text = "".join(f"{name} {digest}\n" for name, digest in sorted(digests.items()))
    if hashlib.sha256(text.encode()).hexdigest() != PHOTOS:
        raise InputError(
            f"{place} holds {len(digests)} photographs of {', '.join(CLASSES)} that are not the "
            "3670 of the results; fetch flower_photos.tgz again, or name a folder of it"
        )
    names = sorted(digests)
    for name in (names[i * len(names) // _PHOTOS] for i in range(_PHOTOS)):
        _write(folder / "photos" / name, (originals / name).read_bytes())
    done = 0
    for kind in CLASSES:
        parts_of = split([name for name in names if name.startswith(f"{kind}/")])
        for part, members in zip(("train", "val"), parts_of, strict=True):
            for name in members:
                if name not in _DROPPED:
                    _write(folder / part / name, resized((originals / name).read_bytes()))
                (originals / name).unlink()
                done += 1
                if progress:
                    progress(done, len(names))
        (originals / kind).rmdir()
    originals.rmdir()
    return _counts(folder)


def _copied(
    place: Path, folder: Path, progress: Callable[[int, int], None] | None
) -> dict[str, int]:
    """A copy of what was laid out before."""
    found = [
        path
        for part in ("train", "val", "photos")
        for path in sorted((place / part).glob("*/*.jpg"))
    ]
    names = sorted(path.relative_to(place).as_posix() for path in found)
    listed = [f"{name}\n" for name in names if not name.startswith("photos/")]
    if hashlib.sha256("".join(listed).encode()).hexdigest() != LAID_OUT:
        raise InputError(
            f"{place} has train and val, but its {len(listed)} files are not those of the results; "
            "give the archive flower_photos.tgz or its class folders"
        )
    for done, path in enumerate(found, 1):
        _write(folder / path.relative_to(place), path.read_bytes())
        if progress:
            progress(done, len(found))
    for name in _CREDITS:
        if (place / name).is_file():
            _write(folder / name, (place / name).read_bytes())
    return _counts(folder)


def _wanted(parts: tuple[str, ...]) -> bool:
    is_photo = len(parts) > 1 and parts[-2] in CLASSES and parts[-1].endswith(".jpg")
    return is_photo or parts[-1] in _CREDITS


def _write(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)


def _counts(folder: Path) -> dict[str, int]:
    parts = ("train", "val", "photos")
    return {part: len(list((folder / part).glob("*/*.jpg"))) for part in parts}
