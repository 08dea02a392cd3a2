"""docs/troubleshooting.md quotes what the source says."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "troubleshooting.md"
HOLE = "\0"


def written(node: ast.AST) -> str:
    """A text of the source, with a hole for each value that is put into it."""
    if isinstance(node, ast.Constant):
        return re.sub(r"%[-.\d]*[sdfr]", HOLE, node.value) if isinstance(node.value, str) else ""
    if isinstance(node, ast.JoinedStr):
        return "".join(map(written, node.values))
    if isinstance(node, ast.BinOp):
        return written(node.left) + written(node.right)
    return HOLE


def texts() -> list[str]:
    found = []
    for file in sorted((ROOT / "src/ferkd").rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Constant | ast.JoinedStr | ast.BinOp):
                found.append(written(node))
    return [text for text in found if len(text) > 12]


def quoted(page: str) -> list[str]:
    """The messages: the first column of each table headed ``message``."""
    found, inside = [], False
    for line in page.splitlines():
        cells = [cell.strip() for cell in line.split("|")[1:-1]]
        inside = bool(cells) and (inside or cells[0] == "message")
        if inside:
            found += re.findall(r"`([^`]+)`", cells[0])
    return found


def said(message: str, source: list[str]) -> bool:
    """Whether one text holds the message; an ellipsis stands for values and text between them."""
    parts = [re.escape(part.strip()) for part in message.split("…") if part.strip()]
    pattern = re.compile(".*".join(parts), re.DOTALL)
    return any(pattern.search(text) for text in source)


def test_a_message_is_found_by_its_parts_in_their_order():
    source = ["the disk \0 is full of \0 files"]
    assert said("the disk … is full", source) and said("full of … files", source)
    assert not said("full of … the disk", source) and not said("the disc", source)


def test_every_message_of_the_page_is_one_of_the_source():
    messages, source = quoted(PAGE.read_text(encoding="utf-8")), texts()
    assert len(messages) > 60
    assert [message for message in messages if not said(message, source)] == []


@pytest.mark.parametrize(
    "title", ["Classes and labels", "Teachers", "Stores", "Training", "Images"]
)
def test_every_row_has_a_cause_or_a_remedy(title):
    part = PAGE.read_text(encoding="utf-8").partition(f"## {title}\n")[2].partition("\n## ")[0]
    rows = [line.split("|")[1:-1] for line in part.splitlines() if line.startswith("| `")]
    assert len(rows) > 5 and all(len(row) == 3 and (row[1] + row[2]).strip() for row in rows)
