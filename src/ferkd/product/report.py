"""The page that ``ferkd distill`` leaves: what was done, what came out, and how to use it.

One self-contained file without scripts; every name from outside is escaped.
"""

from __future__ import annotations

import base64
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import Any

import cv2
import numpy as np

from ferkd.crops import center_box, cut
from ferkd.images import decode, open_images
from ferkd.product.figures import Figures
from ferkd.product.look import Look
from ferkd.product.planning import spoken
from ferkd.product.result import seeds_of, told
from ferkd.system import text as texts
from ferkd.system.errors import InputError

_SHOWN = 30  # classes of a confusion matrix that is drawn whole
_THUMB = 160  # pixels

_STYLE = """
:root{color-scheme:light dark;--ink:#1c2126;--soft:#5d6873;--line:#d9dee3;--paper:#fff;
--card:#f6f8f9;--mark:#1f6f8b;--bad:#a3402f}
@media(prefers-color-scheme:dark){:root{--ink:#e6eaed;--soft:#9aa6b1;--line:#343c44;
--paper:#14181c;--card:#1c2227;--mark:#6cc0dc;--bad:#e08a78}}
*{box-sizing:border-box}body{margin:0;background:var(--paper);color:var(--ink);
font:16px/1.5 system-ui,sans-serif}main{max-width:60rem;margin:0 auto;padding:1.5rem 1rem 4rem}
h1{font-size:1.6rem;line-height:1.25;margin:.2rem 0 1rem}h2{font-size:1.15rem;margin:2.2rem 0 .6rem}
p{margin:.4rem 0}.soft{color:var(--soft)}.wide{overflow-x:auto}
h1,h2,p,td:first-child,pre{overflow-wrap:anywhere}
dl{display:grid;grid-template-columns:max-content 1fr;gap:.3rem 1rem;margin:.4rem 0}
dt{color:var(--soft)}dd{margin:0;min-width:0;overflow-wrap:anywhere}
table{border-collapse:collapse;width:100%;font-variant-numeric:tabular-nums}
th,td{padding:.35rem .6rem;border-bottom:1px solid var(--line);text-align:right;
vertical-align:top}th:first-child,td:first-child{text-align:left}
th{font-weight:600;color:var(--soft);font-size:.85rem}
td{white-space:nowrap}td:first-child{min-width:8rem;white-space:normal}
pre{background:var(--card);padding:.7rem .9rem;border-radius:.4rem;font-size:.85rem;
white-space:pre-wrap;margin:.3rem 0 .6rem}
.grid{display:grid;grid-template-columns:repeat(auto-fill,minmax(9rem,1fr));gap:.8rem}
figure{margin:0}
figure img{width:100%;border-radius:.3rem;display:block}
figcaption{font-size:.8rem;line-height:1.35;overflow-wrap:anywhere}
svg{max-width:100%;height:auto}svg text{fill:var(--soft);font-size:12px}
.names th{max-width:7rem;overflow:hidden;text-overflow:ellipsis}
@media(max-width:30rem){table{font-size:.8rem}th{font-size:.75rem}th,td{padding:.3rem .25rem}
td:first-child{min-width:5.5rem}svg text{font-size:18px}.names{font-size:.7rem}
.names th{max-width:3.4rem}}
.hit{background:color-mix(in srgb,var(--mark) var(--w),transparent)}
.miss{background:color-mix(in srgb,var(--bad) var(--w),transparent)}
"""


def write_report(
    *,
    seen: Look,
    plan_lines: Sequence[str],
    result: Mapping[str, Any],
    spent: Mapping[str, float],
    figures: Mapping[str, Figures],
    sizes: Mapping[str, int],
    speeds: Mapping[str, float],
    next_commands: Sequence[str],
) -> str:
    """The page's HTML. ``figures``, ``sizes`` (parameters) and ``speeds`` (ms an image) are by
    "student", "teacher" and "baseline" as far as there are any."""
    student = figures["student"]
    name = str(result["student"]["name"])
    parts = [
        f"<h1>{_text(name)}: {student.top1:.1%} right on {seen.val_images:,} validation images, "
        f"{sizes['student'] / 1e6:.2f} M parameters, {speeds['student']:.1f} ms an image</h1>",
        _pairs(line.partition(" ")[::2] for line in seen.lines()),
        "<h2>Teacher, student, baseline</h2>",
        _table(result, figures, sizes, speeds),
        _difference(result),
        _trade(figures, sizes, speeds),
        "<h2>Use it</h2>",
        f"<pre>{_text(chr(10).join(next_commands))}</pre>",
        "<h2>What was done</h2>",
        _done(result, spent),
        _pairs([("plan", plan_lines[0].removeprefix("plan").strip())]),
        *(f"<p class=soft>{_text(line.strip())}</p>" for line in plan_lines[1:]),
        "<h2>By class</h2>",
        _by_class(seen, figures),
        "<h2>Answers</h2>",
        _confusion(seen, student),
        "<h2>Is its confidence right?</h2>",
        _reliability(student),
        "<h2>The most confident errors</h2>",
        _errors(seen, student),
    ]
    title = _text(f"ferkd distill: {name}")
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f"<title>{title}</title><style>{_STYLE}</style></head><body><main>"
        + "\n".join(parts)
        + "</main></body></html>\n"
    )


def _rows(head: Sequence[str], rows: Sequence[Sequence[str]], kind: str = "") -> str:
    """A table of cells that are HTML already; the head is text."""
    top = "".join(f"<th>{_name(cell)}</th>" for cell in head)
    body = "".join("<tr>" + "".join(f"<td>{c}</td>" for c in row) + "</tr>" for row in rows)
    return f'<div class="wide"><table class="{kind}"><tr>{top}</tr>{body}</table></div>'


def _pairs(pairs: Iterable[tuple[str, str]]) -> str:
    """Words and what they stand for; a word that says the same as the one above is left out."""
    shown, before = [], ""
    for word, text in pairs:
        shown.append(f"<dt>{_text(word) if word != before else ''}</dt>")
        shown.append(f"<dd>{_text(text.strip())}</dd>")
        before = word
    return f"<dl>{''.join(shown)}</dl>"


def _text(text: str) -> str:
    """Text of a page: names in it show what they hold and turn nothing round."""
    return escape(texts.lines(text))


def _name(text: str) -> str:
    """A name from outside: text, whose direction of writing is its own."""
    return f"<bdi>{_text(texts.name(text))}</bdi>"


def _table(
    result: Mapping[str, Any],
    figures: Mapping[str, Figures],
    sizes: Mapping[str, int],
    speeds: Mapping[str, float],
) -> str:
    words = {
        "teacher": f"teacher, {result['teacher']['spec'].partition('?')[0]}",
        "student": f"student, {result['student']['name']}",
        "baseline": "the same student by hard labels, not smoothed, in as many steps",
    }
    rows = [
        [
            _text(words[name]),
            f"{figures[name].top1:.1%}",
            f"{figures[name].nll:.3f}",
            f"{figures[name].ece:.1%}",
            f"{sizes[name] / 1e6:.2f} M",
            f"{speeds[name]:.1f}",
        ]
        for name in ("teacher", "student", "baseline")
        if name in figures
    ]
    probe = result["teacher"].get("probe_top1")
    if probe is not None:
        rows.insert(1, ["its linear probe", f"{probe:.1%}", "", "", "", ""])
    return _rows(["", "top-1", "NLL", "ECE", "size", "ms an image"], rows)


def _difference(result: Mapping[str, Any]) -> str:
    found = result.get("difference")
    if found is None:
        return ""
    words = told(found, seeds_of(result["student"]))
    return f"<p class=soft>The student less its baseline: {words}. Brackets: 95 %, by image.</p>"


def _trade(
    figures: Mapping[str, Figures], sizes: Mapping[str, int], speeds: Mapping[str, float]
) -> str:
    """Accuracy against milliseconds, one point a model, the area by parameters."""
    names = [name for name in ("teacher", "student", "baseline") if name in figures]
    slowest = max(speeds[name] for name in names) * 1.15
    low = min(figures[name].top1 for name in names)
    low = max(0.0, low - 0.2)  # room for the lowest point's name above the axis
    marks: list[str] = []
    free: dict[int, float] = {}  # by column of the chart, from where on down there is room
    # From the top down; a label that would lie on another's goes below it.
    for name in sorted(names, key=lambda name: -figures[name].top1):
        x = 50 + 480 * speeds[name] / slowest
        y = 170 - 140 * (figures[name].top1 - low) / max(1 - low, 1e-9)
        radius = 4 + 10 * (sizes[name] / max(sizes.values())) ** 0.5
        column = round(x / 160)
        at = max(y + 4, *(free.get(c, 0.0) for c in (column - 1, column, column + 1)))
        free[column] = at + 20
        marks.append(
            f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{radius:.1f}" fill="var(--mark)" '
            f'fill-opacity="0.35" stroke="var(--mark)"/><text x="{x + radius + 4:.1f}" '
            f'y="{at:.1f}">{name} {figures[name].top1:.1%}</text>'
        )
    return (
        '<svg viewBox="0 0 640 205" role="img" aria-label="accuracy against latency">'
        '<line x1="50" y1="170" x2="600" y2="170" stroke="var(--line)"/>'
        '<line x1="50" y1="20" x2="50" y2="170" stroke="var(--line)"/>'
        f'<text x="50" y="190">0 ms an image</text><text x="520" y="190">{slowest:.0f} ms</text>'
        f'<text x="4" y="34">100 %</text><text x="4" y="174">{low:.0%}</text>{"".join(marks)}</svg>'
        '<p class="soft">Up is more accurate, left is faster; the area stands for parameters.</p>'
    )


def _done(result: Mapping[str, Any], spent: Mapping[str, float]) -> str:
    """Each phase with its time and the command that does it by hand."""
    blocks = [f"<p>look <span class=soft>{spoken(spent.get('look', 0.0))}</span></p>"]
    for name in ("teacher", "labels", "student", "baseline", "deliver"):
        if name in result["commands"]:
            time = spoken(spent.get(name, 0.0))
            blocks.append(
                f"<p>{name} <span class=soft>{time}</span></p>"
                f"<pre>{_text(result['commands'][name])}</pre>"
            )
    if reason := result["student"].get("reason"):
        blocks.append(
            f"<p class=soft>The student learns by method {_text(result['student']['method'])}: "
            f"{_text(reason)}.</p>"
        )
    return "".join(blocks)


def _by_class(seen: Look, figures: Mapping[str, Figures]) -> str:
    names = [name for name in ("student", "teacher", "baseline") if name in figures]
    order = np.argsort([figures["student"].per_class[i] for i in range(len(seen.classes))])
    rows = [
        [_name(seen.classes[i]), *(f"{figures[n].per_class[i]:.1%}" for n in names)]
        for i in order.tolist()[:200]
    ]
    return _rows(["class, the hardest first", *names], rows)


def _confusion(seen: Look, student: Figures) -> str:
    counts = student.confusion
    totals = counts.sum(1).clip(1)
    if len(seen.classes) <= _SHOWN:
        rows = []
        for i, name in enumerate(seen.classes):
            cells = [_name(name)]
            for j in range(len(seen.classes)):
                share = 100 * counts[i, j] / totals[i]
                kind = "hit" if i == j else "miss"
                text = str(counts[i, j]) if counts[i, j] else "·"
                cells.append(f'<div class="{kind}" style="--w:{share:.0f}%">{text}</div>')
            rows.append(cells)
        return _rows(["is \\ answered", *seen.classes], rows, "names")
    wrong = counts.copy()
    np.fill_diagonal(wrong, 0)
    places = np.argsort(-wrong, axis=None)[:20]
    rows = [
        [_name(seen.classes[i]), _name(seen.classes[j]), str(wrong[i, j])]
        for i, j in (divmod(int(p), len(seen.classes)) for p in places)
        if wrong[i, j]
    ]
    return _rows(["is", "answered as", "images"], rows)


def _reliability(student: Figures) -> str:
    bars = []
    for confidence, accuracy, count in student.reliability:
        x, y = 40 + 260 * confidence, 170 - 150 * accuracy
        bars.append(
            f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{3 + min(9, count**0.5 / 2):.1f}" '
            'fill="var(--mark)" fill-opacity="0.5"/>'
        )
    return (
        '<svg viewBox="0 0 320 200" style="max-width:26rem" role="img" aria-label="reliability">'
        '<line x1="40" y1="170" x2="300" y2="20" stroke="var(--line)"/>'
        '<line x1="40" y1="170" x2="300" y2="170" stroke="var(--line)"/>'
        '<text x="40" y="190">sure of 0 %</text><text x="262" y="190">100 %</text>'
        f'<text x="0" y="26">right</text>{"".join(bars)}</svg>'
        f'<p class="soft">On the line an answer is right as often as it is sure. The mean distance '
        f"(ECE) is {student.ece:.1%}.</p>"
    )


def _errors(seen: Look, student: Figures) -> str:
    source = open_images(seen.val)
    place = {image_id: number for number, image_id in enumerate(source.ids)}
    figures = []
    for image_id, true, answer, probability in student.worst:
        picture = _thumb(source.read(place[image_id]))
        if picture is None:
            continue
        figures.append(
            f'<figure><img alt="" src="data:image/jpeg;base64,{picture}"><figcaption>'
            f"{_name(seen.classes[answer])} ({probability:.0%}), but is "
            f'{_name(seen.classes[true])}<br><span class="soft">{_name(image_id)}</span>'
            "</figcaption></figure>"
        )
    if not figures:
        return "<p>None: every validation image is answered rightly.</p>"
    return f'<div class="grid">{"".join(figures)}</div>'


def _thumb(data: bytes) -> str | None:
    try:
        pixels = decode(data)
    except InputError:
        return None
    square = cut(pixels, center_box(*pixels.shape[:2]), False, _THUMB)
    done, jpeg = cv2.imencode(".jpg", cv2.cvtColor(square, cv2.COLOR_RGB2BGR))
    return base64.b64encode(jpeg.tobytes()).decode() if done else None
