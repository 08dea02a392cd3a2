"""Tables of words: as aligned text, and in Markdown."""

from __future__ import annotations

from collections.abc import Iterable, Sequence


def aligned(lines: Sequence[Sequence[str]], left: int = 1) -> str:
    """Lines of equally many cells as columns, the first ``left`` of them flush left."""
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]

    def padded(line: Sequence[str]) -> str:
        cells = zip(line, widths, strict=True)
        words = [w.ljust(n) if i < left else w.rjust(n) for i, (w, n) in enumerate(cells)]
        return "  ".join(words).rstrip()

    return "\n".join(map(padded, lines))


def markdown(
    head: Sequence[str], rows: Iterable[Sequence[object]], *, figures: bool = False
) -> str:
    """A Markdown table; with ``figures`` all columns but the first are flush right."""
    rule = ["---", *["--:" if figures else "---"] * (len(head) - 1)]
    lines = [f"| {' | '.join(head)} |", f"|{'|'.join(rule)}|"]
    return "\n".join([*lines, *(f"| {' | '.join(map(str, row))} |" for row in rows)])
