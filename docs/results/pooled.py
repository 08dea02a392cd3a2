"""FerKD's lead over FKD over all committed circumstances: one suite has too few seeds to tell.

``python docs/results/pooled.py`` reads the results beside it and prints, for each circumstance in
which FKD and FerKD by its default rule were trained on the same labels, the mean difference in
top-1 and NLL; then the median, the mean over the circumstances with Student's 95 % interval, and
the same with each of the four data sets once; at last the mean without the circumstances that have
one seed or whose seeds were not kept.

Every committed circumstance counts, once, however many seeds it has: seeds tell how sure a
difference is there, circumstances whether it can be expected elsewhere. Runs that two results share
count in one of them (``REPEATED``). Circumstances of one data set are not independent, so the first
interval is too narrow; four data sets are few, so the second is wide. On the scenes, the demo's
among them, the rule was developed.
"""

from __future__ import annotations

import json
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

from ferkd.system.statistics import mean, mean_interval

HERE = Path(__file__).parent


class Pair(NamedTuple):
    """FKD and FerKD by the default rule in one budget of one result."""

    result: str
    budget: str
    fkd: str
    ferkd: str


def _same(result: str, budget: str, *suffixes: str, ferkd: str = "ferkd") -> list[Pair]:
    return [Pair(result, budget, f"fkd{end}", f"{ferkd}{end}") for end in suffixes]


# Where all crops of an image are discarded, those of flowers, flowers-main, flowers-teachers-112,
# fashion-thresholds-first and scenes-noise-first still made hard labels of them.
PAIRS = {
    "flowers": [
        Pair("flowers", "m = 1", "fkdm1", "ferkdm1"),  # 0.41 / 0.41 / 1, what the rule found
        Pair("flowers", "m = 4", "fkd", "discard"),
        *_same("flowers-main", "short", ""),
        *_same("flowers-main", "long", ""),
        *_same("flowers-teachers-112", "short", "-weak", "-middle", "-strong"),
        *_same("flowers-seeds", "short", ""),
        *_same("flowers-seeds", "long", ""),
        *_same("flowers-teachers", "short", "-weak", "-middle"),
        *_same("flowers-baselines", "short", "", "-wide"),
        *_same("flowers-few-labels", "one", "-all"),
        *_same("flowers-long", "one", ""),
        *_same("flowers-pretrained", "main", ""),
        *_same("flowers-noise", "main", "-0", "-20", "-40"),
    ],
    "Fashion-MNIST": [
        *_same("fashion-thresholds", "one", "", "-40", ferkd="reliable"),
        *_same("fashion-thresholds-first", "one", "-40", ferkd="reliable"),
    ],
    "Tiny-ImageNet": _same("many-classes", "one", ""),
    "scenes": [
        *_same("demo", "800 steps", ""),
        *_same("scenes-noise-first", "one", "-0", "-40"),
        *_same("scenes-noise", "one", "-0", "-40"),
        *_same("scenes-baselines", "short", "", "-wide"),
        *_same("scenes-where", "short", ""),
        *_same("scenes-where", "one", "", "-crops-2", "-small", "-large", "-weak"),
        *_same("scenes-where", "one", "-close", "-wide"),
        *_same("scenes-where", "long", ""),
    ],
}

# The same runs as a pair above has, on all or some of its seeds, and that pair.
REPEATED = {
    Pair("fashion-thresholds-first", "one", "fkd", "reliable"): PAIRS["Fashion-MNIST"][0],
    Pair("flowers-small", "short", "fkd", "ferkd"): Pair("flowers-seeds", "short", "fkd", "ferkd"),
    Pair("flowers-small", "long", "fkd", "ferkd"): Pair("flowers-seeds", "long", "fkd", "ferkd"),
    Pair("flowers-teachers", "short", "fkd-strong", "ferkd-strong"): Pair(
        "flowers-seeds", "short", "fkd", "ferkd"
    ),
    Pair("flowers-ablation", "short", "fkd", "reliable"): Pair(
        "flowers-seeds", "short", "fkd", "ferkd"
    ),
    Pair("scenes-noise-40", "one", "fkd-40", "ferkd-40"): Pair(
        "scenes-noise", "one", "fkd-40", "ferkd-40"
    ),
    Pair("scenes-thresholds", "one", "fkd", "reliable"): Pair(
        "scenes-noise", "one", "fkd-0", "ferkd-0"
    ),
}


def rows(result: str, budget: str) -> dict[str, Any]:
    """The methods of one budget of a result; results made before there were budgets have one."""
    found = json.loads((HERE / f"{result}.json").read_text(encoding="utf-8"))
    if "budgets" not in found:
        return found["methods"]
    return found["budgets"][budget]["methods"]


def figures(row: dict[str, Any], key: str) -> dict[str, float]:
    """``key`` by seed; under "mean" where the result keeps the mean alone."""
    runs = row.get("runs")
    if runs is None:
        return {"mean": row[key]}
    if isinstance(runs, list):
        return {str(run["seed"]): run[key] for run in runs}
    return {seed: run[key] for seed, run in runs.items()}


def lead(pair: Pair, key: str) -> tuple[float, int]:
    """FerKD's mean figure less FKD's over the seeds of both, and their number."""
    methods = rows(pair.result, pair.budget)
    ours, theirs = figures(methods[pair.ferkd], key), figures(methods[pair.fkd], key)
    seeds = sorted(ours.keys() & theirs.keys())
    number = methods[pair.ferkd]["seeds"] if seeds == ["mean"] else len(seeds)
    return mean([ours[seed] - theirs[seed] for seed in seeds]), number


def main() -> None:
    """Print the table and what it comes to."""
    print(f"{'circumstance':<48} seeds   top-1, points      NLL")
    leads: dict[str, dict[str, list[float]]] = {"top1": {}, "nll": {}}
    known: list[int] = []  # seeds whose own figures were kept
    for data, pairs in PAIRS.items():
        for pair in pairs:
            top1, seeds = lead(pair, "top1")
            nll, _ = lead(pair, "nll")
            known.append(0 if pair.result == "demo" else seeds)
            leads["top1"].setdefault(data, []).append(100 * top1)
            leads["nll"].setdefault(data, []).append(nll)
            name = f"{pair.result}, {pair.budget}: {pair.ferkd}"
            print(f"{name:<48} {seeds:>5} {100 * top1:>+15.1f} {nll:>+8.3f}")
    for data, pairs in PAIRS.items():
        print(f"{data}: {len(pairs)} circumstances")
    for key, digits in (("top1", 1), ("nll", 3)):
        by_data = leads[key]
        for data, values in by_data.items():
            print(f"{key}, {data}: {mean(values):+.{digits}f}")
        each = [value for values in by_data.values() for value in values]
        ahead = sum((value > 0) == (key == "top1") for value in each)
        print(f"{key}: {_interval(each, digits)}, ahead in {ahead} of {len(each)}")
        print(f"{key}, median: {median(each):+.{digits}f}")
        sets = [mean(values) for values in by_data.values()]
        print(f"{key}, each data set once: {_interval(sets, digits)}")
        several = [value for value, seeds in zip(each, known, strict=True) if seeds > 1]
        ahead = sum((value > 0) == (key == "top1") for value in several)
        of = f"ahead in {ahead} of {len(several)}"
        print(f"{key}, several seeds kept: {_interval(several, digits)}, {of}")


def _interval(values: list[float], digits: int) -> str:
    interval = mean_interval(values)
    assert interval is not None
    low, high = interval
    return f"{mean(values):+.{digits}f} [{low:+.{digits}f}, {high:+.{digits}f}]"


if __name__ == "__main__":
    main()
