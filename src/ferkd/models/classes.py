"""Which of a teacher's classes each class folder is: by order, name, WordNet id or a class map.

A class map is a JSON object, or lines of text ``FOLDER CLASS``, that names the teacher's class of
every folder by its name or its number. It may name a part of the teacher's classes: the labels'
classes are then the folders', and the teacher's logits are taken at those classes alone, so that
a label is the teacher's probability *given that* the crop shows one of the folders' classes.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ferkd.system.errors import InputError

ORDERS = ("sorted", "natural", "number")  # words that stand for a class map
_WORDNET_ID = re.compile(r"n\d{8}")
_MAP_BYTES = 64 << 20  # of a class map's file, at most


@dataclass(frozen=True)
class Known:
    """What is known of a teacher's classes: how many, their names, and other names they go by.

    ``aliases`` holds the WordNet ids and words of ImageNet's classes where a network without
    names has as many classes as one of ImageNet's sets. Each holds one name a class, or is empty.
    """

    who: str
    count: int
    names: tuple[str, ...] = ()
    aliases: tuple[tuple[str, ...], ...] = ()


@dataclass(frozen=True)
class Matching:
    """``columns``: the teacher's class of each folder. ``by``: how they were found, in words."""

    columns: tuple[int, ...]
    by: str


def match_folders(
    folders: Sequence[str], known: Known, class_map: str | Path | Mapping[str, Any] | None = None
) -> Matching:
    """The teacher's class of each of ``folders`` (sorted by code point).

    ``class_map`` is a mapping, a file of one, or one of :data:`ORDERS`: the folders' sorted order,
    their natural order (2 before 10, as timm's own training numbers them), the number that is the
    folder's name. Without it folders are matched by the teacher's names, WordNet ids by those of
    ImageNet's classes, and what has no names by order alone. Raises InputError for folders that
    cannot be matched one by one.
    """
    if class_map is not None:
        return _mapped(folders, known, class_map)
    for names in (known.names, *known.aliases):
        columns = _places(folders, names)
        if folders and None not in columns:
            found = tuple(c for c in columns if c is not None)
            if found == tuple(range(known.count)):
                return Matching(found, "order")
            ids = all(_WORDNET_ID.fullmatch(folder) for folder in folders)
            return Matching(found, "WordNet id" if ids else "name")
    _refuse_unless_countable(folders, known)
    # Nothing tells the order: the labels' agreement with the ground truth will.
    return Matching(tuple(range(known.count)), "order")


def _refuse_unless_countable(folders: Sequence[str], known: Known) -> None:
    """Raise InputError unless folders that no name matches may be the classes by their order."""
    wordnet = all(_WORDNET_ID.fullmatch(folder) for folder in folders)
    if len(folders) != known.count:
        if wordnet and known.aliases:
            places = zip(folders, _places(folders, known.aliases[0]), strict=True)
            foreign = [folder for folder, place in places if place is None]
            raise InputError(
                f"the WordNet ids {_some(foreign)} are none of the {known.count} ImageNet classes "
                f"of {known.who}; leave these folders out, or give a --class-map FILE"
            )
        raise InputError(_count(folders, known))
    if not known.names or wordnet:
        return
    pairs = zip(known.names, folders, strict=True)
    index, (own, theirs) = next(
        (i, pair) for i, pair in enumerate(pairs) if _plain(pair[0]) != _plain(pair[1])
    )
    raise InputError(
        f"class {index} is {own!r} for {known.who}, but {theirs!r} for the images; give a teacher "
        "for these classes, rename the folders, say which is which by --class-map FILE, or "
        "--no-targets if the folders are not the teacher's classes"
    )


def orders(folders: Sequence[str], count: int) -> dict[str, tuple[int, ...]]:
    """The numberings of ``folders`` in use, by the word of :data:`ORDERS`: the class of each.

    Those that do not apply (other counts, names that are no numbers) are left out.
    """
    found: dict[str, tuple[int, ...]] = {}
    if len(folders) == count:
        natural = sorted(range(count), key=lambda i: _natural(folders[i]))
        place = {folder: number for number, folder in enumerate(natural)}
        found["sorted"] = tuple(range(count))
        found["natural"] = tuple(place[i] for i in range(count))
    if all(re.fullmatch(r"[0-9]{1,6}", folder) for folder in folders):
        numbers = tuple(int(folder) for folder in folders)
        if max(numbers, default=0) < count and len(set(numbers)) == len(numbers):
            found["number"] = numbers
    return found


def read_class_map(path: str | Path) -> dict[str, Any]:
    """The class map in a file: JSON, or lines ``FOLDER CLASS`` (a tab, "=" or the last space
    between them; "#" begins a comment line). Raises InputError."""
    file = Path(path).expanduser()
    try:
        if not file.is_file():
            raise InputError(
                f"class map {path} is not a file; give a JSON or text file of folder and teacher "
                f"class, or one of the words {', '.join(ORDERS)}"
            )
        with file.open("rb") as opened:
            data = opened.read(_MAP_BYTES + 1)
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise InputError(f"class map {path} is not UTF-8 text; save it as UTF-8") from None
    except OSError as error:
        raise InputError(f"class map {path} cannot be read ({error.strerror})") from error
    if len(data) > _MAP_BYTES:
        raise InputError(f"class map {path} is larger than {_MAP_BYTES >> 20} MiB; is it a map?")
    if text.lstrip().startswith(("{", "[")):
        return _json_map(text, path)
    found: dict[str, Any] = {}
    for number, line in enumerate(text.splitlines(), 1):
        line = line.strip()
        if not line or line.startswith("#"):
            continue
        separator = next((s for s in ("\t", "=") if s in line), None)
        folder, _, wanted = line.partition(separator) if separator else line.rpartition(" ")
        folder, wanted = folder.strip(), wanted.strip()
        if not folder or not wanted or folder in found:
            raise InputError(
                f"class map {path}, line {number}: {line!r} names no folder and class, or a folder "
                "that has one; write FOLDER CLASS, as in 'roses 985'"
            )
        found[folder] = wanted
    return found


def _json_map(text: str, path: str | Path) -> dict[str, Any]:
    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        twice = [name for name, times in Counter(name for name, _ in pairs).items() if times > 1]
        if twice:
            raise InputError(f"class map {path} names folder {twice[0]!r} twice; give it one class")
        return dict(pairs)

    try:
        found = json.loads(text, object_pairs_hook=once)
    except (ValueError, RecursionError) as error:
        raise InputError(f"class map {path} is not valid JSON ({error}); mend it") from None
    if not isinstance(found, dict) or not all(
        isinstance(v, str | int) and not isinstance(v, bool) for v in found.values()
    ):
        raise InputError(
            f"class map {path} is no JSON object of folder and class name or number; write "
            '{"roses": 985, "daisy": "daisy"}'
        )
    return found


def _mapped(
    folders: Sequence[str], known: Known, class_map: str | Path | Mapping[str, Any]
) -> Matching:
    if isinstance(class_map, str) and class_map in ORDERS:
        found = orders(folders, known.count).get(class_map)
        if found is None:
            raise InputError(
                f"class map {class_map!r} does not fit: {len(folders)} folders and "
                f"{known.count} classes of {known.who}; "
                + (
                    "the folders' names must be class numbers, each once and below the classes"
                    if class_map == "number"
                    else "there must be as many folders as classes: give a file of folder and class"
                )
            )
        return Matching(found, f"{class_map} order" if class_map != "number" else "number")
    given = class_map if isinstance(class_map, Mapping) else read_class_map(class_map)
    missing = [folder for folder in folders if folder not in given]
    if missing:
        raise InputError(
            f"the class map names no class for {_some(missing)}; give every class folder one"
        )
    columns = tuple(_class_of(given[folder], folder, known) for folder in folders)
    twice = [c for c, times in Counter(columns).items() if times > 1]
    if twice:
        both = [folder for folder, c in zip(folders, columns, strict=True) if c == twice[0]]
        raise InputError(
            f"the class map gives class {twice[0]} to {_some(both)}; a class of the teacher is one "
            "folder's"
        )
    return Matching(columns, "class map")


def _class_of(wanted: str | int, folder: str, known: Known) -> int:
    """The number of the class that a class map names."""
    if isinstance(wanted, str):
        places = {
            i
            for names in (known.names, *known.aliases)
            for i, name in enumerate(names)
            if _plain(name) == _plain(wanted)
        }
        if len(places) == 1:
            return places.pop()
        if places:
            raise InputError(
                f"the class map gives {folder!r} the class {wanted!r}, which {known.who} has "
                f"{len(places)} times (numbers {', '.join(map(str, sorted(places)))}); give the "
                "number"
            )
        if not re.fullmatch(r"[0-9]{1,9}", wanted):
            from difflib import get_close_matches

            near = get_close_matches(wanted, [n for s in (known.names, *known.aliases) for n in s])
            hint = f"; nearest: {', '.join(near)}" if near else "; give its number"
            raise InputError(
                f"the class map gives {folder!r} the class {wanted!r}, which {known.who} does not "
                f"name{hint}"
            )
    number = int(wanted)
    if not 0 <= number < known.count:
        raise InputError(
            f"the class map gives {folder!r} the class {number}, but {known.who} has classes 0 to "
            f"{known.count - 1}"
        )
    return number


def _places(folders: Sequence[str], names: Sequence[str]) -> list[int | None]:
    """The number of each folder among ``names``; None where it is not there just once."""
    times = Counter(_plain(name) for name in names)
    place = {_plain(name): number for number, name in enumerate(names)}
    wanted = [_plain(folder) for folder in folders]
    twice = Counter(wanted)
    return [place[w] if times[w] == 1 and twice[w] == 1 else None for w in wanted]


def _count(folders: Sequence[str], known: Known) -> str:
    return (
        f"{known.who} has {known.count} classes, but the images have {len(folders)}; give a "
        "teacher for these classes, say which of its classes they are by --class-map FILE "
        "(class_map in a recipe), or --no-targets if the folders are not the teacher's classes"
    )


def _natural(name: str) -> list[tuple[int, int | str]]:
    """A key that sorts digits by their value, as timm's folder reader does."""
    parts = re.split(r"(\d+)", name.lower())
    return [(0, int(p)) if p.isdecimal() else (1, p) for p in parts]


def _plain(name: str) -> str:
    return re.sub(r"[\s_-]+", " ", name).strip().casefold()


def _some(names: Sequence[str]) -> str:
    shown = ", ".join(repr(name) for name in names[:5])
    return shown + (f" and {len(names) - 5} more" if len(names) > 5 else "")
