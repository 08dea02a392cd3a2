"""The ``ferkd bench`` commands: what a part costs beside its baselines, in one run."""

from __future__ import annotations

import shlex
import sys
from typing import Annotated, Any, Literal

import typer

from ferkd.cli.console import show, table
from ferkd.cli.help import Commands
from ferkd.cli.options import Calibration, Device, Json, Precision
from ferkd.system.errors import InputError

Images = Annotated[
    str | None, typer.Option(help="A local folder of class folders; else pictures are made.")
]
Repeats = Annotated[int, typer.Option(help="Interleaved turns; medians are reported.")]
ImageSize = Annotated[int, typer.Option(help="Side of the crops in pixels.")]
Teacher = Annotated[str, typer.Option(help="Spec; ?random=0 takes untrained weights.")]
StoredCrops = Annotated[int, typer.Option(help="Stored crops per image.")]

bench_app = typer.Typer(
    help="Benchmarks: ratios measured side by side.", no_args_is_help=True, cls=Commands
)


def register(app: typer.Typer) -> None:
    """Add ``bench`` to the ``ferkd`` command."""
    app.add_typer(bench_app, name="bench")


@bench_app.command("store")
def bench_store(
    images: Annotated[int, typer.Option(help="Images of the store that is read.")] = 1024,
    crops: Annotated[int, typer.Option(help="Crops per image.")] = 500,
    repeats: Repeats = 30,
    ids_of: Annotated[
        str | None, typer.Option(help="Image folder whose ids the store on disk is sized with.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Reading labels: ours against torch.load of FKD-style files; opening a huge store."""
    from ferkd.study.bench.store import bench_store as run

    result = run(images=images, crops=crops, repeats=repeats, ids_of=ids_of)
    _show(result, _figures(result), as_json)


@bench_app.command("distortion")
def bench_distortion(
    store: Annotated[
        list[str] | None,
        typer.Option(help="Stores of all classes in f32 (--top-k 0 --values f32)."),
    ] = None,
    as_json: Json = False,
) -> None:
    """What records lose: bytes per crop against the divergence from the teacher."""
    from ferkd.study.bench.distortion import bench_distortion as run
    from ferkd.study.bench.distortion import markdown

    result = run(store or [])
    _show(result, markdown(result), as_json)


@bench_app.command("loader")
def bench_loader(
    images: Images = None,
    crops_per_image: Annotated[str, typer.Option(help="m, several with commas.")] = "1,2,4,8",
    workers: Annotated[str, typer.Option(help="Worker processes, several with commas.")] = "0,2",
    image_size: ImageSize = 224,
    megapixels: Annotated[
        bool, typer.Option("--megapixels", help="Make and load 12-megapixel JPEGs.")
    ] = False,
    photos: Annotated[
        int | None, typer.Option(help="Pictures made: 256, or 24 with --megapixels.")
    ] = None,
    batch_size: Annotated[
        int | None, typer.Option(help="Crops of a batch: 128, or 16 with --megapixels.")
    ] = None,
    batches: Annotated[int, typer.Option(help="Batches of a worker timed in a turn.")] = 12,
    stored_crops: StoredCrops = 50,
    cache: Annotated[
        bool, typer.Option("--cache/--no-cache", help="Time kept decoded images too.")
    ] = True,
    cache_side: Annotated[
        int | None,
        typer.Option(help="Longest shorter side of kept images; 1024 with --megapixels."),
    ] = None,
    repeats: Repeats = 5,
    as_json: Json = False,
) -> None:
    """Loading crops: ours against torchvision, an FKD-style loader and decoding alone."""
    from ferkd.study.bench.loader import bench_loader as run
    from ferkd.study.bench.loader import markdown

    result = run(
        images,
        crops_per_image=_counts("--crops-per-image", crops_per_image),
        workers=_counts("--workers", workers),
        image_size=image_size,
        megapixels=megapixels,
        photos=photos,
        batch_size=batch_size,
        batches=batches,
        stored_crops=stored_crops,
        cache=cache,
        cache_side=cache_side,
        repeats=repeats,
    )
    _show(result, markdown(result), as_json)


@bench_app.command("label")
def bench_label(
    images: Images = None,
    teacher: Teacher = "timm/resnet18?random=0",
    image_size: ImageSize = 224,
    batch_size: Annotated[int, typer.Option(help="Crops of a forward pass.")] = 128,
    precision: Precision = "auto",
    device: Device = "auto",
    photos: Annotated[int, typer.Option(help="Images that are labelled.")] = 64,
    crops: Annotated[int, typer.Option(help="Crops per image.")] = 10,
    workers: Annotated[int, typer.Option(help="Threads that decode and cut.")] = 2,
    repeats: Repeats = 3,
    memory: Annotated[
        bool, typer.Option("--memory/--no-memory", help="Peak memory of fresh processes too.")
    ] = True,
    as_json: Json = False,
) -> None:
    """Labelling: the pass against the teacher's bare forward pass; its memory."""
    from ferkd.study.bench.label import bench_label as run

    result = run(
        images,
        teacher=teacher,
        image_size=image_size,
        batch_size=batch_size,
        precision=precision,
        device=device,
        photos=photos,
        crops=crops,
        workers=workers,
        repeats=repeats,
        memory=memory,
    )
    _show(result, _figures(result, higher_is_better=True), as_json)


@bench_app.command("batch")
def bench_batch(
    model: Teacher = "timm/tf_efficientnet_lite0?random=0",
    image_size: ImageSize = 112,
    batches: Annotated[
        str, typer.Option(help="Batch sizes, with commas.")
    ] = "1,2,4,8,16,32,64,128",
    precision: Precision = "auto",
    device: Device = "auto",
    repeats: Repeats = 3,
    as_json: Json = False,
) -> None:
    """Labelling and training by batch size: crops per second."""
    from ferkd.study.bench.batch import bench_batch as run
    from ferkd.study.bench.batch import markdown

    try:
        sizes = [int(part) for part in batches.split(",")]
    except ValueError:
        raise InputError(f"--batches {batches!r}: give whole numbers with commas") from None
    result = run(
        model=model,
        image_size=image_size,
        batches=sizes,
        precision=precision,
        device=device,
        repeats=repeats,
    )
    _show(result, markdown(result), as_json)


@bench_app.command("loss")
def bench_loss(
    classes: Annotated[str, typer.Option(help="Classes, several with commas.")] = "1000,21841",
    batch_size: Annotated[int, typer.Option(help="Rows of logits.")] = 256,
    top_k: Annotated[int, typer.Option(help="Stored classes of a label.")] = 5,
    temperature: Annotated[float, typer.Option(help="Of both sides.")] = 1.0,
    device: Device = "auto",
    repeats: Repeats = 20,
    as_json: Json = False,
) -> None:
    """The loss from sparse labels against dense ones: time and peak memory."""
    from ferkd.study.bench.loss import bench_loss as run
    from ferkd.study.bench.loss import markdown

    result = run(
        classes=_counts("--classes", classes),
        batch=batch_size,
        top_k=top_k,
        temperature=temperature,
        device=device,
        repeats=repeats,
    )
    _show(result, markdown(result), as_json)


@bench_app.command("step")
def bench_step(
    images: Images = None,
    student: Annotated[str, typer.Option(help="As in a recipe.")] = "timm/mobilenetv3_small_050",
    teacher: Teacher = "timm/resnet18?random=0",
    image_size: ImageSize = 224,
    batch_size: Annotated[int, typer.Option(help="Crops of a step.")] = 64,
    crops_per_image: Annotated[int, typer.Option(help="m, of all but hard.")] = 4,
    workers: Annotated[int, typer.Option(help="Processes that load.")] = 2,
    calibration: Annotated[Calibration, typer.Option(help="FerKD's.")] = "steps",
    classes: Annotated[int, typer.Option(help="Classes that are trained.")] = 1000,
    photos: Annotated[int, typer.Option(help="Pictures made without --images.")] = 256,
    stored_crops: StoredCrops = 30,
    cached: Annotated[
        bool, typer.Option("--cached", help="FerKD with kept decoded images too.")
    ] = False,
    steps: Annotated[int, typer.Option(help="Steps of a side in a turn.")] = 8,
    precision: Precision = "auto",
    cut: Annotated[
        Literal["auto", "workers", "device"], typer.Option(help="Where crops are cut.")
    ] = "auto",
    compile: Annotated[bool, typer.Option("--compile", help="Compile the student.")] = False,
    device: Device = "auto",
    repeats: Repeats = 5,
    as_json: Json = False,
) -> None:
    """Training by method: seconds per 10,000 crops, whole pipeline."""
    from ferkd.study.bench.step import Setting, markdown
    from ferkd.study.bench.step import bench_step as run

    setting = Setting(
        student=student,
        teacher=teacher,
        image_size=image_size,
        batch_size=batch_size,
        crops_per_image=crops_per_image,
        workers=workers,
        calibration=calibration,
        device=device,
        precision=precision,
        cut=cut,
        compile=compile,
    )
    result = run(
        images,
        setting=setting,
        classes=classes,
        photos=photos,
        stored_crops=stored_crops,
        cached=cached,
        steps=steps,
        repeats=repeats,
    )
    _show(result, markdown(result), as_json)


def _show(result: dict[str, Any], text: str, as_json: bool) -> None:
    """The result with the command that made it and its date; for people, the targets below."""
    command = " ".join(["ferkd", *(shlex.quote(word) for word in sys.argv[1:])])
    stated = {"command": command, "date": result["machine"]["date"], **result}
    lines = [
        (name, f"{t['measured']:.3g} ({t['rule']} {t['target']:g}{'' if t['reached'] else ': no'})")
        for name, t in result.get("targets", {}).items()
    ]
    show(stated, "\n\n".join([text, table(lines)]) if lines else text, as_json)


def _figures(result: dict[str, Any], *, higher_is_better: bool = False) -> str:
    rows: list[tuple[str, Any]] = [("value", f"{result['value']:.4g} {result['unit']}")]
    rows += [(name, f"{value:.4g} {result['unit']}") for name, value in result["baselines"].items()]
    how = "of the rate of" if higher_is_better else "times faster than"
    rows += [(f"{how} {name}", f"{r:.4g}") for name, r in result["ratios"].items()]
    return table(rows)


def _counts(option: str, text: str) -> list[int]:
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise InputError(f"{option} {text!r}: give whole numbers separated by commas") from None
