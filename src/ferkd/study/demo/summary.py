"""What a demo found: the table, region mining against the true boxes, and the HTML report."""

from __future__ import annotations

import math
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ferkd import __version__
from ferkd.calibration.labels import Region
from ferkd.calibration.regions import Mining, mine, scores_of
from ferkd.crops import object_share
from ferkd.images import open_images
from ferkd.store import LabelStore
from ferkd.study import inspection, report
from ferkd.study.compare import Compared, cells
from ferkd.study.compare.page import budget_panels, verdict
from ferkd.study.demo.data import Data
from ferkd.study.demo.sizes import BUDGET, Sizes
from ferkd.system.results import Result
from ferkd.system.statistics import mean
from ferkd.training.result import RunResult


@dataclass(frozen=True, eq=False, kw_only=True)
class DemoResult(Result):
    """What a demo found: the JSON of ``ferkd demo``.

    ``methods`` as :func:`methods_of` makes it, the ``teacher``'s figures, its sizes as ``plan``,
    shares by region and their thresholds, the page's path. Where the true boxes are known also
    ``object_share`` of the regions' crops and, unless all crops are of one kind, ``auroc``.
    """

    methods: dict[str, Any]
    teacher: dict[str, float]
    seeds: int
    plan: dict[str, Any]
    regions: dict[str, float]
    thresholds: list[float]
    report: str
    auroc: float | None = None
    object_share: dict[str, float] | None = None
    seconds: float


@dataclass(frozen=True)
class Demo:
    """A demo's result, and the comparison of its students that it rests on."""

    result: DemoResult
    compared: Compared

    @property
    def table(self) -> str:
        """The comparison for a terminal, and what is known of teacher and regions."""
        found, suite = self.result, self.compared.result
        tables = [cells.plain(t) for t in cells.tables(suite["methods"], suite["baseline"])]
        shares = ", ".join(f"{name} {share:.1%}" for name, share in found.regions.items())
        lines = [
            f"teacher  top-1 {found.teacher['top1']:.1%}; {found.seeds} seed(s)",
            f"regions  {shares}",
            f"report   {found.report}",
        ]
        if found.auroc is not None:
            lines.insert(
                2,
                f"mining   AUROC {found.auroc:.3f} of the score for 'the crop holds at least half "
                "of the object'",
            )
        return "\n\n".join([*tables, "\n".join(lines)])


def methods_of(compared: Compared) -> dict[str, Any]:
    """Per method the means over the seeds, and the deviation of top-1: the JSON of a demo."""
    (runs_of,) = compared.groups.values()
    summary = {}
    for method, row in compared.result["methods"].items():
        rates = [float(run.result["crops_per_second"]) for run in runs_of[method]]
        summary[method] = {
            **{key: row[key] for key in ("top1", "nll", "ece", "brier", "seconds")},
            "crops_per_second": mean(rates),
            "top1_mean": row["top1_mean"],
            "top1_std": row["top1_std"],
            "steps": round(row["steps"]),
            "seeds": len(row["seeds"]),
        }
    return summary


def shares_of_object(store: LabelStore, boxes: dict[str, Any]) -> np.ndarray:
    """How much of the true object each stored crop holds, [N, crops]."""
    rows, crops = np.arange(len(store))[:, None], np.arange(store.crops_per_image)[None]
    objects = np.array([boxes[image_id] for image_id in store.ids])
    return object_share(store.boxes(rows, crops), objects[:, None, :])


def write_report(
    path: Path,
    *,
    sizes: Sizes,
    data: Data,
    store: LabelStore,
    teacher: RunResult,
    compared: Compared,
    seconds: float,
    command: str,
) -> dict[str, Any]:
    """Write the page; returns what it says of the regions: regions, thresholds, auroc, report."""
    mining = mine(store, sizes.regions)
    scores, _ = scores_of(store, sizes.regions.score)
    found: dict[str, Any] = {
        "regions": mining.shares,
        "thresholds": list(mining.thresholds),
        "report": str(path),
    }
    panel = None
    if data.boxes is not None:
        shares = shares_of_object(store, data.boxes)
        regions = mining.by_score()
        panel = report.mining_panel(scores, shares, regions)
        found["auroc"] = None if math.isnan(panel.auroc) else panel.auroc
        found["object_share"] = {
            region.name.lower(): float(shares[regions == region].mean())
            for region in Region
            if (regions == region).any()
        }
    images = open_images(data.train, targets=store.settings.targets)
    page = report.Report(
        title="Stored soft labels: hard, FKD and FerKD on the same steps",
        verdict=verdict(compared.result),
        facts=_facts(sizes, store, teacher, len(images), seconds),
        budgets=budget_panels(compared),
        confidence=inspection.confidence(store, mining, sizes.regions),
        mining=panel,
        gallery=inspection.gallery(store, images, mining, objects=data.boxes),
        choices=_choices(sizes, mining),
        commands=_commands(command, path.parent, data),
    )
    report.write_report(page, path)
    return found


def _facts(
    sizes: Sizes, store: LabelStore, teacher: RunResult, images: int, seconds: float
) -> tuple[report.Fact, ...]:
    per_crop = store.bytes_on_disk / (len(store) * store.crops_per_image)
    return (
        report.Fact("Training images", f"{images:,}"),
        report.Fact("Classes", str(store.num_classes)),
        report.Fact("Crops per image", str(store.crops_per_image)),
        report.Fact("Teacher", f"{sizes.teacher}, top-1 {teacher.top1:.1%}"),
        report.Fact("Student", sizes.student),
        report.Fact("Label store", f"{per_crop:.1f} bytes per crop"),
        report.Fact("Time in all", f"{seconds:.0f} s"),
        report.Fact("ferkd", __version__),
    )


def _choices(sizes: Sizes, mining: Mining) -> tuple[report.Choice, ...]:
    low, middle, top = mining.thresholds
    source = mining.evidence.reason if mining.evidence else "fixed beforehand"
    mixing = "off" if sizes.mix.kind == "none" else f"{sizes.mix.kind}, {sizes.mix.operator}"
    return (
        report.Choice("thresholds", f"{low:.3f} / {middle:.3f} / {top:.3f}", source),
        report.Choice(
            "epsilon",
            str(sizes.regions.epsilon),
            "mass a softened hard label leaves to the other classes, where crops are hard",
        ),
        report.Choice(
            "SelfMix",
            mixing,
            "a student that still underfits gains nothing from mixing (docs/lab-log.md)"
            if sizes.mix.kind == "none"
            else "set beforehand",
        ),
        report.Choice(
            "crops per decode",
            f"hard 1, FKD and FerKD {sizes.crops_per_image}",
            "small batches lose more by repeating an image than they save in decodes "
            "(docs/evidence.md); all take the same number of steps on the same batch size",
        ),
        report.Choice(
            "optimiser",
            f"AdamW, learning rate {sizes.student_lr:g}, batch {sizes.batch_size}",
            "the same for the three methods",
        ),
    )


def _commands(demo: str, out: Path, data: Data) -> tuple[str, ...]:
    """The whole again, and two of its steps; they run in the folder that the demo was run in."""
    page, run = out / "labels.html", out / "runs" / BUDGET / "ferkd-0"
    steps = (
        ["inspect", out / "labels", "--images", data.train, "--html", page],
        ["train", run / "recipe.yaml", "--out", out / "runs" / "ferkd-0-again"],
    )
    return (demo, *(shlex.join(["ferkd", *map(str, words)]) for words in steps))
