"""`hf:PATH_OR_NAME[:SPLIT]`: images of a Hugging Face data set, local or from the hub."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np

from ferkd.images.sources.options import by_id, numbered, refuse_duplicates, split_options
from ferkd.images.sources.source import check_ids, check_look_alike
from ferkd.system.errors import InputError

_OPTIONS = ("image", "label", "id", "config")
_TABLES = {".parquet": "parquet", ".arrow": "arrow"}


class HubImages:
    """The images of ``hf:PATH_OR_NAME[:SPLIT][?image=COL&label=COL&id=COL&config=NAME]``.

    PATH: a folder that `save_to_disk` wrote, a Parquet or Arrow file, or a folder of them; NAME: a
    data set of the hub, kept in its own cache. SPLIT may be missing where there is one alone.
    Columns left unnamed: the only one of images; the only `ClassLabel`, else ``label`` where there
    is one. Ids are the texts of the column ``id``, else row numbers of nine digits. Images stay
    encoded until they are decoded by the project's own rule. Raises InputError.
    """

    def __init__(self, spec: str, targets: bool = True) -> None:
        place, options = split_options(spec.removeprefix("hf:"), _OPTIONS)
        self.name = f"hf:{place}"
        rows = _open(place, options.get("config"), self.name)
        self._column = _image_column(rows, options.get("image"), self.name)
        ids = _ids(rows, options.get("id"), self.name)
        self._rows_of = by_id(ids)
        self.ids: tuple[str, ...] = tuple(ids[row] for row in self._rows_of)
        check_ids(self.ids, self.name)
        refuse_duplicates(self.ids, self.name, "the id")
        self.class_names: tuple[str, ...] = ()
        self.targets = np.full(len(self.ids), -1, np.int32)
        if targets:
            of_row, self.class_names = _labels(rows, options.get("label"), self.name)
            self.targets = of_row[self._rows_of]
        self._rows = _undecoded(rows.select_columns([self._column]), self._column, self.name)

    def __len__(self) -> int:
        return len(self.ids)

    def read(self, index: int) -> bytes:
        """The encoded bytes of one image; InputError naming its id if they are out of reach."""
        found = self._rows[int(self._rows_of[index])][self._column] or {}
        data, path = found.get("bytes"), found.get("path")
        if data is not None:
            return bytes(data)
        if not path or not os.path.isfile(path):
            raise InputError(
                f"{self.ids[index]}: {self.name} holds neither this image's bytes nor a file of it"
                f"{f' ({path})' if path else ''}. Write the data set with its images embedded"
            )
        try:
            with open(path, "rb") as file:
                return file.read()
        except OSError as error:
            raise InputError(
                f"{self.ids[index]} of {self.name}: {path} cannot be read ({error.strerror}). "
                "Change its permissions"
            ) from None


def _library() -> Any:
    try:
        import datasets
    except ImportError:
        raise InputError(
            "images of hf: need the library datasets; pip install 'ferkd[hf-datasets]'"
        ) from None
    return datasets


def _open(place: str, config: str | None, name: str) -> Any:
    """The rows of one split, as a `datasets.Dataset`."""
    library = _library()
    where, colon, split = place.rpartition(":")
    if not colon or "/" in split or "\\" in split:
        where, split = place, ""
    path = Path(where).expanduser()
    try:
        found = _load(library, where, path, config)
    except InputError:
        raise
    except Exception as error:  # of dozens of classes, of all the libraries below
        first = str(error).strip().splitlines() or [type(error).__name__]
        raise InputError(
            f"{name} cannot be opened: {first[0]}. Check the path or the name"
        ) from None
    if isinstance(found, library.Dataset):
        found = {"": found} if not split else {split: found} if found.split == split else found
    if isinstance(found, library.Dataset):
        raise InputError(f"{name}: this is one split alone; leave out :{split}")
    if not split and len(found) == 1:
        return next(iter(found.values()))
    if split not in found:
        raise InputError(
            f"{name}: choose a split, as in hf:{where}:{next(iter(found))}; there are "
            f"{', '.join(map(str, found))}"
        )
    return found[split]


def _load(library: Any, where: str, path: Path, config: str | None) -> Any:
    if not path.exists():
        return library.load_dataset(where, config)
    if path.is_dir() and any((path / n).is_file() for n in ("state.json", "dataset_dict.json")):
        return library.load_from_disk(str(path))
    tables = [path] if path.is_file() else sorted(p for p in path.rglob("*") if p.is_file())
    tables = [table for table in tables if table.suffix.lower() in _TABLES]
    kinds = {_TABLES[table.suffix.lower()] for table in tables}
    if len(kinds) != 1:
        raise InputError(
            f"hf:{where} holds {'files of two kinds' if kinds else 'no Parquet or Arrow file'}; "
            "give a folder of Parquet files, of Arrow files, or one that save_to_disk wrote"
        )
    files: dict[str, list[str]] = {}
    for table in tables:  # named as the hub names them: train-00000-of-00004.parquet
        files.setdefault(table.name.split("-")[0].split(".")[0], []).append(str(table))
    if any(not name.isidentifier() for name in files):
        files = {"train": [file for some in files.values() for file in some]}
    return library.load_dataset(kinds.pop(), data_files=files)


def _image_column(rows: Any, wanted: str | None, name: str) -> str:
    library = _library()
    if wanted is not None:
        if wanted not in rows.column_names:
            raise InputError(
                f"{name} has no column {wanted!r}; it has {', '.join(rows.column_names)}"
            )
        return wanted
    found = [column for column, kind in rows.features.items() if isinstance(kind, library.Image)]
    found = found or [column for column in ("image", "img") if column in rows.column_names]
    if len(found) != 1:
        raise InputError(
            f"{name} has {len(found) or 'no'} columns of images among "
            f"{', '.join(rows.column_names)}; name it by ?image=COLUMN"
        )
    return found[0]


def _undecoded(rows: Any, column: str, name: str) -> Any:
    library = _library()
    try:
        return rows.cast_column(column, library.Image(decode=False)).with_format(None)
    except Exception as error:  # Arrow's, where the column holds something else
        raise InputError(
            f"{name}: the column {column!r} holds no encoded images "
            f"({str(error).splitlines()[0]}); name the right one by ?image=COLUMN"
        ) from None


def _ids(rows: Any, column: str | None, name: str) -> list[str]:
    if column is None:
        return [f"{row:09d}" for row in range(len(rows))]
    if column not in rows.column_names:
        raise InputError(f"{name} has no column {column!r} for ids")
    values = rows.select_columns([column]).with_format(None)[column][:]
    for value in values:
        if isinstance(value, bool) or not isinstance(value, str | int):
            raise InputError(f"{name}: the id {value!r} of column {column!r} is no text")
    return [str(value) for value in values]


def _labels(rows: Any, wanted: str | None, name: str) -> tuple[np.ndarray, tuple[str, ...]]:
    """Targets int32 [N] by row, and the class names."""
    library = _library()
    classes = [c for c, kind in rows.features.items() if isinstance(kind, library.ClassLabel)]
    column = wanted or (classes[0] if len(classes) == 1 else "label")
    if column not in rows.column_names:
        if wanted is not None or classes:
            raise InputError(
                f"{name}: choose the column of labels by ?label=COLUMN, of "
                f"{', '.join(classes or rows.column_names)}"
            )
        return np.full(len(rows), -1, np.int32), ()
    values = rows.select_columns([column]).with_format(None)[column][:]
    kind = rows.features[column]
    if isinstance(kind, library.ClassLabel):
        names = tuple(kind.names)
        check_look_alike(names, name)
        targets = np.array([-1 if value is None else value for value in values], np.int32)
        return targets.reshape(-1), names
    for value in values:
        if isinstance(value, bool) or not isinstance(value, str | int | None):
            raise InputError(
                f"{name}: the label {value!r} of column {column!r} is neither text nor a whole "
                "number; name another by ?label=COLUMN"
            )
    return _by_value(values, name)


def _by_value(values: list[Any], name: str) -> tuple[np.ndarray, tuple[str, ...]]:
    """Whole numbers without names are the classes themselves, 0 to the highest; -1 is none."""
    numbers = [value for value in values if isinstance(value, int)]
    if len(numbers) + values.count(None) < len(values):
        return numbered([None if value is None else str(value) for value in values], name)
    if numbers and (min(numbers) < -1 or max(numbers) >= 1 << 24):
        raise InputError(f"{name}: labels from {min(numbers)} to {max(numbers)} are no classes")
    targets = np.array([-1 if value is None else value for value in values], np.int32)
    return targets.reshape(-1), tuple(str(n) for n in range(max(numbers, default=-1) + 1))
