"""The inspector as one HTML file: no request leaves it, and its script is the only one that runs.

What the page shows lies in it as compressed JSON. The script writes every name as text, and the
page's own content security policy allows that script by its hash, images from ``data:``, and no
address at all.
"""

from __future__ import annotations

import base64
import gzip
import hashlib
import json
import shlex
from dataclasses import dataclass
from html import escape
from pathlib import Path
from string import Template
from typing import Any

import numpy as np

from ferkd.calibration.regions import Mining, Regions, mine, scores_of
from ferkd.calibration.reliability import Reliability, reliability
from ferkd.images import FolderImages, ImageSource, describe_unread
from ferkd.store import LabelStore
from ferkd.study.inspector.pictures import Images, sample
from ferkd.study.inspector.tables import cells_of, positions, tabulate
from ferkd.study.suspicious import Judged, judge, listing
from ferkd.system.files import make_folder, write_whole
from ferkd.system.text import lines as visible

PICTURES = 120  # of the page, unless they are too large together
BUDGET = 6 << 20  # bytes of pictures, so that a page stays under 10 MB
LONGEST = 320  # pixels of a picture in the page
SUSPICIOUS = 20  # listed in the page
_FOLDER = Path(__file__).parent / "page"
_SCRIPTS = ("core.js", "chart.js", "gallery.js", "main.js")
_TITLES = {"max_prob": "largest probability", "true_prob": "probability of the true class"}


@dataclass(frozen=True)
class Inspector:
    """A store ready to be shown: ``data`` is what the page's script reads, without images."""

    store: LabelStore
    mining: Mining
    images: Images
    cells: Any
    judged: Judged
    facts: tuple[tuple[str, str], ...]
    data: dict[str, Any]

    @property
    def title(self) -> str:
        kind = "Label maps" if self.store.geometry.crops.is_map else "Label store"
        return f"{kind} {self.store.path.name}"


def prepare(
    store: LabelStore,
    source: ImageSource | None = None,
    regions: Regions | None = None,
    images_name: str = "",
) -> Inspector:
    """Count and judge all crops of ``store``; ``images_name`` is what the user calls the images."""
    settings = regions or Regions()
    mining = mine(store, settings)
    scores, correct = scores_of(store, settings.score, settings.scale)
    places, start = positions(mining.thresholds)
    cells = cells_of(scores, places)
    targets = store.truth(slice(None))
    names = store.class_names or tuple(map(str, range(store.num_classes)))
    known = targets >= 0
    curve = mining.evidence.reliability if mining.evidence else None
    if curve is None and known.any():
        curve = reliability(scores, correct, known=known)
    plain = (settings.score, settings.scale) == ("max_prob", "probability")
    judged = judge(store, (scores, correct) if plain else None)
    doubted = judged.ranked()
    doubted = doubted[judged.denied[doubted]]
    data = {
        "positions": places,
        "start": start,
        "scalpels": [0, 2] if settings.calibration == "blend" else [0, 1, 2],
        "rule": settings.thresholds if isinstance(settings.thresholds, str) else "the start",
        "score": "rank within its image"
        if settings.scale == "image_quantile"
        else _TITLES[settings.score],
        "chance": 1 / max(1, store.num_classes),
        "total": len(store),
        "names": list(names),
        **tabulate(cells, correct, targets, len(places)).plain(names),
        "curve": None if curve is None else _curve(curve),
        "suspicious": listing(store, judged, doubted[:SUSPICIOUS]),
        "denied": len(doubted),
        "use": _use(store, settings, images_name),
        "images": [],
    }
    images = Images(store, source, scores, cells, judged)
    return Inspector(store, mining, images, cells, judged, _facts(store, source), data)


def write_page(inspector: Inspector, path: Path, pictures: int = PICTURES) -> None:
    """Write the page with some of the images to ``path``, whole or not at all."""
    page = render(inspector, embedded(inspector, pictures))
    make_folder(path.parent)
    write_whole(path, page.encode())


def embedded(inspector: Inspector, pictures: int, budget: int = BUDGET) -> dict[str, Any]:
    """The page's data with at most ``pictures`` images, of ``budget`` bytes at most."""
    items: list[dict[str, Any]] = []
    if inspector.images.pictured:
        rows = sample(inspector.judged, inspector.cells, pictures)
        used = 0
        # By steps of the golden ratio: should the budget not suffice, all classes are still there.
        for place in np.argsort(np.arange(len(rows)) * 0.618034 % 1):
            item = inspector.images.embedded(rows[place], LONGEST)
            used += len(item.get("src", ""))
            if used > budget:
                break
            items.append(item)
    items.sort(key=lambda item: item["row"])
    total = len(inspector.store)
    note = (
        f"{len(items):,} of {total:,} images, by class and with the most suspicious; "
        "--serve pages through all."
        if len(items) < total
        else ""
    )
    words = f"Coloured by region: some crops of each image; open one for all. {note}"
    return {**inspector.data, "images": items, "images_note": words.strip()}


def render(inspector: Inspector, data: dict[str, Any] | None) -> str:
    """The page; without ``data`` the one that asks a server for them."""
    script = "(() => {\n'use strict';\n" + "".join(map(_part, _SCRIPTS)) + "})();"
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    here = " 'self'" if data is None else ""
    policy = (
        f"default-src 'none'; script-src 'sha256-{digest}'; style-src 'unsafe-inline'; "
        f"img-src data:{here}; base-uri 'none'; form-action 'none'"
        + ("; connect-src 'self'" if data is None else "")
    )
    facts = "\n".join(
        f"<div><dt>{escape(name)}</dt><dd><bdi>{escape(value)}</bdi></dd></div>"
        for name, value in inspector.facts
    )
    style = (_FOLDER.parents[1] / "report" / "templates" / "style.css").read_text("utf-8")
    return Template(_part("page.html")).substitute(
        policy=policy,
        title=escape(visible(inspector.title)),
        verdict=escape(visible(inspector.mining.describe())),
        facts=visible(facts),
        style=style + _part("inspector.css"),
        data="" if data is None else packed(data),
        script=script,
    )


def packed(data: dict[str, Any]) -> str:
    """JSON, compressed, in letters that end no element: what is in the page."""
    return base64.b64encode(gzip.compress(as_json(data), 6, mtime=0)).decode()


def as_json(data: dict[str, Any]) -> bytes:
    """Compact JSON in UTF-8; controls that are not seen are written out, as in every page."""
    return json.dumps(
        _shown(data), ensure_ascii=False, allow_nan=False, separators=(",", ":")
    ).encode()


def _shown(value: Any) -> Any:
    if isinstance(value, str):
        return value if value.startswith("data:image/jpeg;base64,") else visible(value)
    if isinstance(value, dict):
        return {name: _shown(part) for name, part in value.items()}
    if isinstance(value, list) and value and isinstance(value[0], str | dict | list):
        return [_shown(part) for part in value]
    return value


def _part(name: str) -> str:
    return (_FOLDER / name).read_text("utf-8")


def _curve(curve: Reliability) -> dict[str, list[float]]:
    parts = {"s": curve.s, "rate": curve.rate, "low": curve.low, "high": curve.high}
    return {name: [round(v, 4) for v in values.tolist()] for name, values in parts.items()}


def _facts(store: LabelStore, source: ImageSource | None) -> tuple[tuple[str, str], ...]:
    crops = store.geometry.crops
    unread = source.unread if isinstance(source, FolderImages) else {}
    left_out = len(store.manifest.skipped)
    return (
        ("Images", f"{len(store):,}"),
        ("Cells per map", crops.grid["map_grid"])
        if crops.is_map
        else ("Crops per image", str(store.crops_per_image)),
        ("Classes", f"{store.num_classes:,}"),
        ("Teacher", str(store.settings.teacher.get("spec", "unknown"))),
        *((("Left out", f"{left_out:,} unreadable"),) if left_out else ()),
        *((("Not read", describe_unread(unread)),) if unread else ()),
    )


def _use(store: LabelStore, settings: Regions, images: str) -> dict[str, str]:
    """The parts of the lines to copy that do not depend on the thresholds."""
    default, path = Regions(), str(store.path) + (f"#{store.chosen}" if store.chosen else "")
    changed = {
        name: getattr(settings, name)
        for name in ("calibration", "score", "scale", "epsilon")
        if getattr(settings, name) != getattr(default, name)
    }
    options = [f" --{n} {changed[n]}" for n in ("calibration", "score") if n in changed]
    return {
        "store": shlex.quote(path),
        "recipe": "RECIPE",
        "store_setting": shlex.quote(f"data.store={path}"),
        "settings": "".join(f", {name}: {value}" for name, value in changed.items()),
        "sets": "".join(f" --set regions.{name}={value}" for name, value in changed.items()),
        "inspect": shlex.quote(path) + (f" --images {shlex.quote(images)}" if images else ""),
        "options": "".join(options),
    }
