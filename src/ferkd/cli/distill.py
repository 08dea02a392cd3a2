"""The commands from a folder to a small model: distill, and finetune, its second phase."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from ferkd.cli.console import continuing, meter, say, show, table
from ferkd.cli.options import Device, Json, Overwrite, Precision, Resume, Workers


def register(app: typer.Typer) -> None:
    """Add ``ferkd distill`` and ``ferkd finetune``."""
    app.command()(distill)
    app.command()(finetune)


def distill(
    images: Annotated[Path, typer.Argument(help="train/ and val/, or class folders.")],
    out: Annotated[Path, typer.Option(help="A new folder for everything.")],
    teacher: Annotated[
        str, typer.Option(help="Pretrained timm/NAME, torchvision/NAME, a run, any spec.")
    ] = "timm/convnextv2_tiny",
    student: Annotated[
        str, typer.Option(help="timm/NAME; ?pretrained=false trains from scratch.")
    ] = "timm/mobilenetv3_small_100",
    val: Annotated[Path | None, typer.Option(help="Validation images; val/ if unset.")] = None,
    image_size: Annotated[int | None, typer.Option(help="The student's, in pixels.")] = None,
    teacher_image_size: Annotated[int | None, typer.Option(help="The teacher's.")] = None,
    budget: Annotated[
        str | None, typer.Option(help="A time (30m, 2h) or the student's epochs (40).")
    ] = None,
    unlabelled: Annotated[
        Path | None, typer.Option(help="More images, without classes; the teacher labels them.")
    ] = None,
    baseline: Annotated[
        bool, typer.Option("--baseline", help="Also train the student by hard labels.")
    ] = False,
    no_fine_tune: Annotated[
        bool, typer.Option("--no-fine-tune", help="Take the teacher as it is, or stop.")
    ] = False,
    seeds: Annotated[int, typer.Option(help="Students trained, each by another seed.")] = 1,
    held_out: Annotated[float, typer.Option(help="Share held out where there is no val/.")] = 0.2,
    workers: Workers = 2,
    device: Device = "auto",
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print the plan: phases, minutes, bytes, reasons.")
    ] = False,
    resume: Resume = False,
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """From a folder of photographs to a small model: teacher, labels, student, report."""
    from ferkd.images import refuse_other_sources
    from ferkd.product import distill as product
    from ferkd.product.commands import next_commands
    from ferkd.product.settings import Settings

    refuse_other_sources(images, "distill")
    settings = Settings(
        images=str(images.expanduser().absolute()),
        teacher=teacher,
        student=student,
        val=None if val is None else str(val.expanduser().absolute()),
        image_size=image_size,
        teacher_image_size=teacher_image_size,
        budget=budget,
        unlabelled=None if unlabelled is None else str(unlabelled.expanduser().absolute()),
        baseline=baseline,
        fine_tune=not no_fine_tune,
        seeds=seeds,
        held_out=held_out,
        workers=workers,
        device=device,
    )
    if dry_run:
        plan = product.dry_run(settings, out)
        text = [*plan["look"], *plan["lines"], *(f"$ {c}" for c in plan["commands"].values())]
        show(plan, "\n".join(text), as_json)
        return
    with continuing(), meter("distilling") as advance:
        result = product.distill(
            settings, out, resume=resume, overwrite=overwrite, progress=advance, say=say
        )
    show(result, _told(result, next_commands(out)), as_json)


def _told(result: Mapping[str, Any], following: list[str]) -> str:
    """The result for people: a line each, then what comes next."""
    from ferkd.product.result import seeds_of, told

    teacher, student, baseline = result["teacher"], result["student"], result["baseline"]
    probe = teacher["probe_top1"]
    rows = [
        ("teacher", f"{teacher['top1']:.1%}" + (f" (probe {probe:.1%})" if probe else "")),
        ("student", f"{student['top1']:.1%}, NLL {student['nll']:.3f}, ECE {student['ece']:.1%}"),
    ]
    if baseline:
        rows.append(("baseline", f"{baseline['top1']:.1%}, NLL {baseline['nll']:.3f}"))
    if result.get("difference"):
        words = told(result["difference"], seeds_of(student))
        rows.append(("difference", f"{words} (student less baseline)"))
    rows += [
        ("size", f"{student['parameters'] / 1e6:.2f} M parameters"),
        ("speed", f"{student['ms_per_image']:.1f} ms an image on this machine's CPU"),
        ("model", result["model"]),
        ("report", result["report"]),
    ]
    return "\n".join([table(rows), "next:", *(f"  {command}" for command in following)])


def finetune(
    images: Annotated[str, typer.Argument(help="A folder of class folders.")],
    val: Annotated[str, typer.Option(help="Validation images of the same classes.")],
    teacher: Annotated[str, typer.Option(help="Pretrained timm/NAME, torchvision/NAME, or a run.")],
    out: Annotated[Path, typer.Option(help="A new folder for the run.")],
    image_size: Annotated[int, typer.Option(help="Pixels.")] = 224,
    epochs: Annotated[float, typer.Option(help="At most; 0 keeps the linear probe.")] = 6.0,
    lr: Annotated[float, typer.Option(help="The head's; lower layers learn slower.")] = 3e-4,
    layer_decay: Annotated[float, typer.Option(help="Of the rate, by layer.")] = 0.9,
    batch_size: int = 32,
    workers: Workers = 2,
    seed: int = 0,
    device: Device = "auto",
    precision: Precision = "auto",
    resume: Resume = False,
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """Fine-tune a pretrained network with care: never below its own linear probe."""
    from ferkd.product.settings import network_of
    from ferkd.training.finetune import FineTuning, fine_tune

    settings = FineTuning(
        network=network_of(teacher),
        images=images,
        val=val,
        image_size=image_size,
        epochs=epochs,
        lr=lr,
        layer_decay=layer_decay,
        batch_size=batch_size,
        workers=workers,
        seed=seed,
        device=device,
        precision=precision,
    )
    with continuing(), meter("fine-tuning") as advance:
        result = fine_tune(settings, out, resume=resume, overwrite=overwrite, progress=advance)
    rows = [(k, f"{v:.4f}" if isinstance(v, float) else v) for k, v in result.items()]
    show(result, table(rows), as_json)
