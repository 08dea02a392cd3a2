"""Are losses those of the store's version 1? The runs of the expected losses, in both versions.

    OMP_NUM_THREADS=1 python benchmarks/version_losses.py --json FILE

Each version is built from git (see store_versions.py) and, in a process of its own, labels the
images of tests/training/test_expected_losses.py and trains its four students: every logged loss is
compared bit by bit. Beside it, labels of made-up logits after a passage through each version's
record: equal to the bit where the true class is among those kept, and where it is not, different by
what its probability is rounded with, 127 codes in version 1 (its byte held the flip too) and 255.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from reporting import parser_of, tell
from store_versions import BEFORE, built, commit_of

CLASSES, TOP_K, CROPS = 100, 5, 2000


def work(tree: str, folder: str) -> None:
    """Of one version: the losses by method, and the labels [CROPS, CLASSES] into a file."""
    import numpy as np
    import torch

    sys.path.insert(0, f"{tree}/tests/training")
    from test_expected_losses import METHODS, losses

    from ferkd.store.records import RecordFormat
    from ferkd.store.soft import SoftLabels

    place = Path(folder)
    losses(place)
    lines = {m: (place / m / "metrics.jsonl").read_text().splitlines() for m in METHODS}
    found = {
        method: [line["loss"] for line in map(json.loads, of) if line["kind"] == "train"]
        for method, of in lines.items()
    }
    rng = np.random.default_rng(0)
    logits = torch.from_numpy(rng.normal(0, 2, (CROPS, CLASSES)))
    targets = torch.from_numpy(rng.integers(0, CLASSES, CROPS))
    targets[: CROPS // 2] = logits[: CROPS // 2].argmax(1)  # else the top classes hold few of them
    form = RecordFormat.choose(TOP_K, CLASSES)
    labels = SoftLabels.from_logits(logits, targets, TOP_K)
    of_crops = () if form.dtype.names[0] == "classes" else (np.zeros((CROPS, 4)), np.zeros(CROPS))
    records = form.encode(labels, *of_crops)
    decoded = form.decode(records, np.ones(CROPS, bool)).with_truth(targets)
    kept = (decoded.classes[:, :TOP_K] == targets[:, None]).any(1)
    np.savez(place / "labels.npz", dense=decoded.dense().numpy(), kept=kept.numpy())
    print(json.dumps(found))


def of_version(source: Path, folder: Path) -> dict[str, list[float]]:
    folder.mkdir()
    command = [sys.executable, __file__, "--work", str(source.parent), str(folder)]
    environment = {**os.environ, "PYTHONPATH": str(source), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, check=True, capture_output=True, text=True)
    found: dict[str, list[float]] = json.loads(done.stdout.splitlines()[-1])
    return found


def compare(before: str, after: str) -> dict[str, Any]:
    import numpy as np

    with tempfile.TemporaryDirectory() as folder, built(before) as old, built(after) as new:
        places = Path(folder) / "1", Path(folder) / "2"
        first, second = (
            of_version(source, at) for source, at in zip((old, new), places, strict=True)
        )
        pairs = {m: list(zip(first[m], second[m], strict=True)) for m in first}
        one, two = (np.load(at / "labels.npz") for at in places)
        same = (one["dense"] == two["dense"]).all(1)
        difference = np.abs(one["dense"] - two["dense"]).max(1)
        kept = one["kept"]
        return {
            "losses": {
                method: {
                    "logged": len(first[method]),
                    "equal_to_the_bit": sum(a == b for a, b in pairs[method]),
                    "largest_difference": max(abs(a - b) for a, b in pairs[method]),
                }
                for method in first
            },
            "labels": {
                "crops": len(kept),
                "true_class_kept": int(kept.sum()),
                "of_these_equal_to_the_bit": int(same[kept].sum()),
                "true_class_not_kept": int((~kept).sum()),
                "of_those_equal_to_the_bit": int(same[~kept].sum()),
                "largest_difference_of_a_probability": float(difference[~kept].max()),
            },
        }


def main() -> None:
    parser = parser_of(__doc__)
    parser.add_argument("--before", default=BEFORE)
    parser.add_argument("--after", default="HEAD")
    parser.add_argument("--work", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.work:
        work(*options.work)
        return
    commits = {"before": commit_of(options.before), "after": commit_of(options.after)}
    result = {"command": "python benchmarks/version_losses.py", **commits, **compare(**commits)}
    tell(result, options.json)


if __name__ == "__main__":
    main()
