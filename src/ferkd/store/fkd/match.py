"""Which FKD label file belongs to which image."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from ferkd.images import ImageSource
from ferkd.system.errors import InputError

SUFFIX = ".tar"  # what the authors' files are named; they are no archives of tar


class Match(NamedTuple):
    """Which label file belongs to which image: (place in the image source, path) in the order of
    the images; and the files and ids that have no, or no one, counterpart."""

    pairs: list[tuple[int, str]]
    unmatched_labels: tuple[str, ...]
    unmatched_images: tuple[str, ...]
    ambiguous: tuple[str, ...]


def label_files(root: Path) -> list[str]:
    """The paths of all label files under ``root``, with '/', sorted. Raises InputError."""
    if not root.is_dir():
        raise InputError(f"{root} is not a folder; give the folder that holds the label files")
    found = []
    for folder, _, names in os.walk(root):
        inside = Path(folder).relative_to(root)
        found += [(inside / n).as_posix() for n in names if n.endswith(SUFFIX) and n[0] != "."]
    if not found:
        raise InputError(f"{root} holds no label files (SPLIT/CLASS/NAME{SUFFIX}); check the path")
    for path in found:
        try:
            path.encode()
        except UnicodeEncodeError:
            raise InputError(f"{root}: the name {path!a} is not valid Unicode; rename it") from None
    return sorted(found)


def match_labels(files: Sequence[str], source: ImageSource) -> Match:
    """Pair label files with images by CLASS/NAME; what comes before CLASS is found out.

    The authors cut an image's name at its first dot; a file that has the whole name less its
    extension is found too and goes first. Raises InputError when nothing fits, or when as many
    files fit in several folders and none of these is named as the image folder.
    """
    labels = {path.removesuffix(SUFFIX): path for path in files}
    stems = [(os.path.splitext(i)[0], cut_at_dot(i)) for i in source.ids]
    wanted = {stem for both in stems for stem in both}
    counts: Counter[str] = Counter()
    for label in labels:
        parts = label.split("/")
        for start in range(len(parts)):
            if "/".join(parts[start:]) in wanted:
                counts["".join(f"{part}/" for part in parts[:start])] += 1
    prefix = _prefix(counts, files, source)
    claims: dict[str, list[int]] = {}
    unmatched = []
    for place, (whole, cut) in enumerate(stems):
        path = labels.get(prefix + whole) or labels.get(prefix + cut)
        if path:
            claims.setdefault(path, []).append(place)
        else:
            unmatched.append(source.ids[place])
    return Match(
        sorted((places[0], path) for path, places in claims.items() if len(places) == 1),
        tuple(path for path in files if path not in claims),
        tuple(unmatched),
        tuple(path for path in files if len(claims.get(path, ())) > 1),
    )


def cut_at_dot(image_id: str) -> str:
    """CLASS/NAME with the name cut at its first dot, as the authors name their files."""
    folder, slash, name = image_id.rpartition("/")
    return folder + slash + name.split(".")[0]


def _prefix(counts: Counter[str], files: Sequence[str], source: ImageSource) -> str:
    if not counts:
        raise InputError(
            f"none of the {len(files)} label files (first: {files[0]}) belongs to any of the "
            f"{len(source)} images of {source.name} (first: {source.ids[0]}); label files are "
            f"SPLIT/CLASS/NAME{SUFFIX} for images CLASS/NAME.jpg: check both folders"
        )
    most = max(counts.values())
    best = sorted(prefix for prefix, count in counts.items() if count == most)
    if len(best) > 1:
        folder = os.path.basename(os.path.normpath(source.name))
        best_named = [prefix for prefix in best if prefix.split("/")[-2:-1] == [folder]]
        if len(best_named) != 1:
            raise InputError(
                f"the images of {source.name} fit {most} label files in each of "
                f"{', '.join(prefix or '.' for prefix in best)}; give one of these folders"
            )
        best = best_named
    return best[0]
