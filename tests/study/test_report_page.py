"""The page: escaped, self-contained, well formed, with exactly the sections it has data for."""

from __future__ import annotations

import dataclasses
import json
import math
import re
import sys
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ferkd.study.report import (
    Budget,
    Cell,
    Choice,
    Curve,
    Fact,
    Gallery,
    Report,
    Series,
    Table,
    confidence_panel,
    crop_thumb,
    gallery_item,
    mining_panel,
    page,
    plots,
    render,
    write_report,
)
from ferkd.study.report.svg import Frame, spread, tick_labels, ticks
from ferkd.system.errors import InputError

VOID = {"meta", "br", "img", "input", "hr", "link"}
EVIL = "\"'><script>alert(1)</script><img src=x onerror=alert(2)>&amp;{{7*7}}"


class Reader(HTMLParser):
    """Collects elements, texts and attributes; fails on a wrongly nested or unclosed element."""

    def __init__(self, html: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.feed(html)
        self.close()
        assert self.open == [], f"not closed: {self.open}"

    def handle_starttag(self, tag, attrs):
        assert len({name for name, _ in attrs}) == len(attrs), f"twice the same attribute: {attrs}"
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open and self.open[-1] == tag, f"</{tag}> closes {self.open[-3:]}"
        self.open.pop()

    def handle_data(self, data):
        self.texts.append(data)

    @property
    def sections(self) -> list[str]:
        return [a["id"] or "" for tag, a in self.tags if tag == "section"]


def curve(method: str, runs: int = 2, n: int = 4) -> Curve:
    x = [100.0 * (i + 1) for i in range(n)]
    up = [0.2 + 0.1 * i for i in range(n)]
    band = Series(up, [v - 0.02 for v in up], [v + 0.02 for v in up])
    return Curve(method, runs, x, [v / 10 for v in x], band, band)


def budget(name: str, methods: tuple[str, ...]) -> Budget:
    rows = {m: (Cell("70.0", "± 1.0"), Cell("0.500", best=True)) for m in methods}
    table = Table(name, name, (name, "NLL"), rows)
    return Budget(name, [table], [curve(m) for m in methods], remarks=[name])


def full(name: str = "daisy", methods: tuple[str, ...] = ("hard", "fkd", "ferkd")) -> Report:
    rng = np.random.default_rng(0)
    scores = rng.random(300)
    regions = np.select([scores < 0.2, scores < 0.5, scores > 0.95], [0, 1, 0], 2)
    image = rng.integers(0, 255, (60, 80, 3), dtype=np.uint8)
    top = [(name, 0.7), ("rose", 0.2)]
    item = gallery_item(
        image,
        [[0, 0, 30, 40], [10, 10, 50, 60], [5, 5, 10, 10]],
        [False, True, False],
        [0, 1, 2],
        [0.1, 0.4, 0.8],
        name=name,
        target=name,
        top=[top] * 3,
        object_box=(8, 8, 30, 30),
    )
    thumb = crop_thumb(image, [0, 0, 30, 40], True, 1, 0.4, name=name, target=name, top=top)
    return Report(
        title=f"Report {name}",
        verdict=f"Verdict {name}",
        facts=[Fact(name, name)],
        budgets=[budget(name, methods)],
        confidence=confidence_panel(
            scores,
            regions,
            thresholds=(0.2, 0.5, 0.95),
            correct=rng.random(300) < scores,
            classes=5,
            score=name,
            note=name,
        ),
        mining=mining_panel(scores, np.clip(scores + 0.1, 0, 1), regions, note=name),
        gallery=Gallery([item], [thumb], note=name),
        choices=[Choice(name, name, name)],
        commands=[f"ferkd demo {name}"],
    )


def test_a_full_report_has_every_section_and_is_well_formed():
    reader = Reader(render(full()))
    assert reader.sections == [
        "budget-1", "confidence", "mining", "gallery", "choices", "reproduce",
    ]  # fmt: skip
    assert [t for t, _ in reader.tags].count("svg") == 4 + 2 + 2 + 1
    assert all(a.get("aria-label") for t, a in reader.tags if t == "svg")
    assert all(a.get("alt") for t, a in reader.tags if t == "img")
    assert all(a.get("scope") in ("row", "col") for t, a in reader.tags if t == "th")


def test_hostile_names_are_text_everywhere():
    reader = Reader(render(full(EVIL, methods=("hard", EVIL))))
    assert "script" not in {tag for tag, _ in reader.tags}
    assert not [a for _, attrs in reader.tags for a in attrs if a.startswith("on")]
    assert {a["src"][:23] for t, a in reader.tags if t == "img"} == {"data:image/jpeg;base64,"}
    # Shown whole and unchanged, in texts and attributes and inside the charts.
    assert any(EVIL in text for text in reader.texts)
    titles = [a["title"] for _, a in reader.tags if a.get("title")]
    assert EVIL in titles
    labels = [a["aria-label"] or "" for tag, a in reader.tags if tag == "svg"]
    assert sum(EVIL in label for label in labels) >= 5  # four curves and the picture
    assert not any("49" in text for text in reader.texts if "{{" in text)


def test_svg_titles_and_names_are_escaped_on_their_own():
    svg = plots.curve_chart([curve("<b>\"'&")], "steps", "top1", {"<b>\"'&": 0})
    assert "<b>" not in svg and "&lt;b&gt;" in svg
    item = full(EVIL).gallery.items[0]
    assert "<script" not in plots.gallery_picture(item)


def test_the_page_needs_nothing_from_elsewhere():
    html = render(full())
    reader = Reader(html)
    assert not {"script", "link", "iframe", "object", "base"} & {tag for tag, _ in reader.tags}
    for tag, attributes in reader.tags:
        for name in ("src", "href", "xlink:href", "srcset", "data", "action"):
            value = attributes.get(name)
            assert value is None or value.startswith("data:image/jpeg;"), (tag, name, value)
        assert "url(" not in (attributes.get("style") or "")
    style = re.search(r"<style>(.*?)</style>", html, re.S)
    assert style and "url(" not in style[1] and "@import" not in style[1]
    policy = next(a["content"] for t, a in reader.tags if a.get("http-equiv"))
    assert policy and policy.startswith("default-src 'none'; img-src data:;")


@pytest.mark.parametrize(
    ("field", "section", "nothing"),
    [
        ("budgets", "budget-1", ()),
        ("confidence", "confidence", None),
        ("mining", "mining", None),
        ("gallery", "gallery", None),
        ("choices", "choices", ()),
        ("commands", "reproduce", ()),
    ],
)
def test_a_section_without_data_is_left_out(field, section, nothing):
    whole = Reader(render(full())).sections
    without = Reader(render(dataclasses.replace(full(), **{field: nothing}))).sections
    assert without == [s for s in whole if s != section]


def test_the_smallest_report_is_a_title():
    reader = Reader(render(Report(title="Alone")))
    assert reader.sections == [] and reader.texts.count("Alone") == 2


def test_empty_evaluations_and_values_that_are_not_numbers():
    nan = math.nan
    void = Series([nan, nan], [nan, nan], [nan, nan])
    broken = Curve("hard", 2, [1.0, 2.0], [nan, nan], void, void)
    empty = Curve("fkd", 1, [], [], Series([], [], []), Series([], [], []))
    rows = {"hard": [Cell("-")], "fkd": [Cell("-")]}
    html = render(
        Report(
            "t",
            budgets=[Budget("short", [Table("t", "w", ["top-1"], rows)], [broken, empty])],
            confidence=confidence_panel([], [], thresholds=(0.1, 0.5, 0.9), correct=[]),
            mining=mining_panel([], [], []),
        )
    )
    reader = Reader(html)
    assert reader.sections == ["budget-1", "confidence", "mining"]
    body = " ".join(reader.texts[reader.texts.index("short") :])
    assert "n/a" in body and not re.search(r"\b(nan|inf|None)\b", body)
    values = [v for t, a in reader.tags if t != "meta" for v in a.values() if v]
    assert not [v for v in values if "nan" in v.split()]


def test_a_gap_breaks_a_line_and_partial_curves_still_draw():
    frame = Frame((0, 4), (0, 1))
    path = frame.path([(0, 0.1), (1, 0.2), (2, math.nan), (3, 0.3), (4, 0.4)])
    assert path.count("M") == 2 and path.count("L") == 2
    one = Curve("a", 1, [5.0], [1.0], Series([0.5], [0.5], [0.5]), Series([1.0], [1.0], [1.0]))
    svg = plots.curve_chart([one], "steps", "top1", {"a": 0})
    assert svg.count("<circle") == 1 and "NaN" not in svg


def test_region_shares_are_of_all_crops():
    panel = confidence_panel([0.1, 0.3, 0.6, 0.7], [0, 1, 2, 2], thresholds=None)
    assert page.region_shares(panel) == [0.25, 0.25, 0.5]
    assert "ranks within each image" in render(Report("t", confidence=panel))


def test_thresholds_are_drawn_where_they_are():
    panel = confidence_panel([0.5], [2], thresholds=(0.25, 0.5, 0.75))
    svg = plots.confidence_chart(panel)
    frame = Frame((0, 1), (0, 1))
    drawn = re.findall(r'<line x1="([\d.]+)"[^>]*class="scalpel"', svg)
    assert [float(x) for x in drawn] == pytest.approx(
        [frame.px(t) for t in (0.25, 0.5, 0.75)], abs=0.06
    )
    assert svg.count('class="shade') == 4


def test_the_gallery_draws_each_crop_by_its_region_with_its_words():
    item = full().gallery.items[0]
    svg = plots.gallery_picture(item)
    assert re.findall(r'class="crop (r\d)"', svg) == ["r1", "r0", "r2"]  # large ones below
    assert "hard, score 0.40 · daisy 0.70, rose 0.20 · 60×50 px, mirrored" in svg
    assert 'x="10" y="10" width="60" height="50"' in svg


def test_writing_replaces_whole_files_only(tmp_path, monkeypatch):
    path = tmp_path / "new" / "report.html"
    write_report(Report(title="first"), path)
    assert "first" in path.read_text("utf-8")

    def fail(*_):
        raise OSError("disk full")

    monkeypatch.setattr("os.fsync", fail)
    with pytest.raises(InputError, match=r"report\.html cannot be written: disk full"):
        write_report(Report(title="second"), path)
    assert "first" in path.read_text("utf-8")
    assert [p.name for p in path.parent.iterdir()] == ["report.html"]


def test_a_file_name_that_is_no_unicode_can_be_written(tmp_path):
    name = b"caf\xe9.jpg".decode("utf-8", "surrogateescape")
    write_report(Report(title=name), tmp_path / "r.html")
    assert r"caf\udce9.jpg" in (tmp_path / "r.html").read_text("utf-8")


def test_without_jinja2_the_extra_is_named(monkeypatch):
    page._template.cache_clear()
    monkeypatch.setitem(sys.modules, "jinja2", None)
    with pytest.raises(InputError, match=r"ferkd\[report\]"):
        render(Report(title="t"))


def test_a_report_is_plain_data():
    restored = json.loads(json.dumps(dataclasses.asdict(full())))
    assert restored["budgets"][0]["curves"][0]["method"] == "hard"


def test_ticks_are_round_and_labels_tell_them_apart():
    assert ticks(0, 1) == pytest.approx([0, 0.2, 0.4, 0.6, 0.8, 1.0])
    assert ticks(0.61, 0.84) == pytest.approx([0.65, 0.7, 0.75, 0.8])
    assert ticks(3, 3) == [3]
    assert tick_labels([65.0, 70.0]) == ["65", "70"]
    assert tick_labels([0.0, 0.05, 0.1]) == ["0.00", "0.05", "0.10"]
    assert tick_labels([0, 5000, 10000]) == ["0", "5k", "10k"]


def test_ticks_are_round_in_the_units_shown():
    axes = Frame((0, 3600), (0, 1)).axes("minutes", "%", x_scale=1 / 60, y_scale=100)
    labels = re.findall(r'text-anchor="middle" class="tick">([^<]+)<', axes)
    assert labels == ["0", "20", "40", "60"]


def test_labels_are_spread_and_stay_inside():
    # 10 and 12 are 2 apart and move 4 each way; 50 has room and stays.
    assert spread([50, 10, 12], 10, 0, 100) == pytest.approx([50, 6, 16])
    assert spread([98, 99], 10, 0, 100) == [90, 100]
    assert spread([1, 2], 10, 0, 100) == pytest.approx([0, 10])
    assert spread([], 10, 0, 100) == []


@given(st.lists(st.floats(0, 300), max_size=12))
def test_spread_labels_never_overlap_and_keep_their_order(positions):
    placed = spread(positions, 13, 0, 300)
    assert all(-1e-6 <= p <= 300 + 1e-6 for p in placed)
    order = sorted(range(len(positions)), key=lambda i: positions[i])
    assert all(placed[b] - placed[a] >= 13 - 1e-6 for a, b in pairwise(order))


def test_forty_methods_have_forty_styles_of_the_stylesheet():
    styles = [plots.colour(slot) for slot in range(40)]
    assert len({*styles}) == 40 and styles[:2] == ["m0", "m1"]
    css = (Path(plots.__file__).parent / "templates" / "style.css").read_text()
    for name in {part for style in styles for part in style.split()[1:]}:
        assert f".line.{name} {{ stroke-dasharray" in css and f".swatch.{name} {{" in css
    arrays = re.findall(r"\.line\.\w+ { stroke-dasharray: ([\d ]+) }", css)
    assert len(arrays) == len({*arrays}) == 4
