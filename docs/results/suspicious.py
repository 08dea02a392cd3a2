"""Planted wrong labels found by ferkd's ranking and by cleanlab's, on the same probabilities.

``python docs/results/suspicious.py SCENES LABELS [SCENES LABELS ...]`` prints one JSON object; with
``--json FILE`` it goes there. SCENES is a folder of ``ferkd scenes --label-noise``, LABELS the
store of its training images. Of every ranking: precision (which is recall) at the number planted,
and precision and recall at half and twice that number; for those that draw a line also how many
images lie beyond it. cleanlab gets the plain mean of the crops' probabilities, and ours, the mean
weighted by reliability: ``pip install "ferkd[cleanlab]"``.
"""

from __future__ import annotations

import argparse
import json
import shlex
from pathlib import Path
from typing import Any

import numpy as np
from cleanlab.filter import find_label_issues
from cleanlab.rank import get_label_quality_scores
from numpy.typing import NDArray

from ferkd.calibration.regions import scores_of
from ferkd.calibration.reliability import reliability, weights_of
from ferkd.store import LabelStore
from ferkd.study.scenes.planted import TRUTH_FILE, read_truth
from ferkd.study.suspicious import judge, mean_probabilities

QUALITY = ("self_confidence", "normalized_margin", "confidence_weighted_entropy")


def compare(scenes: Path, labels: Path) -> dict[str, Any]:
    """All rankings of the training images of one folder of scenes."""
    store, truth = LabelStore.open(labels), read_truth(scenes / TRUTH_FILE)
    wrong = np.array([truth[key].shown != truth[key].given for key in store.ids])
    given = store.truth(slice(None))
    scores, correct = scores_of(store)
    reliable = weights_of(reliability(scores, correct), scores)
    judged = judge(store)
    rankings = {"ferkd": judged.ranked()}
    beyond = {"ferkd": judged.denied}
    for kind, weights in (("mean", np.full_like(reliable, 255)), ("reliable mean", reliable)):
        probs = mean_probabilities(store, weights).astype(np.float64)
        probs /= probs.sum(1, keepdims=True)  # a store keeps some classes of each label
        for method in QUALITY:
            quality = get_label_quality_scores(given, probs, method=method)
            rankings[f"cleanlab {method}, {kind}"] = np.argsort(quality, kind="stable")
        issues = find_label_issues(given, probs, return_indices_ranked_by=None, n_jobs=1)
        beyond[f"cleanlab find_label_issues, {kind}"] = issues
    planted = int(wrong.sum())
    return {
        "scenes": scenes.name,
        "images": len(wrong),
        "planted": planted,
        "crops_per_image": store.crops_per_image,
        "teacher_right": float(correct.mean()),
        "rankings": {
            name: {
                "at_planted": at(rows, wrong, planted),
                "at_half": at(rows, wrong, planted // 2),
                "at_twice": at(rows, wrong, 2 * planted),
            }
            for name, rows in rankings.items()
        },
        "beyond_its_line": {
            name: {
                "images": int(found.sum()),
                "precision": share(wrong[found]),
                "recall": float(wrong[found].sum() / planted),
            }
            for name, found in beyond.items()
        },
    }


def at(rows: NDArray[np.integer], wrong: NDArray[np.bool_], count: int) -> dict[str, float]:
    """Precision and recall of the first ``count`` rows."""
    hits = wrong[rows[:count]]
    return {"precision": share(hits), "recall": float(hits.sum() / wrong.sum())}


def share(hits: NDArray[np.bool_]) -> float:
    return float(hits.mean()) if len(hits) else 0.0


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("folders", nargs="+", type=Path)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    pairs = zip(given.folders[::2], given.folders[1::2], strict=True)
    command = shlex.join(["python", "docs/results/suspicious.py", *map(str, given.folders)])
    text = json.dumps({"command": command, "results": [compare(*p) for p in pairs]}, indent=1)
    if given.json:
        given.json.write_text(text + "\n", encoding="utf-8")
    else:
        print(text)
