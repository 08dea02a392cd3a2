"""Names on a terminal and in a page: nothing in them acts, and letters stay letters."""

from __future__ import annotations

import json
import logging

import pytest

from ferkd.system import text

EVIL = "a\x1b[2Jb\nc\u202egpj.exe\x9b1m"


def test_controls_are_written_out_by_hand():
    assert text.name(EVIL) == r"a\x1b[2Jb\nc\u202egpj.exe\x9b1m"
    assert text.name("\r\t\x7f\ufeff\u2028\u2066") == r"\r\t\x7f\ufeff\u2028\u2066"
    assert text.lines(EVIL + "\tz\r") == "a\\x1b[2Jb\nc\\u202egpj.exe\\x9b1m\tz\\r"


def test_bytes_that_are_no_utf8_are_shown():
    assert text.name(b"caf\xe9".decode("utf-8", "surrogateescape")) == r"caf\udce9"


def test_a_formula_is_text_in_a_table():
    assert text.cell("=1+1") == "'=1+1" and text.cell("1=1\n") == "1=1\\n"


@pytest.mark.parametrize(
    ("count", "shown"),
    [
        *((0, "0 B"), (999, "999 B"), (1000, "1.0 kB"), (23_680, "23.7 kB"), (999_940, "999.9 kB")),
        *((999_960, "1.0 MB"), (6.2e6, "6.2 MB"), (1.4e11, "140.0 GB"), (5e12, "5.0 TB")),
    ],
)
def test_bytes_for_people(count, shown):
    assert text.size(count) == shown


@pytest.mark.parametrize("word", ["café", "مرحبا", "猫", "👩\u200d🔬", "a b", "T_L ≤ 1 − ε"])
def test_letters_of_every_script_stay(word):
    assert text.name(word) == word == text.lines(word)


def test_json_means_the_same_and_acts_on_nothing():
    value = {EVIL: [1.5, "\x7f\u2029"], "é": None}
    for ascii in (False, True):
        written = text.to_json(value, ascii=ascii)
        assert json.loads(written) == value
        assert not any(c in written for c in "\x1b\u202e\x9b\x7f\u2029")
        assert written.isascii() == ascii


def test_log_records_are_one_visible_text():
    record = logging.LogRecord("x", 20, "", 0, "skipped %s", (EVIL,), None)
    assert "\x1b" not in text.Lines("%(message)s").format(record)
