"""Do features know something of the crops whose label the teacher does not know?

``python docs/results/unknown_crops.py STORE`` divides the crops of STORE, which holds labels and
features, by FerKD's rule (``regions.thresholds: reliable``), and asks the nearest neighbours of the
features, which are crops of other images that the rule keeps, for their class. It prints how many
crops are discarded, and how often the label and the neighbours are right on those discarded and
on as many of those kept. With ``--below S`` the crops of a lower score than S count as discarded.
"""

from __future__ import annotations

import argparse

import numpy as np
import torch
from torch import Tensor

from ferkd.calibration.regions import Region, Regions, mine
from ferkd.evaluating.embedding import NEIGHBOURS, Embedded, nearest
from ferkd.store import LabelStore

_FOLDS = 5  # images of one fold are asked of the other four


def main(path: str, below: float | None) -> None:
    store = LabelStore(path)
    thresholds = "reliable" if below is None else (below, below, 1.0)
    found = mine(store, Regions(thresholds=thresholds))
    discarded = found.regions == Region.DISCARDED
    rows = np.repeat(np.arange(len(store)), store.crops_per_image)
    crops = np.tile(np.arange(store.crops_per_image), len(store))
    out = discarded.reshape(-1)
    print(f"{out.sum()} of {len(out)} crops discarded ({out.mean():.1%}) below {found.thresholds}")
    if not out.any():
        return
    kept = np.random.default_rng(0).choice(
        np.flatnonzero(~out), min(out.sum(), (~out).sum()), False
    )
    for name, chosen in (("discarded", np.flatnonzero(out)), ("kept", np.sort(kept))):
        truth = torch.from_numpy(store.truth(rows[chosen]))
        label = store.labels(rows[chosen], crops[chosen]).top1()
        answer = _neighbours(store, rows, crops, ~out, chosen)
        print(
            f"{name}: the label is right on {_share(label, truth):.1%}, the neighbours on "
            f"{_share(answer, truth):.1%} of {len(chosen)}"
        )


def _neighbours(
    store: LabelStore,
    rows: np.ndarray,
    crops: np.ndarray,
    known: np.ndarray,
    chosen: np.ndarray,
) -> Tensor:
    answers = torch.empty(len(chosen), dtype=torch.long)
    centre = torch.from_numpy(store.features(rows[::7], crops[::7])).mean(0)
    for fold in range(_FOLDS):
        asked = rows[chosen] % _FOLDS == fold
        bank = np.flatnonzero(known & (rows % _FOLDS != fold))
        of_bank = torch.from_numpy(store.features(rows[bank], crops[bank])) - centre
        places = chosen[asked]
        of_asked = torch.from_numpy(store.features(rows[places], crops[places])) - centre
        classes = torch.from_numpy(store.truth(rows[bank]))
        answers[torch.from_numpy(asked)] = nearest(Embedded(of_bank, classes), of_asked, NEIGHBOURS)
    return answers


def _share(answers: Tensor, truth: Tensor) -> float:
    return float((answers == truth).double().mean())


if __name__ == "__main__":
    given = argparse.ArgumentParser(description="what features know of unknown crops")
    given.add_argument("store")
    given.add_argument("--below", type=float)
    options = given.parse_args()
    main(options.store, options.below)
