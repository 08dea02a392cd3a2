"""The page about a store says one thing: its headline, its legend and its bars agree."""

from __future__ import annotations

import html

import numpy as np
import pytest
from stores import write_store

from ferkd.calibration.regions import Regions, mine, scores_of
from ferkd.study.inspection import inspect, write_page

MANY = tuple(f"a/{i}.jpg" for i in range(40))


@pytest.mark.parametrize("thresholds", [(0.97, 0.97, 1.0), (0.9, 0.95, 1.0)])
def test_one_share_of_discarded_crops_everywhere(tmp_path, thresholds):
    """Thresholds that leave nothing of many images, which are then kept whole."""
    store = write_store(tmp_path / "labels", ids=MANY, crops=4)
    regions = Regions(thresholds=thresholds)
    scores, _ = scores_of(store)
    low = scores < thresholds[0]
    share, kept = low.mean(), int(low.all(1).sum())
    never = low[~low.all(1)].sum() / low.size
    assert 0 < kept < len(MANY) and never < share
    figures, mining = inspect(store, regions), mine(store, regions)
    assert figures["regions"]["discarded"] == pytest.approx(share)
    assert figures["images_with_all_crops_discarded"] == kept
    assert mining.never_drawn == pytest.approx(never)
    assert (mining.by_score() == 0).sum() == low.sum() and (mining.regions == 0).mean() == never

    write_page(store, tmp_path / "page.html", regions=regions)
    page = html.unescape((tmp_path / "page.html").read_text())
    assert f"discarded {share:.1%}" in page.split("</header>")[0]
    assert f"so that {never:.1%} of all crops are never drawn" in mining.describe()


def test_by_score_of_one_image_and_of_some(tmp_path):
    store = write_store(tmp_path / "labels", ids=MANY, crops=4)
    mining = mine(store, Regions(thresholds=(0.97, 0.97, 1.0)))
    whole = mining.by_score()
    assert (mining.by_score(3) == whole[3]).all()
    assert (mining.by_score(np.array([5, 2])) == whole[[5, 2]]).all()
