"""The command that shows what a label store holds."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from ferkd.cli.console import say, show, table
from ferkd.cli.options import Calibration, Json, Overwrite, Score, Store, Thresholds
from ferkd.system.errors import InputError


def register(app: typer.Typer) -> None:
    """Add ``ferkd inspect``."""
    app.command()(inspect)


def inspect(
    store: Store,
    images: Annotated[str | None, typer.Option(help="Its images, to look at.")] = None,
    html: Annotated[
        Path | None, typer.Option(help="Write a page: move thresholds, see the crops.")
    ] = None,
    serve: Annotated[
        bool, typer.Option("--serve", help="Show that page of all images, on this machine only.")
    ] = False,
    suspicious: Annotated[
        Path | None, typer.Option(help="Write the labels that the teacher denies, as CSV.")
    ] = None,
    thresholds: Thresholds = "reliable",  # as in training
    calibration: Annotated[Calibration, typer.Option(help="Of doubtful labels.")] = "steps",
    score: Annotated[Score, typer.Option(help="The teacher's confidence.")] = "max_prob",
    truth: Annotated[
        Path | None, typer.Option(help="truth.json of the scenes that were labelled.")
    ] = None,
    pictures: Annotated[int, typer.Option(min=0, help="Images in the page of --html.")] = 120,
    host: Annotated[str, typer.Option(help="Loopback address of --serve.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port of --serve; 0 takes a free one.")] = 8765,
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """Show what a label store holds: sizes, regions, reliability, suspicious labels."""
    from ferkd.study import inspection

    regions = _regions(thresholds, calibration, score)
    for out in (html, suspicious):
        if out is not None and out.exists() and not overwrite:
            raise InputError(f"{out} exists; give another file or --overwrite")
    if serve:
        if html is not None or suspicious is not None or as_json:
            raise InputError("--serve writes nothing; run it without --html, --suspicious, --json")
        _serve(store, images, regions, host, port)
        return
    result: dict[str, Any] = {**inspection.inspect(store, regions, truth, images)}
    if html is not None:
        inspection.write_page(store, html, images=images, regions=regions, pictures=pictures)
        result["html"] = str(html)
    if suspicious is not None:
        result["suspicious_csv"] = str(suspicious)
        inspection.write_suspicious(store, suspicious)
    right, weight = result["teacher_right"], result["mean_weight"]
    rows: list[tuple[str, Any]] = [
        ("images", result["images"]),
        ("left out", len(result["skipped"])),
        *(
            [("without labels", f"{added} images of {images}, added since")]
            if (added := result.get("images_without_labels"))
            else []
        ),
        *([("note", result["note"])] if "note" in result else []),
        ("crops per image", result["crops_per_image"]),
        *([("  label maps of", f"{result['map_grid']} cells")] if "map_grid" in result else []),
        ("classes", result["classes"]),
        ("teacher", result["teacher"].get("spec")),
        ("teacher right", "no ground truth" if right is None else f"{right:.1%} of the crops"),
        *_temperature(result["label_temperature"]),
        ("bytes per crop", f"{result['bytes_per_crop']:.2f}"),
        ("calibration", result["calibration"]),
        *([] if weight is None else [("  mean weight of soft labels", f"{weight:.3f}")]),
        ("thresholds", " / ".join(f"{t:.3f}" for t in result["thresholds"])),
        ("  from", result["threshold_source"]),
        *((name, f"{share:.1%}") for name, share in result["regions"].items()),
        *_planted(result.get("truth")),
        ("labels the teacher denies", result["denied"]),
        *(
            (
                "  suspicious",
                f"{s['id']}: the teacher says {s['teacher_says']}, "
                f"{s['mean_probability']:.2f} against {s['probability_of_label']:.2f}",
            )
            for s in result["suspicious"]
        ),
        *(("written to", result[key]) for key in ("html", "suspicious_csv") if key in result),
    ]
    show(result, table(rows), as_json)


def _serve(store: str, images: str | None, regions: Any, host: str, port: int) -> None:
    """Serve the page until Ctrl-C."""
    from ferkd.images import open_images
    from ferkd.store import LabelStore
    from ferkd.study.inspector.page import prepare
    from ferkd.study.inspector.server import Server, loopback

    loopback(host)  # before minutes of counting
    opened = LabelStore.open(store)
    source = None if images is None else open_images(images, targets=opened.settings.targets)
    say(f"looking at {len(opened) * opened.crops_per_image:,} crops")
    with Server(prepare(opened, source, regions, images or ""), host, port) as server:
        say(f"{server.url}  for browsers on this machine; Ctrl-C ends it")
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            say("ended; nothing was written")


def _temperature(fitted: dict[str, Any] | None) -> list[tuple[str, str]]:
    """The temperature at which the labels are likeliest for the truth, as a table row."""
    if fitted is None:
        return []
    words = f"{fitted['value']:.2f} [{fitted['low']:.2f}, {fitted['high']:.2f}]"
    gain = f"NLL of the truth {fitted['nll']:.3f}, at 1 {fitted['nll_at_1']:.3f}"
    return [("likeliest temperature", f"{words}, {gain}")]


def _planted(found: dict[str, Any] | None) -> list[tuple[str, str]]:
    """How well the scores find what was planted, as table rows."""
    titles = {"holds_object": "crop holds the object", "wrong_label": "image's label is wrong"}
    rows = []
    for key, title in titles.items() if found else ():
        figures = dict(found[key])  # type: ignore[index]
        rows.append((title, f"{figures.pop('share'):.1%} of the crops"))
        rows += [
            (f"  AUROC of {score}", "only one kind of crop" if area is None else f"{area:.3f}")
            for score, area in figures.items()
        ]
    return rows


def _regions(thresholds: str, calibration: Calibration, score: Score) -> Any:
    from ferkd.calibration.regions import Regions, check_thresholds
    from ferkd.calibration.reliability import RULES

    settings = {"score": score, "calibration": calibration}
    if thresholds in RULES:
        return Regions.model_validate({**settings, "thresholds": thresholds})
    try:
        low, middle, top = (float(t) for t in thresholds.split(","))
    except ValueError:
        raise InputError(
            f"--thresholds {thresholds!r}: give three numbers L,M,T, or {', '.join(RULES)}"
        ) from None
    given = check_thresholds(low, middle, top)
    return Regions.model_validate({**settings, "thresholds": given})
