"""Nearest neighbours and a linear probe on the features of a suite's students and teacher.

``python docs/results/embeddings.py FOLDER TRAIN VAL TEACHER`` judges every finished run of the
suite's FOLDER by :func:`ferkd.evaluating.embedding.judge`, which learns from the photographs of
TRAIN and judged on those of VAL, and writes the figures to FOLDER/embeddings.json, in the
form that docs/results/tables.py reads. The row ``teacher`` is that of the spec TEACHER.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from ferkd.evaluating.embedding import judge
from ferkd.study.compare.folder import finished, read_folder, wanted_runs
from ferkd.system.statistics import mean, sample_deviation

FIGURES = ("knn_top1", "probe_top1")


def main(folder: Path, train: str, val: str, teacher: str) -> None:
    suite = read_folder(folder)
    wanted = wanted_runs(suite, folder)
    budgets: dict[str, Any] = {}
    for budget, methods in finished(suite, wanted).items():
        rows = {"teacher": {"0": judged(teacher, train, val)}}
        for name, runs in methods.items():
            if runs:
                rows[name] = {str(run.seed): judged(run.folder, train, val) for run in runs}
        budgets[budget] = {"methods": {name: row(of_seed) for name, of_seed in rows.items()}}
    result = {"suite": folder.name, "baseline": suite.baseline, "budgets": budgets}
    text = json.dumps(result, indent=1)
    (folder / "embeddings.json").write_text(text + "\n", encoding="utf-8")
    for budget, of in budgets.items():
        for name, found in of["methods"].items():
            print(budget, name, *(f"{key} {found[f'{key}_mean']:.3f}" for key in FIGURES))


def judged(network: Path | str, train: str, val: str) -> dict[str, Any]:
    """The figures of one network, without where it lay."""
    found = judge(network, val, reference=train, workers=0)
    return {key: value for key, value in found.items() if key != "network"}


def row(of_seed: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Means and deviations over the seeds, and the figures of each."""
    found: dict[str, Any] = {"seeds": [int(seed) for seed in of_seed], "runs": of_seed}
    for key in FIGURES:
        values = [run[key] for run in of_seed.values()]
        found[f"{key}_mean"], found[f"{key}_std"] = mean(values), sample_deviation(values)
    return found


if __name__ == "__main__":
    folder, *others = sys.argv[1:]
    main(Path(folder), *others)
