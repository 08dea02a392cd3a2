"""The report's charts, each a pure function from a section's data to inline SVG.

Every text and attribute is escaped on its way in (``svg.tag``, ``svg.text``).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape

from ferkd.study.report.model import (
    REGION_NAMES,
    ConfidencePanel,
    Curve,
    GalleryCrop,
    GalleryItem,
    Goal,
    MiningPanel,
    RegionShares,
    Reliability,
    Series,
)
from ferkd.study.report.svg import Frame, extent, spread, tag, text

COLOURS = 8  # the stylesheet's classes m0 … m7
DASHES = ("", "dashed", "dotted", "mixed", "sparse")  # classes of the stylesheet too


def colour(slot: int) -> str:
    """The classes of a method's colour and dashes: all colours with whole lines, then with each
    kind of dashes. After ``COLOURS * len(DASHES)`` methods they return."""
    dashes = DASHES[slot // COLOURS % len(DASHES)]
    return f"m{slot % COLOURS} {dashes}".rstrip()


def curve_chart(
    curves: Sequence[Curve],
    x: str,
    y: str,
    slots: Mapping[str, int],
    *,
    goal: Goal | None = None,
) -> str:
    """``y`` (``top1`` or ``nll``) against ``x`` (``steps`` or ``seconds``), one line a method.

    ``slots`` gives each method its colour. ``goal`` is drawn on charts of top-1: a level, and a
    ring where a method reaches it. Empty when no evaluation holds the metric.
    """
    lines: list[tuple[Curve, Sequence[float], Series]] = [
        (c, c.steps if x == "steps" else c.seconds, c.top1 if y == "top1" else c.nll)
        for c in curves
    ]
    y_range = extent(v for _, _, s in lines for v in (*s.mean, *s.low, *s.high))
    x_max = max((v for _, xs, _ in lines for v in xs if math.isfinite(v)), default=0.0)
    if y_range is None or x_max <= 0:
        return ""
    if y == "top1":
        y_range = max(y_range[0], 0.0), min(y_range[1], 1.0)
    names = [ellipsis(c.method, 16) for c in curves]
    frame = Frame((0, x_max), y_range, right=18 + 6.3 * max(map(len, names)))
    unit, x_scale = ("steps", 1.0) if x == "steps" else _time_unit(x_max)
    title = "top-1 accuracy, %" if y == "top1" else "NLL"
    parts = [frame.axes(unit, title, x_scale=x_scale, y_scale=100 if y == "top1" else 1)]
    goal = goal if y == "top1" else None
    if goal is not None and y_range[0] <= goal.level <= y_range[1]:
        height = frame.py(goal.level)
        parts.append(_segment((frame.left, height), (frame.end, height), class_="level"))
        parts.append(text(goal.name, frame.left + 4, height - 4, class_="tick"))
    ends = []
    for (curve, xs, s), name in zip(lines, names, strict=True):
        style = colour(slots[curve.method])
        points = [p for p in zip(xs, s.mean, strict=True) if all(map(math.isfinite, p))]
        if not points:
            continue
        if curve.runs > 1:
            parts.append(frame.band(xs, s.low, s.high, class_=f"band {style}"))
        parts.append(frame.path(zip(xs, s.mean, strict=True), class_=f"line {style}"))
        for a, b in points if len(points) <= 25 else points[-1:]:
            place = {"cx": frame.px(a), "cy": frame.py(b)}
            parts.append(tag("circle", **place, r=2.4, class_=f"dot {style}"))
        reached = goal.reached.get(curve.method) if goal is not None else None
        if goal is not None and reached is not None:
            at = xs[reached], s.mean[reached]
            words = f"{curve.method}: {goal.name} at {at[0] * x_scale:.4g} {unit}"
            ring = {"cx": frame.px(at[0]), "cy": frame.py(at[1]), "r": 4.5}
            hint = tag("title", escape(words))
            parts.append(tag("circle", hint, **ring, class_=f"reached {style}"))
        ends.append((points[-1], name, curve, style))
    heights = spread([frame.py(p[1]) for p, *_ in ends], 13, frame.top + 4, frame.floor)
    for (point, name, curve, style), height in zip(ends, heights, strict=True):
        hint = tag("title", escape(f"{curve.method}: {_runs(curve.runs)}"))
        x_end, y_end = frame.px(point[0]), frame.py(point[1])
        label = text(name, x_end + 7, height + 3.5, class_=f"name {style}")
        if abs(height - y_end) > 12:  # moved so far that it needs a thread to its line
            parts.append(_segment((x_end, y_end), (x_end + 6, height), class_=f"tie {style}"))
        parts.append(tag("g", hint, label))
    words = f"{title} against {unit}: " + ", ".join(c.method for c in curves)
    return frame.document(*parts, label=words)


def confidence_chart(panel: ConfidencePanel) -> str:
    """Histogram of the score, bars stacked by region, thresholds drawn and regions shaded."""
    total = sum(map(sum, panel.counts)) or 1
    stacks = list(zip(*panel.counts, strict=True))
    tallest = max((sum(s) for s in stacks), default=0) / total or 1.0
    frame = Frame((panel.edges[0], panel.edges[-1]), (0, tallest * 1.04), top=50)
    parts = [_shading(frame, panel.thresholds)]
    parts.append(frame.axes(_score_title(panel.score), "share of crops, %", y_scale=100))
    for left, right, stack in zip(panel.edges, panel.edges[1:], stacks, strict=False):
        base = 0.0
        for region, count in enumerate(stack):
            if not count:
                continue
            height = count / total
            words = f"{left:.2f}–{right:.2f}, {REGION_NAMES[region]}: {100 * height:.2f} %"
            parts.append(
                tag(
                    "rect",
                    tag("title", escape(words)),
                    x=frame.px(left) + 0.4,
                    y=frame.py(base + height),
                    width=max(frame.px(right) - frame.px(left) - 0.8, 0.4),
                    height=max(frame.py(base) - frame.py(base + height), 0.6),
                    class_=f"bar r{region}",
                )
            )
            base += height
    parts.append(_scalpels(frame, panel.thresholds))
    return frame.document(*parts, label="Histogram of the teacher's confidence over all crops")


def reliability_chart(panel: ConfidencePanel) -> str:
    """r(s) = P(argmax = y | s) with its band, over the shaded regions; empty when not known."""
    r: Reliability | None = panel.reliability
    if r is None or not r.at:
        return ""
    frame = Frame((panel.edges[0], panel.edges[-1]), (0, 1), top=50)
    parts = [_shading(frame, panel.thresholds)]
    parts.append(frame.axes(_score_title(panel.score), "argmax is the true class, %", y_scale=100))
    levels = {0.5: "right half of the time"}
    if panel.chance is not None:
        levels.setdefault(panel.chance, "chance")
    for level, word in levels.items():
        y = frame.py(level)
        parts.append(_segment((frame.left, y), (frame.end, y), class_="level"))
        parts.append(text(word, frame.left + 4, y - 4, class_="tick"))
    parts.append(frame.band(r.at, r.low, r.high, class_="band ink"))
    parts.append(frame.path(zip(r.at, r.rate, strict=True), class_="line ink"))
    for a, b in zip(r.at, r.rate, strict=True):
        if len(r.at) <= 60 and math.isfinite(a) and math.isfinite(b):
            words = tag("title", escape(f"score {a:.2f}: {100 * b:.1f} %"))
            place = {"cx": frame.px(a), "cy": frame.py(b)}
            parts.append(tag("circle", words, **place, r=2.2, class_="dot ink"))
    parts.append(_scalpels(frame, panel.thresholds))
    return frame.document(*parts, label="Reliability of the teacher's argmax against its score")


def shares_chart(panel: MiningPanel) -> str:
    """By region, a histogram of the object's share inside the crop over its quartiles and mean."""
    shown = [r for r in panel.regions if r.crops]
    if not shown:
        return ""
    frame = Frame((0, 1), (0, float(len(shown))), left=78)
    floor = frame.floor
    axes = frame.axes("share of the object inside the crop, %", "", x_scale=100)
    # Rows are regions, not numbers: of the axes only the horizontal one is wanted.
    parts = [tag("g", axes, class_="no-y")]
    x = frame.px(panel.holds)
    parts.append(_segment((x, frame.top), (x, floor), class_="level"))
    row = (floor - frame.top) / len(shown)
    for k, region in enumerate(shown):
        parts.append(_share_row(frame, region, frame.top + (k + 1) * row - 16, row - 28))
    return frame.document(*parts, label="Share of the object inside the crop, by region")


def _share_row(frame: Frame, region: RegionShares, base: float, height: float) -> str:
    name = REGION_NAMES[region.region]
    peak, bins = max(region.histogram) or 1, len(region.histogram)
    parts = [
        text(name, frame.left - 10, base - 2, text_anchor="end", class_="name"),
        text(f"{region.crops:,}", frame.left - 10, base + 11, text_anchor="end", class_="tick"),
    ]
    for i, count in enumerate(region.histogram):
        tall = height * count / peak
        words = f"{name}, {i / bins:.0%}–{(i + 1) / bins:.0%} of the object: {count:,} crops"
        parts.append(
            tag(
                "rect",
                tag("title", escape(words)),
                x=frame.px(i / bins) + 0.5,
                y=base - tall,
                width=frame.px(1 / bins) - frame.px(0) - 1,
                height=tall,
                class_=f"bar r{region.region}",
            )
        )
    low, median, high = (frame.px(q) for q in region.quartiles)
    y = base + 7
    parts.append(_segment((low, y), (high, y), class_="quartiles"))
    parts.append(_segment((median, y - 4), (median, y + 4), class_="median"))
    mean = frame.px(region.mean)
    parts.append(tag("circle", cx=mean, cy=y, r=3.2, class_="mean"))
    return "".join(parts)


def roc_chart(panel: MiningPanel) -> str:
    """The ROC of the score for "this crop holds the object"; empty when a class is absent."""
    if not panel.false_rate:
        return ""
    frame = Frame((0, 1), (0, 1))
    points = list(zip(panel.false_rate, panel.true_rate, strict=True))
    area = " ".join(f"{frame.px(a):.1f},{frame.py(b):.1f}" for a, b in [*points, (1, 0), (0, 0)])
    parts = [
        frame.axes(
            "crops without the object let in, %",
            "crops with the object kept, %",
            x_scale=100,
            y_scale=100,
        ),
        tag("polygon", points=area, class_="band m1"),
        frame.path([(0, 0), (1, 1)], class_="level"),
        frame.path(points, class_="line m1"),
        text(
            f"AUROC {panel.auroc:.3f}",
            frame.px(0.97),
            frame.py(0.08),
            text_anchor="end",
            class_="big",
        ),
    ]
    return frame.document(*parts, label=f"ROC curve of the score, AUROC {panel.auroc:.3f}")


def gallery_picture(item: GalleryItem) -> str:
    """The image with its crops as rectangles, large ones below so that each can be pointed at."""
    size = {"width": item.width, "height": item.height}
    parts = [tag("image", href=item.image, **size)]
    if item.object_box is not None:
        place = _place(item.object_box)
        parts.append(tag("rect", tag("title", "true box of the object"), **place, class_="object"))
    for crop in sorted(item.crops, key=lambda c: -c.box[2] * c.box[3]):
        place = _place(crop.box)
        halo, line = (tag("rect", **place, class_=kind) for kind in ("halo", "edge"))
        hint = tag("title", escape(crop_words(crop)))
        parts.append(tag("g", hint, halo, line, class_=f"crop r{crop.region}"))
    counts = ", ".join(
        f"{sum(c.region == r for c in item.crops)} {name}" for r, name in enumerate(REGION_NAMES)
    )
    box = f"0 0 {item.width} {item.height}"
    words = f"{item.name} with crops: {counts}"
    return tag("svg", *parts, viewBox=box, role="img", aria_label=words, class_="picture")


def crop_words(crop: GalleryCrop) -> str:
    """A crop in one line: region, score, the teacher's best classes, size."""
    best = ", ".join(f"{name} {p:.2f}" for name, p in crop.top)
    height, width = crop.box[2:]
    mirrored = ", mirrored" if crop.flip else ""
    score = "n/a" if math.isnan(crop.score) else f"{crop.score:.2f}"
    return (
        f"{REGION_NAMES[crop.region]}, score {score}"
        + (f" · {best}" if best else "")
        + f" · {width}×{height} px{mirrored}"
    )


def _place(box: tuple[int, int, int, int]) -> dict[str, int]:
    top, left, height, width = box
    return {"x": left, "y": top, "width": width, "height": height}


def _shading(frame: Frame, thresholds: tuple[float, float, float] | None) -> str:
    if thresholds is None:
        return ""
    low, middle, top = (min(max(t, frame.x[0]), frame.x[1]) for t in thresholds)
    cuts = [(frame.x[0], low, 0), (low, middle, 1), (middle, top, 2), (top, frame.x[1], 0)]
    return "".join(
        tag(
            "rect",
            x=frame.px(a),
            y=frame.top,
            width=frame.px(b) - frame.px(a),
            height=frame.floor - frame.top,
            class_=f"shade r{region}",
        )
        for a, b, region in cuts
        if b > a
    )


def _scalpels(frame: Frame, thresholds: tuple[float, float, float] | None) -> str:
    """The three threshold lines, each with its name on a row of its own: they may lie close."""
    parts = []
    for k, (letter, value) in enumerate(zip("LMT", thresholds or (), strict=False)):
        if not frame.x[0] <= value <= frame.x[1]:
            continue
        x, y = frame.px(value), 10.0 + 13 * k
        parts.append(_segment((x, y - 7), (x, frame.floor), class_="scalpel"))
        left = value > sum(frame.x) / 2
        words = f"T{tag('tspan', letter, dy='2.5', class_='sub')}"
        words += tag("tspan", f" {value:.3g}", dy="-2.5")
        anchor = "end" if left else "start"
        at = {"x": x + (-5 if left else 5), "y": y + 2}
        parts.append(tag("text", words, **at, text_anchor=anchor, class_="name"))
    return "".join(parts)


def _segment(a: tuple[float, float], b: tuple[float, float], class_: str) -> str:
    return tag("line", x1=a[0], y1=a[1], x2=b[0], y2=b[1], class_=class_)


def _score_title(score: str) -> str:
    known = {"max_prob": "largest probability", "true_prob": "probability of the true class"}
    return f"score s: the teacher's {known.get(score, score)}"


def _time_unit(seconds: float) -> tuple[str, float]:
    if seconds < 600:
        return "seconds", 1.0
    return ("minutes", 1 / 60) if seconds < 3 * 3600 else ("hours", 1 / 3600)


def _runs(count: int) -> str:
    return "1 run" if count == 1 else f"mean of {count} runs, band ± one sample deviation"


def ellipsis(words: str, limit: int) -> str:
    return words if len(words) <= limit else words[: limit - 1] + "…"
