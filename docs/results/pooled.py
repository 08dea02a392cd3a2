"""FerKD's lead over FKD over all suites together, where one suite has too few seeds to tell.

``python docs/results/pooled.py`` reads the results beside it and prints, for each circumstance in
which both were trained on the same seeds, the mean difference in top-1 and NLL; then the mean over
the circumstances, and the mean over the three data sets of their circumstances' means, with
Student's 95 % intervals. A circumstance counts once, however many seeds it has: seeds tell how sure
a difference is there, circumstances whether it can be expected elsewhere. Circumstances of one data
set are not independent, so the first interval is too narrow; three data sets are few, so the second
is wide.
"""

from __future__ import annotations

import json
from pathlib import Path

from ferkd.study.statistics import mean, mean_interval

# Data set, result, budget, FKD, FerKD by the default rule. Where all crops of an image are
# discarded, those of flowers-main, flowers-teachers-112 and scenes-noise-first still made hard
# labels of them.
PAIRS = [
    ("flowers", "flowers-main", "short", "fkd", "ferkd"),
    ("flowers", "flowers-main", "long", "fkd", "ferkd"),
    ("flowers", "flowers-teachers-112", "short", "fkd-weak", "ferkd-weak"),
    ("flowers", "flowers-teachers-112", "short", "fkd-middle", "ferkd-middle"),
    ("flowers", "flowers-teachers-112", "short", "fkd-strong", "ferkd-strong"),
    ("flowers", "flowers-seeds", "short", "fkd", "ferkd"),
    ("flowers", "flowers-seeds", "long", "fkd", "ferkd"),
    ("flowers", "flowers-teachers", "short", "fkd-weak", "ferkd-weak"),
    ("flowers", "flowers-teachers", "short", "fkd-middle", "ferkd-middle"),
    ("Fashion-MNIST", "fashion-thresholds", "one", "fkd", "reliable"),
    ("Fashion-MNIST", "fashion-thresholds", "one", "fkd-40", "reliable-40"),
    ("scenes", "scenes-noise-first", "one", "fkd-0", "ferkd-0"),
    ("scenes", "scenes-noise-first", "one", "fkd-40", "ferkd-40"),
    ("scenes", "scenes-noise", "one", "fkd-0", "ferkd-0"),
    ("scenes", "scenes-noise", "one", "fkd-40", "ferkd-40"),
    ("scenes", "scenes-where", "short", "fkd", "ferkd"),
    ("scenes", "scenes-where", "one", "fkd", "ferkd"),
    ("scenes", "scenes-where", "long", "fkd", "ferkd"),
    *(
        ("scenes", "scenes-where", "one", f"fkd-{what}", f"ferkd-{what}")
        for what in ("crops-2", "small", "weak", "close", "wide")
    ),
]


def main() -> None:
    """Print the table."""
    leads: dict[str, dict[str, list[float]]] = {"top1": {}, "nll": {}}
    print(f"{'circumstance':<48} seeds   top-1, points      NLL")
    for data, result, budget, fkd, ferkd in PAIRS:
        file = Path(__file__).with_name(f"{result}.json")
        methods = json.loads(file.read_text())["budgets"][budget]["methods"]
        ours, theirs = methods[ferkd]["runs"], methods[fkd]["runs"]
        seeds = sorted(ours.keys() & theirs.keys())
        for key, by_data in leads.items():
            lead = mean([ours[seed][key] - theirs[seed][key] for seed in seeds])
            by_data.setdefault(data, []).append(lead)
        top1, nll = 100 * leads["top1"][data][-1], leads["nll"][data][-1]
        name = f"{result}, {budget}: {ferkd}"
        print(f"{name:<48} {len(seeds):>5} {top1:>+15.1f} {nll:>+8.3f}")
    for key, scale, digits in (("top1", 100, 1), ("nll", 1, 3)):
        for data, values in leads[key].items():
            print(f"{key}, {data}: {scale * mean(values):+.{digits}f}")
        each = [scale * value for values in leads[key].values() for value in values]
        ahead = sum((value > 0) == (key == "top1") for value in each)
        print(f"{key}: {_interval(each, digits)}, ahead in {ahead} of {len(each)}")
        sets = [scale * mean(values) for values in leads[key].values()]
        print(f"{key}, each data set once: {_interval(sets, digits)}")


def _interval(values: list[float], digits: int) -> str:
    interval = mean_interval(values)
    assert interval is not None
    low, high = interval
    return f"{mean(values):+.{digits}f} [{low:+.{digits}f}, {high:+.{digits}f}]"


if __name__ == "__main__":
    main()
