"""`list:FILE`: images named by a Parquet, CSV or JSON lines file, with labels and splits."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from ferkd.images.sources.files import Files
from ferkd.images.sources.options import by_id, numbered, refuse_duplicates, split_options
from ferkd.images.sources.source import check_ids
from ferkd.system.errors import InputError
from ferkd.system.storage import is_url, masked, read

_OPTIONS = ("split", "root", "path", "label")
_MOST_BYTES = 4 << 30  # a list of 14 million images takes about 1 GB


class ListImages:
    """The images that ``list:FILE[?split=NAME&root=FOLDER&path=COLUMN&label=COLUMN]`` names.

    FILE: .parquet, .csv (with a line of column names) or JSON lines (.jsonl, .ndjson), a path or
    a URL. Columns: ``path``, relative to the list's own folder or to ``root``; ``label``, a text or
    a whole number, may be missing or empty; ``split``, of which one is taken. Labels are class
    names, texts whatever they look like. Ids are the paths. Raises InputError.
    """

    def __init__(self, spec: str, targets: bool = True) -> None:
        place, options = split_options(spec.removeprefix("list:"), _OPTIONS)
        self.name = f"list:{masked(place)}"
        folder = place.rpartition("/")[0] if is_url(place) else str(Path(place).expanduser().parent)
        rows = [row for row in _rows(place, self.name) if any(v is not None for v in row.values())]
        if not rows:
            raise InputError(f"{self.name} names no images")
        rows = _of_split(rows, options.get("split"), self.name)
        paths = [_path(row, options.get("path", "path"), self.name) for row in rows]
        order = by_id(paths)
        self.ids: tuple[str, ...] = tuple(paths[place] for place in order)
        check_ids(self.ids, self.name)
        refuse_duplicates(self.ids, self.name, "the path")
        self.class_names: tuple[str, ...] = ()
        self.targets = np.full(len(self.ids), -1, np.int32)
        if targets:
            column = options.get("label", "label")
            if "label" in options and not any(column in row for row in rows):
                raise InputError(f"{self.name} has no column {column!r} to take labels from")
            labels = [_label(rows[place], column, self.name) for place in order]
            self.targets, self.class_names = numbered(labels, self.name)
        self._files = Files(options.get("root", folder))

    def __len__(self) -> int:
        return len(self.ids)

    def read(self, index: int) -> bytes:
        """The encoded bytes of one image; InputError naming its id if they are out of reach."""
        return self._files.read(self.ids[index])


def _rows(place: str, name: str) -> Iterator[dict[str, Any]]:
    kind = place.rpartition(".")[2].lower()
    if kind not in ("parquet", "csv", "jsonl", "ndjson"):
        raise InputError(f"{name}: give a list that ends in .parquet, .csv, .jsonl or .ndjson")
    data = _bytes(place, name)
    if kind == "parquet":
        return _parquet(data, name)
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"{name} is not UTF-8 ({error}); save it so") from None
    return _csv(text, name) if kind == "csv" else _json_lines(text, name)


def _bytes(place: str, name: str) -> bytes:
    if is_url(place):
        data = read(place)
        if data is None:
            raise InputError(f"{name}: there is no such file")
        return data
    path = Path(place).expanduser()
    if not path.is_file():
        raise InputError(
            f"{name}: there is no such file"
            if not path.exists()
            else f"{name} is not a regular file"
        )
    if path.stat().st_size > _MOST_BYTES:
        raise InputError(f"{name} is longer than the {_MOST_BYTES:,} bytes that a list may have")
    return path.read_bytes()


def _csv(text: str, name: str) -> Iterator[dict[str, Any]]:
    reader = csv.DictReader(io.StringIO(text, newline=""), strict=True)
    try:
        for row in reader:
            if None in row or None in row.values():
                raise InputError(
                    f"{name}, line {reader.line_num}: another number of values than of columns"
                )
            yield {key: value or None for key, value in row.items()}
    except csv.Error as error:
        raise InputError(f"{name}, line {reader.line_num}: {error}") from None


def _json_lines(text: str, name: str) -> Iterator[dict[str, Any]]:
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise InputError(f"{name}, line {number}: no JSON ({error})") from None
        if not isinstance(row, dict):
            raise InputError(f"{name}, line {number}: an object with a path is needed")
        yield row


def _parquet(data: bytes, name: str) -> Iterator[dict[str, Any]]:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise InputError(
            f"{name} needs pyarrow to be read; pip install 'ferkd[exchange]'"
        ) from None
    try:
        file = pyarrow.parquet.ParquetFile(io.BytesIO(data))
        for batch in file.iter_batches():
            yield from batch.to_pylist()
    except (pyarrow.ArrowException, OSError) as error:
        raise InputError(f"{name} is damaged or no Parquet file ({error})") from None


def _of_split(rows: list[dict[str, Any]], split: str | None, name: str) -> list[dict[str, Any]]:
    found = sorted({str(row["split"]) for row in rows if row.get("split") is not None})
    if split is None:
        if len(found) > 1:
            raise InputError(
                f"{name} lists the splits {', '.join(found[:5])}; choose one by ?split={found[0]}"
            )
        return rows
    kept = [row for row in rows if row.get("split") is not None and str(row["split"]) == split]
    if not kept:
        raise InputError(f"{name} has no split {split!r}; it lists {', '.join(found) or 'none'}")
    return kept


def _path(row: dict[str, Any], column: str, name: str) -> str:
    value = row.get(column)
    if not isinstance(value, str) or not value:
        raise InputError(
            f"{name}: the column {column!r} must name a file in each row, not {value!r}; name the "
            "column of the paths by ?path=COLUMN"
        )
    parts = value.replace("\\", "/").split("/")
    if value.startswith(("/", "~")) or ".." in parts or is_url(value) or ":" in parts[0][1:2]:
        raise InputError(
            f"{name}: the path {value!r} leads out of the list's folder; write paths relative to "
            "it, or to the folder named by ?root=FOLDER"
        )
    return "/".join(part for part in parts if part not in ("", "."))


def _label(row: dict[str, Any], column: str, name: str) -> str | None:
    value = row.get(column)
    if value is None or value == "":
        return None
    if isinstance(value, bool) or not isinstance(value, str | int):
        raise InputError(
            f"{name}: the label {value!r} of {row} is neither text nor a whole number; write class "
            "names as texts"
        )
    return str(value)
