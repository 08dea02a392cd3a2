"""The command that labels crops: in one process, in one of several, or on a Ray cluster."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from ferkd.cli.console import continuing, meter, say, show
from ferkd.cli.options import Json, Overwrite, Resume, from_settings
from ferkd.labelling.settings import Labelling
from ferkd.system import text as texts
from ferkd.system.errors import InputError

if TYPE_CHECKING:
    from ferkd.store.reader import LabelStore


def register(app: typer.Typer) -> None:
    """Add ``ferkd label``."""
    app.command()(label)


@from_settings(Labelling, leave_out=("into", "distribution", "part_images"))
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
    asked: Any = None,
    scale: Annotated[
        tuple[float, float] | None,
        typer.Option(help="Crop area, share of the image [0.08 1].", show_default=False),
    ] = None,
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
        Literal["processes", "ray"], typer.Option(help="ray: --ray-workers actors on a cluster.")
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
    from ferkd.labelling.engines import label_by_ray
    from ferkd.store.sharing import Shard
    from ferkd.system.storage import is_url, masked

    if scale is not None and not 0 < scale[0] <= scale[1] <= 1:
        raise InputError(f"--scale {scale[0]} {scale[1]}: give 0 < low <= high <= 1")
    if (out is None) == (into is None):
        raise InputError("give one of --out, for a new store, and --into, for a signal more")
    if out is not None:
        refuse_inside_images(out, images)
    asked["top_k"] = asked["top_k"] or None
    distribution = None if scale is None else CropDistribution(scale=scale)
    wanted = Labelling(into=into is not None, distribution=distribution, **asked)
    mine = Shard.from_environment() if shard is None else Shard.parse(shard)
    together = mine is not None or finish or engine != "processes"
    if together and (overwrite or recheck):
        raise InputError(
            "several processes label into one place and continue it; leave out --overwrite and "
            "--recheck"
        )
    if engine != "processes" and is_url(out):
        raise InputError(
            f"engine {engine} labels into a local folder that all machines see; publish the "
            "finished store to a URL, or give each process a --shard of its own"
        )
    alone = None if not together else "finish" if mine is None else f"{mine.index}-of-{mine.count}"
    one = "cell" if wanted.kind == "map" else "crop"
    begun = time.perf_counter()
    last = labelling.Progress(0, 0, 0, 0.0)
    with (
        continuing(resume=not together),
        _folder(out, into, work, resume, overwrite, alone) as folder,
        meter("labelling") as advance,
    ):

        def progress(now: labelling.Progress) -> None:
            nonlocal last
            last = now
            advance(now.done, now.total, f"images, {now.crops_per_second:.0f} {one}s/s")

        if finish:
            store = labelling.finish(images, folder, wanted)
        elif engine != "processes":
            store = label_by_ray(
                images, teacher, folder, wanted, engine, ray_workers, progress=progress
            )
        elif mine is not None:
            found = labelling.label_shard(images, teacher, folder, mine, wanted, progress=progress)
            if found is None and is_url(out):
                found = _joined(images, str(out), folder, wanted)
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
        result = _result(store, wanted.kind)
    result |= {
        "seconds": time.perf_counter() - begun,
        "crops_per_second": last.crops_per_second,
        "store": masked(out or into),
    }
    for skip in result["skipped"]:
        say(f"left out {texts.name(skip['id'])}: {texts.name(skip['reason'])}")
    show(result, _told(result, one), as_json)


@contextmanager
def _folder(
    out: str | None,
    into: Path | None,
    work: Path | None,
    resume: bool,
    overwrite: bool,
    alone: str | None,
) -> Iterator[Path]:
    """The local folder to label in; ``alone`` names a process of several."""
    from ferkd.store.publish import label_out, shard_out
    from ferkd.system.storage import is_url

    if out is None:
        yield into or Path()
        return
    if alone is not None and is_url(out):
        with shard_out(out, alone, work=work) as folder:
            yield folder
        return
    with label_out(out, work=work, resume=resume, overwrite=overwrite) as folder:
        yield folder


def _joined(images: str, url: str, folder: Path, wanted: Labelling) -> LabelStore | None:
    """The store out of one's own parts and those that others have sent; None where some lack."""
    from ferkd.labelling import run as labelling
    from ferkd.store.mirror import PartsMirror

    PartsMirror(folder, url).fetch()
    try:
        return labelling.finish(images, folder, wanted)
    except labelling.PartsMissing:
        return None


def _result(store: LabelStore, kind: str) -> dict[str, Any]:
    from ferkd.labelling.agreement import agreement_of

    return {
        "images": len(store),
        "skipped": [s.model_dump() for s in store.manifest.skipped],
        "kind": kind,
        "crops_per_image": store.crops_per_image,
        "bytes_per_crop": store.bytes_on_disk / max(1, len(store) * store.crops_per_image),
        "agreement": agreement_of(store) if kind != "features" else None,
        "signals": list(store.manifest.signals),
    }


def _told(result: dict[str, Any], one: str) -> str:
    """The result for people."""
    text = (
        f"{result['images']} images x {result['crops_per_image']} {one}s labelled into "
        f"{result['store']} ({result['bytes_per_crop']:.1f} bytes per {one}, "
        f"{result['crops_per_second']:.0f} {one}s/s)"
    )
    if result["kind"] == "features":
        return f"{text}\nsignals: {', '.join(result['signals'])}"
    if (agreement := result["agreement"]) is not None:
        return f"{text}\nthe labels agree with the class folders in {agreement:.1%} of the {one}s"
    return (
        f"{text}\nwithout ground truth: FerKD has nothing to calibrate by, so method ferkd trains "
        "on these labels as fkd does"
    )
