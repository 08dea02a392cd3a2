"""Names from outside as text that shows and moves nothing: for terminals, logs and pages.

Names of files, classes, keys and tensors may hold anything: terminal escapes that clear the screen,
line ends that forge a line, controls that turn the reading direction, halves of surrogate pairs.
Letters of every script and emoji are text and stay.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Mapping
from typing import Any

# C0 and C1 controls and DEL; marks, embeddings, overrides and isolates of the reading direction;
# the line and paragraph separators; lone surrogates (names that are no UTF-8); the byte order mark.
_UNSEEN = (
    r"\x00-\x1f\x7f-\x9f"
    r"\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069"
    r"\u2028\u2029\ud800-\udfff\ufeff"
)
_IN_NAMES = re.compile(f"[{_UNSEEN}]")
# A spreadsheet runs a cell that begins so.
_FORMULA = ("=", "+", "-", "@", "\t", "\r")
_IN_LINES = re.compile(f"(?![\\n\\t])[{_UNSEEN}]")


def name(value: object) -> str:
    r"""A name as one line of visible text: an escape character becomes ``\x1b``, a line end
    ``\n``, and so on."""
    return _IN_NAMES.sub(_escaped, str(value))


def cell(value: object) -> str:
    """A name as a cell of a table: as `name`, and what a spreadsheet would run as a formula gets
    an apostrophe before it."""
    return f"'{name(value)}" if str(value).startswith(_FORMULA) else name(value)


def size(count: float) -> str:
    """Bytes for people: "980 B", "23.7 kB", "6.2 MB"."""
    if count < 999.5:
        return f"{count:.0f} B"
    for unit in ("kB", "MB", "GB"):
        count /= 1000
        if count < 999.95:
            return f"{count:.1f} {unit}"
    return f"{count / 1000:.1f} TB"


def lines(value: object) -> str:
    """Text of several lines, as a message or a page: as `name`, but line ends and tabs stay."""
    return _IN_LINES.sub(_escaped, str(value))


def to_json(value: Any, *, ascii: bool = False) -> str:
    r"""Indented JSON that prints as safely: what `name` escapes is written as ``\u....``.

    With ``ascii`` so is every other character outside ASCII.
    """
    text = json.dumps(value, indent=1, ensure_ascii=ascii, default=_plain, allow_nan=False)
    return _IN_LINES.sub(lambda found: f"\\u{ord(found[0]):04x}", text)


def _plain(value: Any) -> Any:
    return dict(value) if isinstance(value, Mapping) else str(value)


class Lines(logging.Formatter):
    """Log records as `lines`."""

    def format(self, record: logging.LogRecord) -> str:
        return lines(super().format(record))


def _escaped(found: re.Match[str]) -> str:
    # repr writes what it does not print as \n, \x1b or \u202e, and these marks are not printable.
    return repr(found[0])[1:-1]
