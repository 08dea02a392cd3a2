"""The command line: one thin function a command.

Progress goes to stderr and the result to stdout; ``--json`` makes it one JSON object. Exit status:
0 done, 1 failed at run time, 2 bad usage, configuration or input, 130 interrupted with the state
saved.
"""

from __future__ import annotations

import errno
import io
import logging
import os
import shlex
import sys
import time
import traceback
from contextlib import nullcontext
from pathlib import Path
from typing import Annotated, Any

import typer

from ferkd import __version__
from ferkd.cli import bench as cli_bench
from ferkd.cli import compare as cli_compare
from ferkd.cli import data as cli_data
from ferkd.cli import distill as cli_distill
from ferkd.cli import doctor as cli_doctor
from ferkd.cli import inspect as cli_inspect
from ferkd.cli import plan as cli_plan
from ferkd.cli import product as cli_product
from ferkd.cli import store as cli_store
from ferkd.cli.console import continuing, expanded, meter, say, show, table
from ferkd.cli.help import Commands, Ferkd
from ferkd.cli.options import (
    Device,
    Json,
    Overwrite,
    Precision,
    Resume,
    TopK,
    Values,
    Workers,
)
from ferkd.system import text as texts
from ferkd.system.errors import InputError
from ferkd.system.files import writing
from ferkd.system.launch import SaidByTheFirst, is_first, refuse_several
from ferkd.system.troubles import in_plain_words

app = typer.Typer(
    name="ferkd",
    help="Stored soft-label distillation: label crops once with a heavy teacher, train many "
    "small students from the labels.",
    no_args_is_help=True,
    cls=Ferkd,
    context_settings={"help_option_names": ["-h", "--help"]},
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
recipes_app = typer.Typer(
    help="Shipped recipes: ls, show, copy.", no_args_is_help=True, cls=Commands
)
app.add_typer(recipes_app, name="recipes")


# What the user can do about what the system refused.
_REMEDIES = {
    errno.ENOENT: "check the path, and make the folder that it is in",
    errno.ENOTDIR: "a part of this path is a file; give another path",
    errno.EISDIR: "this is a folder; give a file",
    errno.EACCES: "give a path that you may use, or change its permissions",
    errno.EPERM: "give a path that you may use, or change its permissions",
    errno.EROFS: "this file system is read-only; give a path on another one",
    errno.ENAMETOOLONG: "give a shorter path",
    errno.ENOSPC: "the disk is full; make room on it, or give a path on another one",
    errno.EFBIG: "the file is too large for this disk or the limit (ulimit -f); raise it",
    errno.EDQUOT: "the quota is used up; make room, or give a path elsewhere",
    errno.EMFILE: "too many files are open; raise the limit with ulimit -n",
}


def main() -> None:
    """The entry point of the ``ferkd`` command."""
    # Read when torch is loaded, which happens later: threads that wait for each other let go of
    # their cores. Where other work shares these, spinning makes two threads slower than one.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    debug = "--debug" in sys.argv
    arguments = [expanded(a) for a in sys.argv[1:] if a != "--debug"]
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a name that it cannot encode costs no result
            stream.reconfigure(errors="backslashreplace")
    log = logging.StreamHandler(sys.stderr)
    log.setFormatter(texts.Lines("%(message)s"))
    logging.basicConfig(level=logging.INFO, handlers=[log])
    try:
        status = app(arguments, prog_name="ferkd", standalone_mode=False)
    except SaidByTheFirst:
        raise SystemExit(2) from None
    except InputError as error:
        _fail(f"error: {error}", 2, debug)
    except BrokenPipeError:  # whoever read the result has read enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(1) from None
    except Exception as error:
        if (usage := _usage(error)) is not None:
            raise SystemExit(usage) from None
        if (words := in_plain_words(error)) is not None:
            _fail(f"error: {words}", 2, debug)
        if isinstance(error, OSError) and error.errno in _REMEDIES:
            where = f"{error.filename}: " if error.filename else ""
            _fail(f"error: {where}{error.strerror}; {_REMEDIES[error.errno]}", 2, debug)
        _fail(f"failed: {type(error).__name__}: {error}", 1, debug)
    raise SystemExit(status or 0)


def _usage(error: Exception) -> int | None:
    """Say what is wrong with the command line itself; its exit status, None for other errors.

    The class of these errors has moved between releases of typer; their methods have not.
    """
    show, status = getattr(error, "show", None), getattr(error, "exit_code", None)
    if show is None or status is None:
        return None
    words = io.StringIO()
    show(file=words)
    say(words.getvalue().rstrip())
    return int(status)


def _fail(message: str, status: int, debug: bool) -> None:
    if debug:
        traceback.print_exc()
    elif status == 1:
        message += " (--debug shows where)"
    say(message)
    raise SystemExit(status)


@app.callback(invoke_without_command=True)
def _version(
    version: Annotated[bool, typer.Option("--version", help="Show the version.")] = False,
) -> None:
    if version:
        print(f"ferkd {__version__}")
        raise typer.Exit


@app.command()
def label(
    images: Annotated[str, typer.Argument(help="A folder CLASS/…/*.jpg, or an fsspec URL.")],
    teacher: Annotated[
        str,
        typer.Option(
            help="timm/NAME, torchvision/NAME, hf/…, a run, a module; A,B@0.5 for several."
        ),
    ],
    out: Annotated[
        str | None, typer.Option(help="A new folder for the labels, or an fsspec URL.")
    ] = None,
    into: Annotated[
        Path | None, typer.Option(help="Add a signal to this finished store, of its very crops.")
    ] = None,
    signal: Annotated[
        str | None, typer.Option(help="The signal's name [labels, or features].")
    ] = None,
    kind: Annotated[
        str,
        typer.Option(help="crops; map: one label map per image (ReLabel); features of crops."),
    ] = "crops",
    layer: Annotated[
        str, typer.Option(help="Features: penultimate, output or a submodule's name.")
    ] = "penultimate",
    normalised: Annotated[
        bool, typer.Option("--normalised", help="Features: each of length 1.")
    ] = False,
    per: Annotated[str, typer.Option(help="Features: of each crop, or of the whole image.")] = (
        "crop"
    ),
    crops: Annotated[int | None, typer.Option(help="Random crops per image [50].")] = None,
    top_k: TopK = 5,
    values: Values = "auto",
    scale: Annotated[
        tuple[float, float] | None,
        typer.Option(help="Crop area, share of the image [0.08 1].", show_default=False),
    ] = None,
    crops_from: Annotated[
        Path | None, typer.Option(help="Label the crops of this file (JSON or Parquet).")
    ] = None,
    boxes_from: Annotated[
        str | None, typer.Option(help="Label the very crops of this store, by another teacher.")
    ] = None,
    add_to: Annotated[
        str | None, typer.Option(help="Copy this store's labels and add crops up to --crops.")
    ] = None,
    image_size: Annotated[
        int | None, typer.Option(help="Pixels; the teacher's own if unset.")
    ] = None,
    batch_size: Annotated[
        int | None, typer.Option(help="Crops (or images) per forward pass; by device if unset.")
    ] = None,
    workers: Workers = 2,
    seed: Annotated[int | None, typer.Option(help="Of the crops [0].")] = None,
    device: Device = "auto",
    precision: Precision = "auto",
    no_targets: Annotated[
        bool, typer.Option("--no-targets", help="The folders are not the teacher's classes.")
    ] = False,
    class_map: Annotated[
        str | None,
        typer.Option(
            help="JSON or text file of folder and teacher class, or: sorted, natural, number."
        ),
    ] = None,
    no_agreement_check: Annotated[
        bool,
        typer.Option("--no-agreement-check", help="Accept labels that deny the folders."),
    ] = False,
    no_exif: Annotated[
        bool, typer.Option("--no-exif", help="Ignore the EXIF orientation of images.")
    ] = False,
    max_unreadable: Annotated[
        float, typer.Option(help="Largest share of unreadable images.")
    ] = 0.01,
    recheck: Annotated[
        bool, typer.Option("--recheck", help="With --resume: look for images that changed since.")
    ] = False,
    work: Annotated[
        Path | None, typer.Option(help="Local folder to label in, for an --out URL.")
    ] = None,
    shard: Annotated[
        str | None,
        typer.Option(help="0/4 to 3/4: this process's of 4; torchrun and SLURM tell it."),
    ] = None,
    engine: Annotated[
        str, typer.Option(help="processes, or ray: --ray-workers tasks on a Ray cluster.")
    ] = "processes",
    ray_workers: Annotated[int, typer.Option(help="Of --engine ray; a device each.")] = 2,
    finish: Annotated[
        bool, typer.Option("--finish", help="Join the parts that shards have written, no more.")
    ] = False,
    resume: Resume = False,
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """Label random crops of every image with a teacher.

    Several processes label together into one --out that all see: start each with a --shard of its
    own, or by torchrun or SLURM. Run a shard again to do what is missing.

    With --kind map the whole image is shown once, and a convolutional teacher labels each cell of
    its last features instead: a label map per image, to train from with method relabel.
    """
    from ferkd.crops import CropDistribution
    from ferkd.images import refuse_inside_images
    from ferkd.labelling import run as labelling
    from ferkd.labelling.agreement import agreement_of
    from ferkd.labelling.engines import label_by_ray
    from ferkd.labelling.settings import Labelling
    from ferkd.store.publish import label_out
    from ferkd.store.sharing import Shard
    from ferkd.system.storage import is_url, masked

    if scale is not None and not 0 < scale[0] <= scale[1] <= 1:
        raise InputError(f"--scale {scale[0]} {scale[1]}: give 0 < low <= high <= 1")
    if (out is None) == (into is None):
        raise InputError("give one of --out, for a new store, and --into, for a signal more")
    if out is not None:
        refuse_inside_images(out, images)
    one = "cell" if kind == "map" else "crop"
    begun = time.perf_counter()
    last = labelling.Progress(0, 0, 0, 0.0)
    with (
        continuing(),
        (
            label_out(out, work=work, resume=resume, overwrite=overwrite)
            if out is not None
            else nullcontext(into or Path())
        ) as folder,
        meter("labelling") as advance,
    ):

        def progress(now: labelling.Progress) -> None:
            nonlocal last
            last = now
            advance(now.done, now.total, f"images, {now.crops_per_second:.0f} {one}s/s")

        wanted = Labelling(
            kind=kind,  # type: ignore[arg-type]
            into=into is not None,
            signal=signal,
            layer=layer,
            normalised=normalised,
            per=per,  # type: ignore[arg-type]
            crops=crops,
            top_k=top_k or None,
            values=values,
            distribution=None if scale is None else CropDistribution(scale=scale),
            crops_from=crops_from,
            boxes_from=boxes_from,
            add_to=add_to,
            image_size=image_size,
            batch_size=batch_size,
            workers=workers,
            seed=seed,
            device=device,
            precision=precision,
            targets=not no_targets,
            class_map=class_map,
            check_agreement=not no_agreement_check,
            exif=not no_exif,
            max_unreadable=max_unreadable,
        )
        mine = Shard.from_environment() if shard is None else Shard.parse(shard)
        together = mine is not None or finish or engine != "processes"
        if together and (overwrite or recheck or into or is_url(out)):
            raise InputError(
                "several processes label into one local folder that all see, and continue it; "
                "leave out --overwrite, --recheck and --into, and publish the finished store to a "
                "URL"
            )
        if finish:
            store = labelling.finish(images, folder, targets=not no_targets)
        elif engine != "processes":
            store = label_by_ray(images, teacher, folder, wanted, engine, ray_workers)
        elif mine is not None:
            found = labelling.label_shard(images, teacher, folder, mine, wanted, progress=progress)
            if found is None:
                waiting = {"shard": f"{mine.index}/{mine.count}", "finished": False}
                show(waiting, f"shard {waiting['shard']} is done; other shards are not", as_json)
                return
            store = found
        else:
            store = labelling.label(
                images,
                teacher,
                folder,
                wanted,
                recheck=recheck,
                resume=resume,
                overwrite=overwrite,
                progress=progress,
            )
        agreement = agreement_of(store) if kind != "features" else None
        skipped = [s.model_dump() for s in store.manifest.skipped]
        result = {
            "images": len(store),
            "skipped": skipped,
            "kind": kind,
            "crops_per_image": store.crops_per_image,
            "seconds": time.perf_counter() - begun,
            "crops_per_second": last.crops_per_second,
            "bytes_per_crop": _bytes_per_crop(store),
            "agreement": agreement,
            "signals": list(store.manifest.signals),
            "store": masked(out or into),
        }
    for skip in skipped:
        say(f"left out {texts.name(skip['id'])}: {texts.name(skip['reason'])}")
    text = (
        f"{result['images']} images x {result['crops_per_image']} {one}s labelled into "
        f"{result['store']} ({result['bytes_per_crop']:.1f} bytes per {one}, "
        f"{last.crops_per_second:.0f} {one}s/s)"
    )
    if kind == "features":
        text += f"\nsignals: {', '.join(store.manifest.signals)}"
    elif agreement is not None:
        text += f"\nthe labels agree with the class folders in {agreement:.1%} of the {one}s"
    else:
        text += (
            "\nwithout ground truth: FerKD has nothing to calibrate by, so method ferkd trains on "
            "these labels as fkd does"
        )
    show(result, text, as_json)


def _bytes_per_crop(store: Any) -> float:
    return float(store.bytes_on_disk / max(1, len(store) * store.crops_per_image))


@app.command()
def train(
    recipes: Annotated[
        list[str],
        typer.Argument(help="A YAML file, or a shipped recipe's name; several share one loader."),
    ],
    out: Annotated[Path, typer.Option(help="A new folder for the run; of several, for each.")],
    set_: Annotated[
        list[str] | None, typer.Option("--set", help="key=value, e.g. optimizer.lr=0.01.")
    ] = None,
    resume: Resume = False,
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """Train a student from a recipe, or several from one loader.

    Recipes that train on the same batches read and decode them once; their runs lie in OUT/NAME.

    On several processes: torchrun --nproc-per-node N -m ferkd train ..., the batch size being that
    of all together.
    """
    from ferkd.training import train as train_one
    from ferkd.training import train_together
    from ferkd.training.progress import on_a_bar
    from ferkd.training.recipe import load_recipe

    loaded = {Path(recipe).stem: load_recipe(recipe, set_ or []) for recipe in recipes}
    if len(loaded) < len(recipes):
        raise InputError(
            f"{len(recipes)} recipes have {len(loaded)} names; runs are named by their recipes, "
            "so give files of different names"
        )

    def run(**options: Any) -> dict[str, Any]:
        if len(loaded) > 1:
            return train_together(loaded, out, resume=resume, overwrite=overwrite, **options)
        (only,) = loaded.values()
        return train_one(only, out, resume=resume, overwrite=overwrite, **options)

    if not is_first():  # one process speaks for all, but for what only another one knows
        logging.getLogger("ferkd").setLevel(logging.ERROR)
        run()
        return
    with continuing(), meter("training") as advance:
        result = run(progress=on_a_bar(advance, say))
    each = result if len(loaded) > 1 else {"": result}
    said = [
        _trained(one, out / name, loaded[name or next(iter(loaded))].data.val)
        for name, one in each.items()
    ]
    show(result, "\n\n".join(said), as_json)


def _trained(result: dict[str, Any], out: Path, val: str | None) -> str:
    """The result of a run in words, and what comes next."""
    figures = [
        f"{words} {result[key]:{form}}"
        for key, words, form in (
            ("top1", "top-1", ".2%"),
            ("nll", "NLL", ".3f"),
            ("ece", "ECE", ".3f"),
        )
        if key in result
    ]
    measured = f": {', '.join(figures)}" if figures else ", not evaluated"
    lines = [
        f"{result['student']} trained by {result['method']} for {result['epochs']:.4g} epochs "
        f"({result['steps']} steps, {result['seconds']:.0f} s, "
        f"{result['crops_per_second']:.0f} crops/s){measured}"
    ]
    if "regions" in result:
        shares = ", ".join(f"{name} {share:.1%}" for name, share in result["regions"].items())
        lines.append(f"regions: {shares}")
    lines += [
        f"the run is in {out}",
        f"next: {shlex.join(['ferkd', 'evaluate', str(out), val or 'IMAGES'])}",
    ]
    return "\n".join(lines)


@app.command()
def evaluate(
    run: Annotated[Path, typer.Argument(help="A run's folder or its weights.")],
    images: Annotated[str, typer.Argument(help="A folder of class folders.")],
    store: Annotated[
        str | None, typer.Option(help="The teacher's labels of these images: adds agreement.")
    ] = None,
    image_size: Annotated[int | None, typer.Option(help="Pixels; the run's own if unset.")] = None,
    crop_fraction: Annotated[
        float | None, typer.Option(help="Central crop, share of a side.")
    ] = None,
    class_map: Annotated[
        str | None, typer.Option(help="File of folder and the run's class, or: sorted, natural.")
    ] = None,
    batch_size: int = 256,
    workers: Workers = 2,
    device: Device = "auto",
    precision: Precision = "fp32",
    as_json: Json = False,
) -> None:
    """Measure accuracy and calibration of a run on images."""
    from ferkd.evaluating.run import evaluate as run_evaluation

    result = run_evaluation(
        run,
        images,
        store=store,
        image_size=image_size,
        crop_fraction=crop_fraction,
        batch_size=batch_size,
        workers=workers,
        device=device,
        precision=precision,  # type: ignore[arg-type]
        class_map=class_map,
    )
    rows = [(k, _short(v)) for k, v in result.items() if k != "per_class"]
    rows += [(f"  {name}", _short(v)) for name, v in result["per_class"].items()]
    show(result, table(rows), as_json)


def _short(value: Any) -> str:
    return f"{value:.4f}" if isinstance(value, float) else str(value)


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="A new folder for everything.")] = Path("ferkd-demo"),
    images: Annotated[
        Path | None, typer.Option(help="Your folder: train/ and val/, or class folders.")
    ] = None,
    seeds: Annotated[int, typer.Option(help="Repeat the students with this many seeds.")] = 1,
    held_out: Annotated[
        float, typer.Option(help="Share held out as val/ where there is none.")
    ] = 0.2,
    resume: Resume = False,
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """The whole pipeline on embedded data or your folder: teacher, labels, students, report."""
    refuse_several("ferkd demo")
    from ferkd.study.demo.run import run_demo

    with continuing():
        result = run_demo(
            out,
            images=images,
            seeds=seeds,
            held_out=held_out,
            resume=resume,
            overwrite=overwrite,
            say=say,
            meter=meter,
        )
    show(result, result.pop("table"), as_json)


@recipes_app.command("ls")
def recipes_ls(as_json: Json = False) -> None:
    """List the shipped recipes."""
    from ferkd.training.recipe import shipped_recipe, shipped_recipes

    purposes = {n: shipped_recipe(n).splitlines()[0].lstrip("# ") for n in shipped_recipes()}
    show(purposes, table(list(purposes.items())), as_json)


@recipes_app.command("show")
def recipes_show(name: str) -> None:
    """Print a shipped recipe."""
    from ferkd.training.recipe import shipped_recipe

    print(shipped_recipe(name), end="")


@recipes_app.command("copy")
def recipes_copy(name: str, to: Path, overwrite: Overwrite = False) -> None:
    """Copy a shipped recipe to a file of yours."""
    from ferkd.training.recipe import shipped_recipe

    text = shipped_recipe(name)
    if to.exists() and not overwrite:
        raise InputError(f"{to} exists; give another file or --overwrite")
    with writing(to):
        to.write_text(text, encoding="utf-8")


cli_distill.register(app)
cli_doctor.register(app)
cli_inspect.register(app)
cli_plan.register(app)
cli_product.register(app)
cli_store.register(app)
cli_bench.register(app)
cli_compare.register(app)
cli_data.register(app)
