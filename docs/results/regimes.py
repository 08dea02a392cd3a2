"""What to use when: each regime's gain over its baseline, from the results beside this file.

A row names a regime, a result and two of its methods, chosen before the result was seen or by the
criteria of the lab log. ``tables.py`` writes the rows where a page has the mark
``<!-- regimes photographs -->`` (a row of each regime of photographs), ``<!-- regimes all -->``,
``<!-- regimes discards -->`` (FerKD beside random discard and beside FKD on larger crops),
``<!-- regimes methods -->`` (every method beside unsmoothed hard labels on the flowers) or
``<!-- regimes cost -->`` (stored labels beside timm's live distillation, benchmarks/timm_peer.py).
``python docs/results/regimes.py`` writes ``regimes.md``, the first of them for README.md.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ferkd.study.compare.summary import paired
from ferkd.system.statistics import mean, sample_deviation

HERE = Path(__file__).parent


@dataclass(frozen=True)
class Row:
    """``ours`` against ``base``, two methods of one budget of the result ``file``.

    ``images`` says what was trained on, ``signal`` what ``ours`` learns from; ``first`` rows stand
    for a regime of real photographs in README.md.
    """

    regime: str
    images: str
    signal: str
    file: str
    budget: str
    ours: str
    base: str = "hard-plain"
    first: bool = False


ROWS = (
    Row(
        "a tenth has a class",
        "flowers, 48 px, 290 of 2930 with a class, 275 steps",
        "soft labels of all images (`fkd`)",
        "flowers-few-labels",
        "one",
        "fkd-all",
        first=True,
    ),
    Row(
        "the same",
        "flowers, 48 px, 290 of 2930 with a class, 275 steps",
        "soft labels of the tenth alone (`fkd`)",
        "flowers-few-labels",
        "one",
        "fkd-tenth",
    ),
    Row(
        "5 % have a class",
        "flowers, 48 px, 143 of 2930 with a class, 275 steps",
        "soft labels of all images (`fkd`)",
        "flowers-few-labels",
        "one",
        "fkd-all-5",
        "hard-plain-5",
    ),
    Row(
        "1 % has a class",
        "flowers, 48 px, 28 of 2930 with a class, 275 steps",
        "soft labels of all images (`fkd`)",
        "flowers-few-labels",
        "one",
        "fkd-all-1",
        "hard-plain-1",
        first=True,
    ),
    Row(
        "1 % has a class, start from features of all",
        "flowers, 48 px, 28 with a class, 100 steps",
        "those classes, from a student that learnt stored features first (`feature`)",
        "flowers-label-free",
        "main",
        "feature-1",
        "scratch-1",
        first=True,
    ),
    Row(
        "a tenth has a class, the same start",
        "flowers, 48 px, 290 with a class, 100 steps",
        "the same",
        "flowers-label-free",
        "main",
        "feature-10",
        "scratch-10",
    ),
    Row(
        "all have a class, the same start",
        "flowers, 48 px, 2930 with a class, 100 steps",
        "the same",
        "flowers-label-free",
        "main",
        "feature-100",
        "scratch-100",
    ),
    Row(
        "few photographs, long",
        "flowers, 48 px, 290 photographs, 100 epochs",
        "soft labels (`fkd`)",
        "flowers-long",
        "one",
        "fkd",
    ),
    Row(
        "few photographs, long",
        "flowers, 48 px, 290 photographs, 100 epochs",
        "soft labels, doubtful crops discarded (`ferkd`)",
        "flowers-long",
        "one",
        "ferkd",
        first=True,
    ),
    Row(
        "the same, against smoothed hard labels",
        "flowers, 48 px, 290 photographs, 100 epochs",
        "the same",
        "flowers-long",
        "one",
        "ferkd",
        "hard",
    ),
    Row(
        "many classes, a teacher wrong on half of the crops",
        "100 classes of Tiny-ImageNet, 32 px, 8 epochs",
        "soft labels (`fkd`)",
        "many-classes",
        "one",
        "fkd",
        first=True,
    ),
    Row(
        "the same",
        "100 classes of Tiny-ImageNet, 32 px, 8 epochs",
        "soft labels, doubtful crops discarded (`ferkd`)",
        "many-classes",
        "one",
        "ferkd",
    ),
    Row(
        "the same",
        "100 classes of Tiny-ImageNet, 32 px, 8 epochs",
        "half truth, half soft label at temperature 2 (`fkd`, `kl`)",
        "many-classes",
        "one",
        "half",
    ),
    Row(
        "a pretrained teacher, never adapted",
        "flowers, 48 px, 8 epochs, the same stored crops",
        "stored features beside hard labels (`feature`)",
        "flowers-features",
        "main",
        "feature-hard",
        "hard-same",
        first=True,
    ),
    Row(
        "the same at 48 px, no labels",
        "flowers, 48 px, 8 epochs, the same stored crops",
        "stored features alone (`feature`)",
        "flowers-features",
        "main",
        "feature",
        "hard-same",
    ),
    Row(
        "the same, a larger student for longer",
        "flowers, 64 px, 24 epochs, the same stored crops",
        "stored features beside hard labels (`feature`)",
        "flowers-features-64",
        "main",
        "feature-hard",
        "hard-same",
        first=True,
    ),
    Row(
        "every label, few classes, short",
        "flowers, 5 classes, 112 px, 8 epochs",
        "soft labels (`fkd`)",
        "flowers-main",
        "short",
        "fkd",
    ),
    Row(
        "the same",
        "the same",
        "soft labels, doubtful crops discarded (`ferkd`)",
        "flowers-main",
        "short",
        "ferkd",
    ),
    Row(
        "a pretrained student",
        "flowers, 64 px, 92 steps, teacher and student with ImageNet weights",
        "soft labels of a larger teacher (`fkd`)",
        "flowers-pretrained",
        "main",
        "fkd",
        first=True,
    ),
    Row(
        "the same, a tenth has a class",
        "flowers, 64 px, 92 steps, teacher and student with ImageNet weights",
        "soft labels of all images (`fkd`)",
        "flowers-pretrained",
        "main",
        "few-all",
        "few-hard",
    ),
    Row(
        "every label, few classes, longer",
        "flowers, 5 classes, 48 px, 18 epochs",
        "soft labels (`fkd`)",
        "flowers-small",
        "long",
        "fkd",
        first=True,
    ),
    Row(
        "the same",
        "the same",
        "soft labels, doubtful crops discarded (`ferkd`)",
        "flowers-small",
        "long",
        "ferkd",
    ),
    Row(
        "crops that miss the object",
        "drawn scenes, 64 px, 375 steps",
        "soft labels of crops of 35 to 100 % (`fkd`)",
        "scenes-baselines",
        "short",
        "fkd-wide",
    ),
    Row(
        "the same",
        "drawn scenes, 64 px, 375 steps",
        "soft labels of crops of 8 to 100 %, doubtful ones discarded (`ferkd`)",
        "scenes-baselines",
        "short",
        "ferkd",
    ),
    Row(
        "40 % wrong labels",
        "flowers, 48 px, 8 epochs, three teachers",
        "soft labels (`fkd`)",
        "flowers-noise",
        "main",
        "fkd-40",
        "hard-plain-40",
        first=True,
    ),
    Row(
        "20 % wrong labels",
        "flowers, 48 px, 8 epochs, three teachers",
        "soft labels (`fkd`)",
        "flowers-noise",
        "main",
        "fkd-20",
        "hard-plain-20",
    ),
    Row(
        "40 % wrong labels",
        "drawn scenes, 64 px, 20 epochs",
        "soft labels (`fkd`)",
        "scenes-noise",
        "one",
        "fkd-40",
        "hard-plain-40",
    ),
    Row(
        "40 % wrong labels",
        "Fashion-MNIST",
        "soft labels (`fkd`)",
        "fashion-thresholds",
        "one",
        "fkd-40",
        "hard-plain-40",
    ),
)

# FerKD's discard beside the same number of crops discarded at random, and beside larger crops.
DISCARDS = (
    Row("", "scenes, 8 to 100 %", "the score", "scenes-baselines", "short", "ferkd", "random"),
    Row("", "flowers, 48 px", "the score", "flowers-baselines", "short", "ferkd", "random"),
    Row("", "scenes", "larger crops", "scenes-baselines", "short", "ferkd", "fkd-wide"),
    Row(
        "",
        "flowers, few labels",
        "the score",
        "flowers-few-labels",
        "one",
        "ferkd-all",
        "random-all",
    ),
    Row("", "Tiny-ImageNet, 100 classes", "the score", "many-classes", "one", "ferkd", "random"),
    Row(
        "",
        "flowers, 40 % wrong labels",
        "the score",
        "flowers-noise",
        "main",
        "ferkd-40",
        "random-40",
    ),
    Row("", "flowers, 290, long", "the score", "flowers-long", "one", "ferkd", "random"),
    Row("", "flowers, 48 px", "larger crops", "flowers-baselines", "short", "ferkd", "fkd-wide"),
    Row(
        "",
        "flowers, few labels",
        "larger crops",
        "flowers-few-labels",
        "one",
        "ferkd-all",
        "fkd-all-wide",
    ),
    Row(
        "",
        "Tiny-ImageNet, 100 classes",
        "larger crops",
        "many-classes",
        "one",
        "ferkd",
        "fkd-wide",
    ),
)

# Every method that was run beside unsmoothed hard labels on the flowers, and whether to pick it.
BUDGETS = (
    ("48 px, 6 epochs", "flowers-small", "short"),
    ("48 px, 18 epochs", "flowers-small", "long"),
    ("112 px, 8 epochs", "flowers-main", "short"),
)
PICKED = {
    "hard-plain": "yes, with `loss.label_smoothing: 0`: the baseline to beat",
    "hard": "no: smoothing by 0.1 costs",
    "hard-mixup": "no at these lengths",
    "hard-cutmix": "no at these lengths",
    "kd": "where one student is trained once, and the teacher is cheap",
    "funmatch": "no at these lengths",
    "relabel": "no: a label of a cell is blurred",
    "fkd": "yes: several students, images without a class, wrong labels",
    "fkd-hard": "no: that throws the label away",
    "fkd-smoothing": "no",
    "meal_v2": "no: two teachers cost twice and tie",
    "ssld": "no: ties with `fkd`",
    "ferkd": "yes: as `fkd`, where crops may miss the object",
    "ferkd-paper": "no: its hard labels and its mixing cost",
    "fkd-m2": "two crops of an image: where decoding is most of a step",
    "pskd": "no",
}


def table(kind: str) -> list[str]:
    """The lines of the table ``kind`` in Markdown."""
    if kind == "cost":
        return _cost(json.loads((HERE / "timm-peer.json").read_text(encoding="utf-8")))
    if kind == "methods":
        heads = ["method", *(name for name, _, _ in BUDGETS), "pick it?"]
        lines = [f"| {' | '.join(heads)} |", f"|{'---|' * len(heads)}"]
        for name, said in PICKED.items():
            gains = (
                gain(Row("", "", "", *at, name)) if has(at, name) else "–" for _, *at in BUDGETS
            )
            lines.append(f"| {' | '.join([name, *gains, said])} |")
        return lines
    if kind == "discards":
        head = "| images | `ferkd` against | top-1, % | points | NLL |"
        rows = [
            f"| {row.images} | {row.base}: {row.signal} | {_both(row)} | {gain(row)} | {nll(row)} |"
            for row in DISCARDS
        ]
        return [head, "|---|---|---|---|---|", *rows]
    chosen = [row for row in ROWS if row.first or kind == "all"]
    head = (
        "| regime | images | learns from | hard labels / these, top-1 % | "
        "gain, points [95 %] | NLL | seeds | does it pay? |"
    )
    lines = [head, "|---|---|---|---|---|---|---|---|"]
    for row in chosen:
        cells = [row.regime, row.images, row.signal, _both(row), gain(row), nll(row)]
        cells += [str(len(_seeds(row))), verdict(row)]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def _cost(peer: dict[str, Any]) -> list[str]:
    """Stored labels beside timm's live distillation: top-1 and CPU seconds."""
    lines = [
        "| side | top-1, % | labels, CPU s | a student, CPU s | all of 1 | of 3 | of 10 |",
        "|---|---|---|---|---|---|---|",
    ]
    for side, name in (("timm", "timm, teacher in the loop"), ("stored", "ferkd, stored labels")):
        top1, each = peer["top1"][side], peer["train_seconds"][side]
        spread = sample_deviation(top1)
        shown = f"{100 * mean(top1):.1f}" + ("" if spread is None else f" ± {100 * spread:.1f}")
        cells = [name, shown]
        cells += [f"{peer['label_seconds']:.0f}" if side == "stored" else "–", f"{mean(each):.0f}"]
        cells += [f"{peer['students'][count][side]:.0f}" for count in ("1", "3", "10")]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def gain(row: Row) -> str:
    """The difference in top-1, points, with its 95 % interval over the seeds of both."""
    return _text(difference(row, "top1", 100), 1)


def nll(row: Row) -> str:
    """The difference in NLL with its interval."""
    return _text(difference(row, "nll", 1), 3)


def has(at: list[str], method: str) -> bool:
    """Whether the result and budget ``at`` have runs of a method other than the base."""
    file, budget = at
    return method != "hard-plain" and method in _methods(Row("", "", "", file, budget, method))


def verdict(row: Row) -> str:
    """What the interval of the difference in top-1 says, else that of the NLL."""
    top1, loss = difference(row, "top1", 100), difference(row, "nll", 1)
    if top1["low"] is not None and top1["low"] > 0:
        return "yes"
    if top1["high"] is not None and top1["high"] < 0:
        return "no, it costs"
    better = loss["high"] is not None and loss["high"] < 0
    worse = loss["low"] is not None and loss["low"] > 0
    return "in NLL" if better else "no, NLL suffers" if worse else "not told apart"


def difference(row: Row, key: str, scale: float) -> dict[str, Any]:
    """``ours`` less ``base``, paired by seed."""
    methods = _methods(row)
    ours, base = (
        {int(seed): scale * run[key] for seed, run in methods[name]["runs"].items()}
        for name in (row.ours, row.base)
    )
    found = paired(ours, base)
    assert found is not None, row
    return found


def _methods(row: Row) -> dict[str, Any]:
    result = json.loads((HERE / f"{row.file}.json").read_text(encoding="utf-8"))
    methods: dict[str, Any] = result["budgets"][row.budget]["methods"]
    return methods


def _seeds(row: Row) -> list[int]:
    seeds: list[int] = difference(row, "top1", 1)["seeds"]
    return seeds


def _both(row: Row) -> str:
    methods = _methods(row)
    seeds = [str(seed) for seed in _seeds(row)]
    means = [
        100 * sum(methods[name]["runs"][seed]["top1"] for seed in seeds) / len(seeds)
        for name in (row.base, row.ours)
    ]
    return " / ".join(f"{each:.1f}" for each in means)


def _text(found: dict[str, Any], digits: int) -> str:
    text = f"{found['mean']:+.{digits}f}"
    if found["low"] is None:
        return text
    return f"{text} [{found['low']:+.{digits}f}, {found['high']:+.{digits}f}]"


if __name__ == "__main__":
    lines = table("photographs")
    (HERE / "regimes.md").write_text("\n".join(lines) + "\n", encoding="utf-8")
    print("\n".join(lines))
