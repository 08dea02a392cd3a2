"""Tables: columns aligned, and Markdown with or without figures flush right."""

from __future__ import annotations

from ferkd.system.tables import aligned, markdown


def test_the_first_columns_are_flush_left():
    lines = [("method", "top-1"), ("a", "5.0"), ("ferkd-paper", "12.25")]
    assert aligned(lines).splitlines() == [
        "method       top-1",
        "a              5.0",
        "ferkd-paper  12.25",
    ]
    assert aligned([("a", "b"), ("aa", "")], left=2).splitlines() == ["a   b", "aa"]


def test_markdown():
    assert markdown(["m", "x"], [["a", 1], ["b", "2"]]).splitlines() == [
        "| m | x |",
        "|---|---|",
        "| a | 1 |",
        "| b | 2 |",
    ]
    assert markdown(["m", "x"], [], figures=True).endswith("|---|--:|")
