"""What all sources but folders share: options behind "?", and class numbers from labels."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from itertools import pairwise
from urllib.parse import parse_qsl

import numpy as np

from ferkd.images.sources.source import check_look_alike
from ferkd.system.errors import InputError


def split_options(spec: str, known: Collection[str]) -> tuple[str, dict[str, str]]:
    """("hf:birds", {"label": "kind"}) of "hf:birds?label=kind".

    A "?" whose keys are none of these belongs to a URL. Raises InputError for some of each.
    """
    place, mark, text = spec.rpartition("?")
    if not mark:
        return spec, {}
    options = dict(parse_qsl(text, keep_blank_values=True))
    if not options.keys() & set(known):
        return spec, {}
    if strange := sorted(options.keys() - set(known)):
        raise InputError(
            f"{spec}: there is no option {strange[0]!r} here; the options are {', '.join(known)}"
        )
    return place, options


def numbered(labels: Sequence[str | None], name: str) -> tuple[np.ndarray, tuple[str, ...]]:
    """Targets int32 [N] and the sorted class names of labels that are texts; None: -1."""
    names = tuple(sorted({label for label in labels if label is not None}))
    check_look_alike(names, name)
    number = {label: index for index, label in enumerate(names)}
    targets = [-1 if label is None else number[label] for label in labels]
    return np.array(targets, np.int32).reshape(-1), names


def refuse_duplicates(ids: Sequence[str], name: str, what: str) -> None:
    """Raise InputError for the first of the sorted ``ids`` that stands there twice."""
    for first, second in pairwise(ids):
        if first == second:
            raise InputError(f"{name}: {what} {first!r} stands there twice. Remove one")


def by_id(ids: Sequence[str]) -> np.ndarray:
    """The places of ids in the order of their code points, int64 [N]."""
    return np.array(sorted(range(len(ids)), key=ids.__getitem__), np.int64)
