"""FerKD's lead over FKD over all suites together, where one suite has too few seeds to tell.

``python docs/results/pooled.py`` reads the results beside it and prints, for each circumstance in
which both were trained on the same seeds, the mean difference in top-1 and NLL, then the mean over
the circumstances with Student's 95 % interval. A circumstance counts once, however many seeds it
has: seeds tell how sure a difference is there, circumstances whether it can be expected elsewhere.
The interval takes the circumstances for independent, which they are not: seven are the same
flowers, and fashion-rescue was run after a mend that its own images had asked for. So it is too
narrow.
"""

from __future__ import annotations

import json
from pathlib import Path

from ferkd.report.stats import mean, mean_interval

# (result, budget, FKD, FerKD by the default rule). Where all crops of an image are discarded, those
# of flowers-main, flowers-teachers and scenes-noise still made hard labels of them.
PAIRS = [
    ("flowers-main", "short", "fkd", "ferkd"),
    ("flowers-main", "long", "fkd", "ferkd"),
    ("flowers-small", "short", "fkd", "ferkd"),
    ("flowers-small", "long", "fkd", "ferkd"),
    ("flowers-teachers-112", "short", "fkd-weak", "ferkd-weak"),
    ("flowers-teachers-112", "short", "fkd-middle", "ferkd-middle"),
    ("flowers-teachers-112", "short", "fkd-strong", "ferkd-strong"),
    ("fashion-thresholds", "one", "fkd", "reliable"),
    ("fashion-rescue", "one", "fkd-40", "reliable-40"),
    ("scenes-noise-first", "one", "fkd-0", "ferkd-0"),
    ("scenes-noise-first", "one", "fkd-40", "ferkd-40"),
]


def main() -> None:
    """Print the table."""
    leads: dict[str, list[float]] = {"top1": [], "nll": []}
    print(f"{'circumstance':<40} seeds   top-1, points      NLL")
    for result, budget, fkd, ferkd in PAIRS:
        file = Path(__file__).with_name(f"{result}.json")
        methods = json.loads(file.read_text())["budgets"][budget]["methods"]
        ours, theirs = methods[ferkd]["runs"], methods[fkd]["runs"]
        seeds = sorted(ours.keys() & theirs.keys())
        for key, values in leads.items():
            values.append(mean([ours[seed][key] - theirs[seed][key] for seed in seeds]))
        top1, nll = 100 * leads["top1"][-1], leads["nll"][-1]
        name = f"{result}, {budget}: {ferkd}"
        print(f"{name:<40} {len(seeds):>5} {top1:>+15.1f} {nll:>+8.3f}")
    for key, scale, digits in (("top1", 100, 1), ("nll", 1, 3)):
        values = [scale * value for value in leads[key]]
        interval = mean_interval(values)
        assert interval is not None
        low, high = interval
        print(
            f"{key}: {mean(values):+.{digits}f} [{low:+.{digits}f}, {high:+.{digits}f}], ahead in "
            f"{sum((v > 0) == (key == 'top1') for v in values)} of {len(values)}"
        )


if __name__ == "__main__":
    main()
