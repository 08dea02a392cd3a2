"""Commands that prepare experiments: what one will cost, and scenes whose truth is known."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from ferkd.cli.console import say, show, table
from ferkd.cli.options import Json, ObjectScale, Overwrite, RecipeName, TopK
from ferkd.system import text as texts
from ferkd.system.errors import InputError


def register(app: typer.Typer) -> None:
    """Add ``ferkd plan`` and ``ferkd scenes``."""
    app.command("plan")(plan_command)
    app.command()(scenes)


def plan_command(
    recipe: RecipeName = "ferkd-resnet50",
    images: Annotated[int, typer.Option(help="Training images.")] = 1_281_167,
    crops: Annotated[int, typer.Option(help="Labelled crops per image.")] = 50,
    classes: Annotated[int, typer.Option(help="Classes.")] = 1000,
    top_k: TopK = 5,
    teacher_rate: Annotated[
        float | None, typer.Option(help="Crops/s of the teacher's forward pass, one device.")
    ] = None,
    student_rate: Annotated[
        float | None, typer.Option(help="Crops/s of the student's training step, one device.")
    ] = None,
    decode_rate: Annotated[
        float | None, typer.Option(help="Images/s that the whole machine decodes.")
    ] = None,
    teacher: Annotated[
        str | None, typer.Option(help="Measure this teacher, where no rate is given.")
    ] = None,
    cut_rate: Annotated[
        float | None, typer.Option(help="Crops/s that the whole machine cuts.")
    ] = None,
    image_bytes: Annotated[
        int | None, typer.Option(help="Bytes of an image's file [those at hand, or 110,000].")
    ] = None,
    devices: Annotated[int, typer.Option(help="Devices of a node that share the work.")] = 1,
    nodes: Annotated[int, typer.Option(help="Machines that share the work.")] = 1,
    price: Annotated[float | None, typer.Option(help="Of one device for an hour.")] = None,
    students: Annotated[int, typer.Option(help="Students trained by the recipe.")] = 1,
    set_: Annotated[
        list[str] | None, typer.Option("--set", help="key=value, e.g. schedule.epochs=100.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Time, storage and cost of labelling and training; rates not given are measured here."""
    from ferkd.study.planning import Scale, plan, worker_memory
    from ferkd.training.recipe import load_recipe

    loaded = load_recipe(recipe, set_ or [])
    if teacher_rate is None and teacher is None:
        raise InputError("a teacher's rate is needed: give --teacher-rate, or --teacher to measure")
    if price is not None and not 0 <= price < math.inf:
        raise InputError(f"--price {price:g}: give a price, a number of at least 0")
    for option, rate in (
        ("--teacher-rate", teacher_rate),
        ("--student-rate", student_rate),
        ("--decode-rate", decode_rate),
        ("--cut-rate", cut_rate),
    ):
        if rate is not None and not rate > 0:
            raise InputError(f"{option} {rate:g}: a rate is a number above 0")
    batch = loaded.data.batch_size
    epochs = loaded.schedule.epochs or (loaded.schedule.steps or 0) * batch / max(1, images)
    rates, cores, file, sources = _rates(
        loaded, classes, teacher, teacher_rate, student_rate, decode_rate, cut_rate
    )
    scale = Scale(
        images=images,
        crops=crops,
        classes=classes,
        epochs=epochs,
        crops_per_image=loaded.data.crops_per_image,
        top_k=top_k or None,
        devices=devices,
        students=students,
        nodes=nodes,
        image_bytes=image_bytes or file.image_bytes,
    )
    found = plan(scale, rates, cores)

    def cost(hours: float) -> float | None:
        return None if price is None else hours * devices * nodes * price

    methods = {
        name: {
            **vars(work),
            "total_hours": found.total_hours(name, students),
            "total_cost": cost(found.total_hours(name, students)),
        }
        for name, work in found.training.items()
    }
    labelling = found.labelling
    result = {
        "recipe": recipe,
        **vars(scale),
        "rates": {
            name: {"per_second": vars(rates)[name], "from": sources[name]}
            for name in sources
            if math.isfinite(vars(rates)[name])
        },
        "bytes_per_crop": found.bytes_per_crop,
        "storage_bytes": found.storage_bytes,
        "labelling": {**vars(labelling), "cost": cost(labelling.hours)},
        "training": methods,
        "break_even_students": found.break_even_students,
        "break_even_epochs": found.break_even_epochs,
        "worker_memory_bytes": worker_memory(
            batch_size=loaded.data.batch_size,
            image_size=loaded.data.image_size,
            pixels=file.pixels,
            image_bytes=scale.image_bytes,
        ),
    }
    show(result, _plan_text(result), as_json)


@dataclass(frozen=True)
class _File:
    """A mean image: the bytes of its file and the pixels it decodes to."""

    image_bytes: int = 110_000
    pixels: int = 375 * 500


def _rates(
    recipe: Any,
    classes: int,
    teacher: str | None,
    teacher_rate: float | None,
    student_rate: float | None,
    decode_rate: float | None,
    cut_rate: float | None,
) -> tuple[Any, Any, _File, dict[str, str]]:
    """The rates, the cores that steps and loading share if any, a mean file, and where each rate
    comes from; what is not given is measured."""
    import torch

    from ferkd.study import rates as measured
    from ferkd.study.planning import Cores, Rates
    from ferkd.system.compute import resolve_device

    sources = dict.fromkeys(("teacher", "student", "decode", "cut"), "given")
    stepped_here = False
    if teacher_rate is None and teacher is not None:
        say(f"measuring the teacher {teacher}")
        teacher_rate = measured.teacher_rate(
            teacher, device=recipe.device, precision=recipe.precision
        )
        sources["teacher"] = f"measured here: {teacher}, forward pass"
        stepped_here = True
    if student_rate is None:
        say(f"measuring the student {recipe.student.name}")
        student_rate = measured.student_rate(recipe, classes)
        size = recipe.data.image_size
        sources["student"] = f"measured here: {recipe.student.name} at {size} pixels, training step"
        stepped_here = True
    file = _File()
    if decode_rate is None:
        say("measuring the decoder")
        found = measured.loading_rates(recipe.data.images, recipe.data.image_size)
        decode_rate, file = found.decode, _File(found.image_bytes, found.pixels)
        sources["decode"] = f"measured here: {found.what}"
        if cut_rate is None:
            cut_rate, sources["cut"] = found.cut, sources["decode"]
    elif cut_rate is None:
        cut_rate, sources["cut"] = math.inf, "not counted"
    cores = None
    if stepped_here and resolve_device(recipe.device).type == "cpu":
        cores = Cores(measured.cores_here(), torch.get_num_threads(), recipe.data.workers)
    return Rates(teacher_rate or 0.0, student_rate, decode_rate, cut_rate), cores, file, sources


def _plan_text(result: dict[str, Any]) -> str:
    units = {"teacher": "crops/s a device", "student": "crops/s a device", "decode": "images/s"}
    units["cut"] = "crops/s"
    rows: list[tuple[str, Any]] = [
        ("images", f"{result['images']:,} x {result['crops']} crops"),
        *(
            (f"{name} rate", f"{rate['per_second']:,.0f} {units[name]} ({rate['from']})")
            for name, rate in result["rates"].items()
        ),
        ("record", f"{result['bytes_per_crop']} bytes per crop"),
        ("label store", f"{texts.size(result['storage_bytes'])}, image ids not counted"),
        ("memory a worker", f"about {result['worker_memory_bytes'] / 1e6:.0f} MB"),
        ("labelling", _spent(result["labelling"], "hours", "cost")),
        *(
            (
                f"{name}, {result['students']} x {result['epochs']:g} epochs",
                _spent(work, "total_hours", "total_cost"),
            )
            for name, work in result["training"].items()
        ),
    ]
    students, epochs = result["break_even_students"], result["break_even_epochs"]
    if students is None:
        rows.append(("stored labels pay", "never: a live teacher does not slow these steps"))
    else:
        many = f"{students} student{'' if students == 1 else 's'}"
        rows.append(("stored labels pay", f"from {many} on, or from {epochs:.1f} epochs of one"))
    note = (
        "hard and live (teacher in the loop): one crop per decode; fkd and ferkd: "
        f"{result['crops_per_image']}, labelling included; evaluation is left out"
    )
    return table(rows) + f"\n{note}"


def _spent(work: dict[str, Any], hours: str, cost: str) -> str:
    text = (
        f"{_hours(work[hours])}, bound by {work['bound']}, {work['files_per_second']:,.0f} files/s "
        f"and {work['bytes_per_second'] / 1e6:,.1f} MB/s a node"
    )
    return text if work[cost] is None else f"{text}, cost {work[cost]:,.2f}"


def _hours(hours: float) -> str:
    return f"{hours:,.2f} h" if hours >= 0.1 else f"{hours * 3600:,.0f} s"


def scenes(
    out: Annotated[Path, typer.Option(help="A new folder: train/, val/ and truth.json.")],
    images: Annotated[int, typer.Option(help="Training images, a multiple of 10.")] = 4000,
    val_images: Annotated[int, typer.Option(help="Validation images, a multiple of 10.")] = 1000,
    label_noise: Annotated[
        float, typer.Option(help="Share of training images under a wrong class, 0 to 0.9.")
    ] = 0.0,
    object_scale: Annotated[
        ObjectScale, typer.Option(help="Of small ones more crops miss the object.")
    ] = "normal",
    seed: Annotated[int, typer.Option(help="Of the pictures and of the wrong labels.")] = 0,
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """Write scenes whose truth is known: wrong labels and background crops planted on purpose."""
    from ferkd.study.scenes.planted import plant

    result = plant(
        out,
        images=images,
        val_images=val_images,
        label_noise=label_noise,
        object_scale=object_scale,
        seed=seed,
        overwrite=overwrite,
    )
    text = (
        f"{images} training images, {result['wrong_labels']} of them under a wrong class, and "
        f"{val_images} validation images in {out}"
    )
    show(result, text, as_json)
