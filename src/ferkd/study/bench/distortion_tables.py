"""The report of `ferkd.study.bench.distortion.bench_distortion` as Markdown tables."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any


def markdown(result: dict[str, Any]) -> str:
    """The report of `bench_distortion` as Markdown tables, one column a population."""
    populations: dict[str, dict[str, Any]] = result["details"]["populations"]
    heads = " | ".join(populations)
    described = _table(
        f"labels | {heads}",
        (
            (key.replace("_", " "), *(f"{p['labels'][key]:.5g}" for p in populations.values()))
            for key in next(iter(populations.values()))["labels"]
        ),
    )
    largest = max(populations.values(), key=lambda p: len(p["forms"]))["forms"]
    names = dict.fromkeys(
        [r["form"] for r in largest] + [r["form"] for p in populations.values() for r in p["forms"]]
    )
    lost = [{row["form"]: row for row in p["forms"]} for p in populations.values()]
    rates = _table(
        f"form | record, bytes | all told, bytes | {heads}",
        (
            (name, *_bytes(name, lost), *(_loss(found.get(name)) for found in lost))
            for name in names
        ),
    )
    tempered = [
        {(row["form"], row["temperature"]): row for row in p["temperatures"]}
        for p in populations.values()
    ]
    kinds = sorted({kind for found in tempered for kind in found})
    temperatures = _table(
        f"form | T | {heads}",
        (
            (name, f"{t:g}", *(_tempered(found.get((name, t))) for found in tempered))
            for name, t in kinds
        ),
    )
    totals = _table(
        "ImageNet-1K labels | crops per image | bytes per crop | total",
        (
            (
                row["system"],
                row["crops_per_image"],
                f"{row['bytes_per_crop']:.1f}",
                f"{row['gigabytes']:.1f} GB",
            )
            for row in result["details"]["sizes"]
        ),
    )
    tails = [{row["form"]: row for row in p.get("tails", ())} for p in populations.values()]
    sampled = _table(
        f"tail | record, bytes | {heads}",
        (
            (
                name,
                next(str(found[name]["record_bytes"]) for found in tails if name in found),
                *(_gradient(found.get(name)) for found in tails),
            )
            for name in dict.fromkeys(name for found in tails for name in found)
        ),
    )
    tables = [described, rates, temperatures, *([sampled] if any(tails) else []), totals]
    return "\n\n".join(tables)


def _gradient(row: dict[str, Any] | None) -> str:
    """The errors of a gradient, by the crops of a batch."""
    if row is None:
        return "–"
    return " / ".join("–" if value is None else f"{value:.4f}" for value in row["error"].values())


def _bytes(name: str, lost: list[dict[str, Any]]) -> tuple[str, str]:
    """Bytes of a form; where they differ, by population."""
    rows = [found[name] for found in lost if name in found]
    record = dict.fromkeys(str(row["record_bytes"]) for row in rows)
    every = dict.fromkeys(f"{row['bytes_per_crop']:.1f}" for row in rows)
    return ", ".join(record), ", ".join(every)


def _loss(row: dict[str, Any] | None) -> str:
    if row is None:
        return "–"
    text = f"{_nats(row['kl_mean'])} / {_nats(row['kl_p999'])}"
    if row["infinite"]:
        text += f"; infinite in {row['infinite']:.2%}"
    if row["argmax_changed"]:
        text += f"; argmax {row['argmax_changed']:.1%}"
    return text


def _tempered(row: dict[str, Any] | None) -> str:
    if row is None:
        return "–"
    errors = f"{row['stored_max']:.1e} / {row['stored_mean']:.1e}"
    every = f"{row['class_max']:.1e} / {row['class_mean']:.1e}"
    return f"{errors}; {every}; {_nats(row['kl_mean'])}"


def _table(heads: str, rows: Iterable[tuple[Any, ...]]) -> str:
    lines = [f"| {heads} |", "|---" * (heads.count("|") + 1) + "|"]
    return "\n".join(lines + [f"| {' | '.join(map(str, row))} |" for row in rows])


def _nats(value: float | None) -> str:
    if value is None:
        return "infinite"
    return "< 1e-6" if abs(value) < 1e-6 else f"{value:.4g}"
