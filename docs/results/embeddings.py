"""Nearest neighbours and a linear probe on the features of a suite's students and teacher.

``python docs/results/embeddings.py FOLDER TRAIN VAL NAME=NETWORK...`` judges every finished run of
the suite's FOLDER, and each NETWORK besides (a teacher's spec, a run's folder), on VAL by
:func:`ferkd.evaluating.embedding.judge`, which learns from the photographs of TRAIN. The figures go
to FOLDER/embeddings.json, in the form that docs/results/tables.py reads, after each network; those
that are there are not judged again.
"""

from __future__ import annotations

import json
import shlex
import sys
from pathlib import Path
from typing import Any

from ferkd.evaluating.embedding import Seen, judge
from ferkd.images import open_images
from ferkd.study.compare.folder import finished, read_folder, wanted_runs
from ferkd.system.statistics import mean, sample_deviation

FIGURES = ("knn_top1", "probe_top1")


def main(folder: Path, train: str, val: str, others: dict[str, str]) -> None:
    suite, file = read_folder(folder), folder / "embeddings.json"
    known, asked, seen = open_images(train), open_images(val), Seen()
    former = json.loads(file.read_text()) if file.is_file() else {"budgets": {}}
    result: dict[str, Any] = {"suite": folder.name, "baseline": suite.baseline, **former}
    result["command"] = shlex.join(["python", "docs/results/embeddings.py", *sys.argv[1:]])
    for budget, methods in finished(suite, wanted_runs(suite, folder)).items():
        wanted = {(name, "0"): network for name, network in others.items()}
        wanted |= {(m, str(run.seed)): str(run.folder) for m, of in methods.items() for run in of}
        result["budget"] = budget  # the last one is what a table shows
        rows = result["budgets"].setdefault(budget, {"methods": {}})["methods"]
        for (name, seed), network in wanted.items():
            runs = rows.get(name, {"runs": {}})["runs"]
            if seed in runs:
                continue
            found = judge(network, asked, reference=known, workers=0, seen=seen)
            runs[seed] = {key: value for key, value in found.items() if key != "network"}
            rows[name] = row(runs)
            print(budget, name, seed, *(f"{key} {found[key]:.3f}" for key in FIGURES), flush=True)
            file.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


def row(of_seed: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Means and deviations over the seeds, and the figures of each."""
    found: dict[str, Any] = {"seeds": [int(seed) for seed in of_seed], "runs": of_seed}
    for key in FIGURES:
        values = [run[key] for run in of_seed.values()]
        found[f"{key}_mean"], found[f"{key}_std"] = mean(values), sample_deviation(values)
    return found


if __name__ == "__main__":
    folder, train, val, *others = sys.argv[1:]
    main(Path(folder), train, val, dict(other.split("=", 1) for other in others))
