"""Just enough SVG for the report's charts: escaped tags, ticks, and a frame with two axes.

Colours and fonts are not here but in ``templates/style.css``, by class, so that one page works in
light and dark mode and on paper.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape
from itertools import pairwise

Point = tuple[float, float]


def tag(name: str, *children: str, **attributes: object) -> str:
    """One element. ``children`` are markup already; attribute values are escaped here.

    A trailing underscore of an attribute's name is dropped and the others become hyphens:
    ``class_``, ``stroke_width``. A float is written to a tenth of a unit; None leaves it out.
    """
    text = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{escape(_short(value))}"'
        for key, value in attributes.items()
        if value is not None
    )
    return f"<{name}{text}>{''.join(children)}</{name}>"


def text(words: str, x: float, y: float, **attributes: object) -> str:
    """A text element; ``words`` are escaped."""
    return tag("text", escape(words), x=x, y=y, **attributes)


def _short(value: object) -> str:
    return f"{value:.1f}".removesuffix(".0") if isinstance(value, float) else str(value)


def ticks(low: float, high: float, about: int = 5) -> list[float]:
    """Round numbers (1, 2 or 5 times a power of ten apart) inside [low, high], ``about`` many."""
    if not high > low:
        return [low]
    rough = (high - low) / about
    power = 10.0 ** math.floor(math.log10(rough))
    step = power * next(m for m in (1, 2, 5, 10) if m * power >= rough * 0.999)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [i * step for i in range(first, last + 1)]


def tick_labels(values: Sequence[float]) -> list[str]:
    """The ticks with just the decimals that tell them apart, thousands as k from 10k on."""
    if max((abs(v) for v in values), default=0) >= 10_000:
        return [f"{v / 1000:g}k" if v else "0" for v in values]
    gap = min((b - a for a, b in pairwise(values)), default=1.0)
    decimals = max(0, -math.floor(math.log10(gap) + 1e-9))
    return [f"{v:.{decimals}f}" for v in values]


def spread(positions: Sequence[float], gap: float, low: float, high: float) -> list[float]:
    """Move labels apart to at least ``gap``, by the least squares of their moves.

    The order is kept (equal positions as given). Then the row is pushed inside [low, high], which
    it leaves only above ``high`` and only if there are too many labels.
    """
    order = sorted(range(len(positions)), key=lambda i: positions[i])
    # Isotonic regression of position minus k * gap: blocks of (sum, labels), merged while the
    # earlier one's mean is larger.
    blocks: list[tuple[float, int]] = []
    for k, i in enumerate(order):
        total, count = positions[i] - k * gap, 1
        while blocks and blocks[-1][0] / blocks[-1][1] >= total / count:
            total, count = total + blocks[-1][0], count + blocks[-1][1]
            blocks.pop()
        blocks.append((total, count))
    means = [total / count for total, count in blocks for _ in range(count)]
    placed, room = [0.0] * len(order), high - gap * (len(order) - 1)
    for k, i in enumerate(order):
        placed[i] = max(min(means[k], room), low) + k * gap
    return placed


def extent(values: Iterable[float], pad: float = 0.06) -> tuple[float, float] | None:
    """Range of the finite values, widened by ``pad`` of it on each side; None if there is none."""
    finite = [v for v in values if math.isfinite(v)]
    if not finite:
        return None
    low, high = min(finite), max(finite)
    margin = (high - low) * pad or abs(high) * pad or 1.0
    return low - margin, high + margin


@dataclass(frozen=True)
class Frame:
    """The plotting rectangle of a chart: pixels of the view box, and the data ranges shown."""

    x: tuple[float, float]
    y: tuple[float, float]
    width: float = 440
    height: float = 290
    left: float = 46
    right: float = 14
    top: float = 14
    bottom: float = 42

    def px(self, x: float) -> float:
        span = self.width - self.left - self.right
        return self.left + span * (x - self.x[0]) / (self.x[1] - self.x[0])

    def py(self, y: float) -> float:
        span = self.height - self.top - self.bottom
        return self.top + span * (self.y[1] - y) / (self.y[1] - self.y[0])

    @property
    def floor(self) -> float:
        return self.height - self.bottom

    @property
    def end(self) -> float:
        return self.width - self.right

    def path(self, points: Iterable[Point], **attributes: object) -> str:
        """A line through data points, broken where one is not finite."""
        moves, pen = [], "M"
        for x, y in points:
            if math.isfinite(x) and math.isfinite(y):
                moves.append(f"{pen}{self.px(x):.1f} {self.py(y):.1f}")
                pen = "L"
            else:
                pen = "M"
        return tag("path", d="".join(moves), fill="none", **attributes) if moves else ""

    def band(
        self, x: Sequence[float], low: Sequence[float], high: Sequence[float], **attributes: object
    ) -> str:
        """The area between two lines; points where either is not finite are left out."""
        rows = [r for r in zip(x, low, high, strict=True) if all(map(math.isfinite, r))]
        edge = [(a, h) for a, _, h in rows] + [(a, b) for a, b, _ in reversed(rows)]
        corners = " ".join(f"{self.px(a):.1f},{self.py(b):.1f}" for a, b in edge)
        return tag("polygon", points=corners, **attributes) if rows else ""

    def axes(
        self,
        x_title: str,
        y_title: str,
        *,
        x_scale: float = 1.0,
        y_scale: float = 1.0,
    ) -> str:
        """Grid lines, tick labels (data times the scale) and the titles of both axes."""
        # Round numbers are wanted in the units shown, percent or minutes, not in the data's.
        xs = ticks(self.x[0] * x_scale, self.x[1] * x_scale)
        ys = ticks(self.y[0] * y_scale, self.y[1] * y_scale)
        parts = []
        for value, label in zip(ys, tick_labels(ys), strict=True):
            y = self.py(value / y_scale)
            parts.append(tag("line", x1=self.left, x2=self.end, y1=y, y2=y, class_="grid"))
            parts.append(text(label, self.left - 6, y + 3.5, text_anchor="end", class_="tick"))
        for value, label in zip(xs, tick_labels(xs), strict=True):
            x = self.px(value / x_scale)
            parts.append(tag("line", x1=x, x2=x, y1=self.floor, y2=self.floor + 4, class_="axis"))
            parts.append(text(label, x, self.floor + 16, text_anchor="middle", class_="tick"))
        ends = {"x1": self.left, "x2": self.end, "y1": self.floor, "y2": self.floor}
        parts.append(tag("line", **ends, class_="axis"))
        middle = (self.left + self.end) / 2
        parts.append(text(x_title, middle, self.height - 6, text_anchor="middle", class_="label"))
        half = (self.top + self.floor) / 2
        turn = f"rotate(-90 12 {half:.1f})"
        parts.append(text(y_title, 12, half, text_anchor="middle", class_="label", transform=turn))
        return "".join(parts)

    def document(self, *parts: str, label: str) -> str:
        """The whole chart; ``label`` says in words what it shows."""
        box = f"0 0 {_short(float(self.width))} {_short(float(self.height))}"
        return tag("svg", *parts, viewBox=box, role="img", aria_label=label, class_="chart")
