"""Commands on label stores: verify, merge, subset, publish, fetch, import, export-labels."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from ferkd.cli.console import continuing, meter, say, show, table
from ferkd.cli.help import Commands
from ferkd.cli.options import (
    Device,
    FkdKind,
    FkdType,
    Json,
    MergeRule,
    Overwrite,
    ParquetClasses,
    Resume,
    Store,
    StoredValues,
    Values,
    Workers,
)
from ferkd.system.errors import InputError

Out = Annotated[Path, typer.Option(help="A new folder for the labels.")]
# Of what a store holds already; None keeps it.
StoreTopK = Annotated[int | None, typer.Option(help="Classes kept per crop.")]
StoreValues = Annotated[StoredValues | None, typer.Option(help="Number type.")]

Signals = Annotated[list[str] | None, typer.Option(help="Of this signal alone; may be repeated.")]

signals_app = typer.Typer(
    help="The signals of a store: ls, drop, copy.", no_args_is_help=True, cls=Commands
)
import_app = typer.Typer(
    help="Bring labels of other systems over.", no_args_is_help=True, cls=Commands
)


def register(app: typer.Typer) -> None:
    """Add the commands of this file to the ``ferkd`` command."""
    for command in (verify, merge, subset, publish, fetch):
        app.command()(command)
    app.command("export-labels")(export_labels)
    app.add_typer(import_app, name="import")
    app.add_typer(signals_app, name="signals")


def verify(
    store: Store,
    images: Annotated[str | None, typer.Option(help="Compare with these images.")] = None,
    teacher: Annotated[str | None, typer.Option(help="Replay a sample (needs --images).")] = None,
    sample: Annotated[int, typer.Option(help="Crops to replay.")] = 64,
    seed: Annotated[int, typer.Option(help="Of the sample.")] = 0,
    device: Device = "auto",
    as_json: Json = False,
) -> None:
    """Check a store: checksums, structure, images, the teacher's answers (exit 1: bad)."""
    from ferkd.labelling.verify import verify_store

    found = verify_store(
        store, images=images, teacher=teacher, sample=sample, seed=seed, device=device
    )
    problems = [str(problem) for problem in found.problems]
    result = {"ok": found.ok, "problems": problems, **found.figures}
    lines = ["ok" if found.ok else problems[0], table(list(found.figures.items())), *problems[1:]]
    show(result, "\n".join(lines), as_json)
    if not found.ok:
        raise typer.Exit(1)


def merge(
    stores: Annotated[list[str], typer.Argument(help="Stores that label the same crops.")],
    out: Annotated[Path | None, typer.Option(help="A new folder for the labels.")] = None,
    into: Annotated[
        Path | None, typer.Option(help="Add the result to this store, as a signal.")
    ] = None,
    signal: Annotated[str | None, typer.Option(help="The result's name [labels].")] = None,
    rule: Annotated[
        MergeRule, typer.Option(help="Mean (MEAL V2), or of logits (CV-DD).")
    ] = "probs",
    weights: Annotated[str | None, typer.Option(help="One number a store, e.g. 1,3.")] = None,
    accuracies: Annotated[
        str | None, typer.Option(help="Percent, one a store: weights by softmax(accuracy / 10).")
    ] = None,
    top_k: StoreTopK = None,
    values: StoreValues = None,
    resume: Resume = False,
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """Combine the labels of several teachers into one store."""
    from ferkd.store.merge import accuracy_weights
    from ferkd.store.merge import merge as run

    if (out is None) == (into is None):
        raise InputError("give one of --out, for a new store, and --into, for a signal more")
    if weights and accuracies:
        raise InputError("--weights and --accuracies exclude each other; give one")
    given: Any = _numbers("--weights", weights) if weights else None
    if accuracies:
        given = accuracy_weights(_numbers("--accuracies", accuracies))
    with continuing(), meter("merging") as advance:
        merged = run(
            stores,
            out or into,  # type: ignore[arg-type]
            signal=signal,
            into=into is not None,
            rule=rule,
            weights=given,
            top_k=top_k,
            values=values,
            resume=resume,
            overwrite=overwrite,
            progress=advance,
        )
    _show_store(merged, as_json)


def subset(
    store: Store,
    out: Out,
    crops: Annotated[int | None, typer.Option(help="Keep the first N crops of an image.")] = None,
    top_k: StoreTopK = None,
    values: StoreValues = None,
    resume: Resume = False,
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """Write a smaller store without labelling again."""
    from ferkd.store.derive import subset as run

    with continuing(), meter("writing") as advance:
        made = run(
            store,
            out,
            crops=crops,
            top_k=top_k,
            values=values,
            resume=resume,
            overwrite=overwrite,
            progress=advance,
        )
    _show_store(made, as_json)


def publish(
    store: Annotated[Path, typer.Argument(help="A finished local store.")],
    url: Annotated[str, typer.Argument(help="Where to, e.g. s3://bucket/labels.")],
    signal: Signals = None,
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """Upload a store, its manifest last, so that no reader sees half of it."""
    from ferkd.store.publish import publish as run

    with continuing(resume=False), meter("uploading") as advance:
        where = run(store, url, signals=signal, overwrite=overwrite, progress=advance)
    show({"store": where}, f"published to {where}", as_json)


def fetch(
    url: Annotated[str, typer.Argument(help="A published store.")],
    out: Out,
    signal: Signals = None,
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """Download a store; continues an interrupted download."""
    from ferkd.store.publish import fetch as run

    with continuing(resume=False), meter("downloading") as advance:
        fetched = run(url, out, signals=signal, overwrite=overwrite, progress=advance)
    _show_store(fetched, as_json)


def export_labels(
    store: Store,
    parquet: Annotated[Path | None, typer.Option(help="One row a crop, into this file.")] = None,
    fkd: Annotated[
        Path | None, typer.Option(help="The FKD authors' files, into this folder.")
    ] = None,
    classes: Annotated[ParquetClasses, typer.Option(help="Of Parquet.")] = "names",
    top_k: StoreTopK = None,
    dtype: Annotated[FkdType, typer.Option(help="Of FKD files.")] = "fp32",
    split: Annotated[str, typer.Option(help="FKD: the folder above the classes.")] = "train",
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """Write labels for other tools: Parquet, or the FKD authors' layout."""
    from ferkd.store.fkd.export import export_fkd
    from ferkd.store.parquet import export_parquet
    from ferkd.store.reader import LabelStore

    if (parquet is None) == (fkd is None):
        raise InputError("give one of --parquet FILE and --fkd DIR")
    opened = LabelStore.open(store)
    if parquet is not None:
        rows = export_parquet(opened, parquet, classes=classes, overwrite=overwrite)
        show({"rows": rows, "file": str(parquet)}, f"{rows} rows in {parquet}", as_json)
    elif fkd is not None:
        with meter("exporting") as advance:
            files = export_fkd(
                opened,
                fkd,
                k=top_k,
                dtype=dtype,
                split=split,
                progress=advance,
            )
        show({"files": files, "folder": str(fkd)}, f"{files} files in {fkd}", as_json)


@signals_app.command("ls")
def signals_ls(store: Store, as_json: Json = False) -> None:
    """List a store's signals: kind, form, teacher, bytes."""
    from ferkd.store.reader import LabelStore

    opened = LabelStore.open(store)
    result: dict[str, Any] = {}
    for name, signal in opened.manifest.signals.items():
        form = signal.settings.record or signal.settings.vectors
        result[name] = {
            "kind": signal.settings.kind,
            "form": form.model_dump() if form else None,
            "teacher": signal.settings.teacher.get("spec"),
            "bytes": sum(file.size for file in signal.every_file),
            "tables": {name: [t.rows, t.dim] for name, t in signal.tables.items()},
        }
    rows = [(n, f"{s['kind']}, {s['teacher']}, {s['bytes']} bytes") for n, s in result.items()]
    show(result, table(rows), as_json)


@signals_app.command("drop")
def signals_drop(
    store: Annotated[Path, typer.Argument(help="A finished local store.")],
    name: Annotated[str, typer.Argument(help="The signal to remove.")],
    as_json: Json = False,
) -> None:
    """Remove a signal; the rest of the store is not touched."""
    from ferkd.store.adding import drop

    drop(store, name)
    show({"store": str(store), "dropped": name}, f"{name} is gone from {store}", as_json)


@signals_app.command("copy")
def signals_copy(
    source: Annotated[str, typer.Argument(help="A store, STORE#NAME where it has several.")],
    into: Annotated[Path, typer.Option(help="A store of the same images and crops.")],
    signal: Annotated[str | None, typer.Option(help="The signal's new name.")] = None,
    as_json: Json = False,
) -> None:
    """Copy a signal to another store of the same images and crops, byte by byte."""
    from ferkd.store.adding import copy_signal
    from ferkd.store.reader import LabelStore

    opened = LabelStore.open(source)
    names = opened.chosen.split(",") if opened.chosen else list(opened.manifest.signals)
    if len(names) != 1:
        raise InputError(f"{source} has signals {', '.join(names)}; choose one by #NAME")
    _show_store(copy_signal(opened, names[0], into, signal or ""), as_json)


@signals_app.command("table")
def signals_table(
    store: Annotated[str, typer.Argument(help="A finished local store, STORE#NAME of several.")],
    name: Annotated[str, typer.Argument(help="The table's name.")],
    values: Annotated[
        Path | None, typer.Option("--from", help="A .npy file of numbers [rows, dim].")
    ] = None,
    means: Annotated[
        bool, typer.Option("--means", help="The mean of each class's stored features.")
    ] = False,
    gone: Annotated[bool, typer.Option("--drop", help="Remove the table.")] = False,
    as_json: Json = False,
) -> None:
    """Put a side table beside a signal, such as class vectors, or remove it."""
    from ferkd.store.reader import LabelStore
    from ferkd.store.tables import add_table, class_means, drop_table, read_table

    if (values is not None) + means + gone != 1:
        raise InputError("give one of --from FILE, --means and --drop")
    opened = LabelStore.open(store)
    names = opened.chosen.split(",") if opened.chosen else list(opened.manifest.signals)
    if len(names) != 1:
        raise InputError(f"{store} has signals {', '.join(names)}; choose one by #NAME")
    (signal,) = names
    if gone:
        drop_table(opened.folder, signal, name)
        result: dict[str, Any] = {"store": str(opened.path), "signal": signal, "dropped": name}
        show(result, f"table {name} of {signal} is gone", as_json)
        return
    numbers = class_means(opened) if values is None else read_table(values)
    add_table(opened.folder, signal, name, numbers)
    result = {"store": str(opened.path), "signal": signal, "table": name, "shape": numbers.shape}
    rows, dim = numbers.shape
    show(result, f"table {name} of {signal}: {rows} rows of {dim} numbers", as_json)


@import_app.command("fkd")
def import_fkd(
    directory: Annotated[Path, typer.Argument(help="The FKD authors' label files.")],
    images: Annotated[str, typer.Option(help="The images that they label.")],
    out: Out,
    num_classes: Annotated[int | None, typer.Option(help="Where the images do not tell.")] = None,
    kind: Annotated[FkdKind, typer.Option(help="What the files hold.")] = "auto",
    crops: Annotated[int | None, typer.Option(help="Keep the first N crops.")] = None,
    values: Values = "auto",
    no_targets: Annotated[bool, typer.Option("--no-targets", help="No ground truth.")] = False,
    resized: Annotated[
        bool, typer.Option("--resized", help="The images were resized since: round the boxes.")
    ] = False,
    workers: Workers = 2,
    max_skipped: Annotated[float, typer.Option(help="Largest share of images left out.")] = 0.01,
    resume: Resume = False,
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """Import the FKD authors' label files; nothing pickled in them is executed."""
    from ferkd.store.fkd.importing import import_fkd as run

    with continuing(), meter("importing") as advance:
        report = run(
            directory,
            images,
            out,
            num_classes=num_classes,
            kind=kind,
            crops=crops,
            values=values,
            targets=not no_targets,
            resized=resized,
            workers=workers,
            max_skipped=max_skipped,
            resume=resume,
            overwrite=overwrite,
            progress=advance,
        )
    for line in report.warnings:
        say(line)
    result = {
        "images": len(report.store),
        "matched": report.matched,
        "kind": report.kind,
        "crops_per_image": report.store.crops_per_image,
        "unmatched_labels": list(report.unmatched_labels),
        "unmatched_images": list(report.unmatched_images),
        "ambiguous": list(report.ambiguous),
        "skipped": [s.model_dump() for s in report.store.manifest.skipped],
        "uncertain_boxes": report.uncertain_boxes,
        "teacher_right": report.teacher_right,
        "store": str(report.store.path),
    }
    text = f"{len(report.store)} images x {report.store.crops_per_image} crops imported into {out}"
    show(result, text, as_json)


def _numbers(option: str, text: str) -> list[float]:
    try:
        return [float(part) for part in text.split(",")]
    except ValueError:
        raise InputError(f"{option} {text!r}: give numbers separated by commas") from None


def _show_store(store: Any, as_json: bool) -> None:
    per_crop = store.bytes_on_disk / max(1, len(store) * store.crops_per_image)
    result = {
        "images": len(store),
        "crops_per_image": store.crops_per_image,
        "bytes_per_crop": per_crop,
        "store": str(store.path),
    }
    text = (
        f"{len(store)} images x {store.crops_per_image} crops in {store.path} "
        f"({per_crop:.1f} bytes per crop)"
    )
    show(result, text, as_json)
