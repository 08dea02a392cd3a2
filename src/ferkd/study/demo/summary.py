"""What a demo found: the table, region mining against the true boxes, and the HTML report."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ferkd import __version__
from ferkd.calibration.regions import Mining, Region, mine, scores_of
from ferkd.images import open_images
from ferkd.store import LabelStore
from ferkd.study import inspection, report
from ferkd.study.demo.data import Data
from ferkd.study.scenes.drawn import object_share
from ferkd.study.statistics import auroc, sample_deviation

if TYPE_CHECKING:
    from ferkd.study.demo.pipeline import Plan

_AVERAGED = ("top1", "nll", "ece", "brier", "seconds", "crops_per_second")


def methods_of(results: Sequence[dict[str, Any]], methods: Sequence[str]) -> dict[str, Any]:
    """Per method the mean over seeds of each figure, and the deviation of top-1."""
    summary: dict[str, Any] = {}
    for method in methods:
        runs = [r for r in results if r["method"] == method]
        means = {key: float(np.mean([r[key] for r in runs])) for key in _AVERAGED}
        top1 = [r["top1"] for r in runs]
        summary[method] = {
            **means,
            "top1_mean": means["top1"],
            "top1_std": sample_deviation(top1),
            "steps": runs[0]["steps"],
            "seeds": len(runs),
        }
    return summary


def text_table(result: dict[str, Any]) -> str:
    """The comparison for a terminal."""
    lines = [f"{'method':<8} {'top-1':>14} {'NLL':>7} {'ECE':>7} {'seconds':>8} {'steps':>6}"]
    for name, row in result["methods"].items():
        deviation = row["top1_std"]
        spread = "" if deviation is None else f" ± {100 * deviation:.1f}"
        top1 = f"{row['top1']:.1%}{spread}"
        lines.append(
            f"{name:<8} {top1:>14} {row['nll']:>7.3f} {row['ece']:>7.3f} "
            f"{row['seconds']:>8.1f} {row['steps']:>6}"
        )
    lines.append(f"teacher  top-1 {result['teacher']['top1']:.1%}; {result['seeds']} seed(s)")
    shares = ", ".join(f"{name} {share:.1%}" for name, share in result["regions"].items())
    lines.append("regions  " + shares)
    if result.get("auroc") is not None:
        lines.append(
            f"mining   AUROC {result['auroc']:.3f} of the score for 'the crop holds at least half "
            "of the object'"
        )
    lines.append(f"report   {result['report']}")
    return "\n".join(lines)


def shares_of_object(store: LabelStore, boxes: dict[str, Any]) -> np.ndarray:
    """How much of the true object each stored crop holds, [N, crops]."""
    rows, crops = np.arange(len(store))[:, None], np.arange(store.crops_per_image)[None]
    objects = np.array([boxes[image_id] for image_id in store.ids])
    return object_share(store.boxes(rows, crops), objects[:, None, :])


def write_report(
    path: Path,
    *,
    plan: Plan,
    data: Data,
    store: LabelStore,
    teacher: dict[str, Any],
    results: list[dict[str, Any]],
    runs: dict[str, list[Path]],
    seconds: float,
    command: str,
) -> dict[str, Any]:
    """Write the page; returns what it says of the regions: regions, thresholds, auroc, report."""
    mining = mine(store, plan.regions)
    scores, _ = scores_of(store, plan.regions.score)
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
        area = auroc(scores.ravel(), shares.ravel() >= 0.5)
        found["auroc"] = None if np.isnan(area) else area
        found["object_share"] = {
            region.name.lower(): float(shares[regions == region].mean())
            for region in Region
            if (regions == region).any()
        }
    methods = methods_of(results, tuple(runs))
    images = open_images(data.train, targets=store.settings.targets)
    page = report.Report(
        title="Stored soft labels: hard, FKD and FerKD on the same steps",
        verdict=_verdict(methods),
        facts=_facts(plan, store, teacher, len(images), seconds),
        comparison=report.comparison_from_results(results),
        curves=report.curves_from_runs(
            [run for listed in runs.values() for run in listed],
            methods={run: method for method, listed in runs.items() for run in listed},
        ),
        confidence=inspection.confidence(store, mining, plan.regions),
        mining=panel,
        gallery=inspection.gallery(store, images, mining, objects=data.boxes),
        choices=_choices(plan, mining),
        commands=_commands(command, path.parent, data),
    )
    report.write_report(page, path)
    return found


def _verdict(methods: dict[str, Any]) -> str:
    ranked = sorted(methods.items(), key=lambda item: -item[1]["top1"])
    figures = ", ".join(f"{name} {row['top1']:.1%}" for name, row in ranked)
    steps, seeds = ranked[0][1]["steps"], ranked[0][1]["seeds"]
    caution = (
        "one seed, so differences of a few points mean little" if seeds == 1 else f"{seeds} seeds"
    )
    return f"Top-1 after the same {steps} optimiser steps: {figures} ({caution})."


def _facts(
    plan: Plan, store: LabelStore, teacher: dict[str, Any], images: int, seconds: float
) -> tuple[report.Fact, ...]:
    per_crop = store.bytes_on_disk / (len(store) * store.crops_per_image)
    return (
        report.Fact("Training images", f"{images:,}"),
        report.Fact("Classes", str(store.num_classes)),
        report.Fact("Crops per image", str(store.crops_per_image)),
        report.Fact("Teacher", f"{plan.teacher}, top-1 {teacher['top1']:.1%}"),
        report.Fact("Student", plan.student),
        report.Fact("Label store", f"{per_crop:.1f} bytes per crop"),
        report.Fact("Time in all", f"{seconds:.0f} s"),
        report.Fact("ferkd", __version__),
    )


def _choices(plan: Plan, mining: Mining) -> tuple[report.Choice, ...]:
    low, middle, top = mining.thresholds
    source = mining.evidence.reason if mining.evidence else "fixed in the plan"
    mixing = "off" if plan.mix.kind == "none" else f"{plan.mix.kind}, {plan.mix.operator}"
    return (
        report.Choice("thresholds", f"{low:.3f} / {middle:.3f} / {top:.3f}", source),
        report.Choice(
            "epsilon",
            str(plan.regions.epsilon),
            "mass a softened hard label leaves to the other classes, where crops are hard",
        ),
        report.Choice(
            "SelfMix",
            mixing,
            "a student that still underfits gains nothing from mixing (docs/lab-log.md)"
            if plan.mix.kind == "none"
            else "set in the plan",
        ),
        report.Choice(
            "crops per decode",
            f"hard 1, FKD and FerKD {plan.crops_per_image}",
            "small batches lose more by repeating an image than they save in decodes "
            "(docs/evidence.md); all take the same number of steps on the same batch size",
        ),
        report.Choice(
            "optimiser",
            f"AdamW, learning rate {plan.student_lr:g}, batch {plan.batch_size}",
            "the same for the three methods",
        ),
    )


def _commands(demo: str, out: Path, data: Data) -> tuple[str, ...]:
    """The whole again, and two of its steps; they run in the folder that the demo was run in."""
    page, run = out / "labels.html", out / "runs" / "ferkd-0"
    steps = (
        ["inspect", out / "labels", "--images", data.train, "--html", page],
        ["train", run / "recipe.yaml", "--out", out / "runs" / "ferkd-0-again"],
    )
    return (demo, *(shlex.join(["ferkd", *map(str, words)]) for words in steps))
