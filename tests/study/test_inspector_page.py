"""The inspector's file: nothing in it reaches out, and it holds what the store holds."""

from __future__ import annotations

import base64
import gzip
import hashlib
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from blots import HOSTILE, colours, write_blots
from stores import write_store

from ferkd.calibration.regions import Regions, mine
from ferkd.images import open_images
from ferkd.labelling.run import label
from ferkd.store import LabelStore
from ferkd.store.manifest import Crops
from ferkd.study.inspector import page as pages
from ferkd.study.inspector.page import embedded, prepare, render, write_page
from ferkd.training.recipe import load_recipe


@pytest.fixture(scope="module")
def labelled(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, LabelStore]:
    root = tmp_path_factory.mktemp("page")
    write_blots(root / "images", HOSTILE, 8, 2)
    return root / "images", label(root / "images", colours(5), root / "labels", crops=6, workers=1)


def data_of(html: str) -> dict[str, Any]:
    packed = re.search(r'id="data">([A-Za-z0-9+/=]*)</script>', html)
    assert packed
    return json.loads(gzip.decompress(base64.b64decode(packed[1])))


def test_the_page_runs_its_own_script_and_asks_nobody(labelled, tmp_path: Path) -> None:
    images, store = labelled
    write_page(prepare(store, open_images(images)), tmp_path / "page.html")
    html = (tmp_path / "page.html").read_text("utf-8")
    script = html[html.rindex("<script>") + 8 : html.rindex("</script>")]
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'; style-src 'unsafe-inline'; img-src data:;" in html
    assert "default-src 'none'" in html and "connect-src" not in html
    assert set(re.findall(r"https?://[^\s\"']+", html)) == {"http://www.w3.org/2000/svg"}
    assert "<script>alert" not in html and "innerHTML" not in html
    data = data_of(html)
    assert len(data["images"]) == 40 and all("src" in item for item in data["images"])
    assert data["names"][0] == "\"'><b>bold" and "\\u202e" in "".join(data["names"])
    # The same store gives the same page.
    write_page(prepare(store, open_images(images)), tmp_path / "again.html")
    assert (tmp_path / "again.html").read_bytes() == (tmp_path / "page.html").read_bytes()


def test_the_lines_to_copy_are_taken(labelled) -> None:
    _, store = labelled
    use = prepare(store, None, Regions(calibration="blend", epsilon="reliability")).data["use"]
    set_ = "regions.thresholds=[0.2, 0.2, 0.95]"
    more = [word for word in use["sets"].split() if word != "--set"]
    recipe = load_recipe("flowers-ferkd", [set_, *more])
    regions = recipe.regions
    assert regions.thresholds == (0.2, 0.2, 0.95) and regions.calibration == "blend"
    assert regions.epsilon == "reliability" and "epsilon: reliability" in use["settings"]


def test_blend_has_two_scalpels(labelled) -> None:
    inspector = prepare(labelled[1], None, Regions(thresholds=(0.3, 0.6, 1), calibration="blend"))
    assert inspector.data["scalpels"] == [0, 2]
    low, middle, _ = inspector.data["start"]
    assert low == middle  # as training has it


def test_without_pictures_truth_or_reliability(tmp_path: Path) -> None:
    """A store of imported labels may have none of them."""
    store = write_store(tmp_path / "labels", crops=4)
    table = store.images
    assert (table["target"][::3] == -1).all()
    page = tmp_path / "page.html"
    write_page(prepare(store), page)
    data = data_of(page.read_text("utf-8"))
    assert data["images"] == [] and data["classes"][0]["name"] == "no ground truth"
    assert sum(data["crops"]) == 20 and sum(data["known"]) == 4 * int((table["target"] >= 0).sum())


def test_label_maps_are_shown_by_their_cells(tmp_path: Path) -> None:
    grid = Crops(kind="grid", count=6, rows=2, columns=3, rule="grid")
    store = write_store(tmp_path / "maps", crops=6, grid=grid)
    inspector = prepare(store)
    assert ("Cells per map", "2x3") in inspector.facts and "Label maps" in render(inspector, None)


def test_true_probability_leaves_images_without_truth_important(tmp_path: Path) -> None:
    store = write_store(tmp_path / "labels", crops=4)
    regions = Regions(score="true_prob", thresholds=(0.2, 0.3, 0.9))
    data = prepare(store, None, regions).data
    shares = mine(store, regions).shares
    low, middle, top = data["start"]
    crops = np.array(data["crops"])
    assert crops[0] == 8  # two of five images have no truth
    discarded = crops[1 : 2 * low + 1].sum() + crops[2 * top + 2 :].sum()
    assert discarded / 20 == shares["discarded"]
    assert crops[2 * low + 1 : 2 * middle + 1].sum() / 20 == shares["hard"]
    assert data["use"]["options"] == " --score true_prob"


def test_pictures_stay_within_their_budget(labelled) -> None:
    images, store = labelled
    inspector = prepare(store, open_images(images))
    few = embedded(inspector, 40, budget=30_000)
    used = sum(len(item["src"]) for item in few["images"])
    assert 0 < used <= 30_000 and len(few["images"]) < 40
    assert f"{len(few['images'])} of 40 images" in few["images_note"]
    given = {item["given"] for item in few["images"]}
    assert len(given) > 2  # spread over the classes, not the first of them
    sample = embedded(inspector, 12)["images"]
    denied = [item for item in sample if item["p"][1] > item["p"][0]]
    assert len(sample) == 12 and len(denied) >= 4


def test_a_picture_that_is_gone_is_said(labelled, tmp_path: Path) -> None:
    root = tmp_path / "images"
    write_blots(root, HOSTILE, 8, 2)
    file = root / "plain" / "007.jpg"
    inspector = prepare(labelled[1], open_images(root))
    file.unlink()
    items = embedded(inspector, 40)["images"]
    gone = [item for item in items if item["id"] == "plain/007.jpg"]
    assert "src" not in gone[0] and "no longer there" in gone[0]["unread"]


def test_the_parts_of_the_page_are_in_the_package() -> None:
    folder = Path(pages.__file__).parent / "page"
    assert {path.name for path in folder.iterdir()} == {
        *("page.html", "inspector.css", "core.js", "chart.js", "gallery.js", "main.js")
    }
