"""The command that trains: one recipe, or several on one loader."""

from __future__ import annotations

import logging
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ferkd.cli.console import continuing, meter, say, show
from ferkd.cli.options import Json, Overwrite, Resume
from ferkd.system.errors import InputError
from ferkd.system.launch import is_first

if TYPE_CHECKING:
    from ferkd.training.result import RunResult


def register(app: typer.Typer) -> None:
    """Add ``ferkd train``."""
    app.command()(train)


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
    from ferkd.training.result import RunResult

    loaded = {Path(recipe).stem: load_recipe(recipe, set_ or []) for recipe in recipes}
    if len(loaded) < len(recipes):
        raise InputError(
            f"{len(recipes)} recipes have {len(loaded)} names; runs are named by their recipes, "
            "so give files of different names"
        )

    def run(**options: Any) -> RunResult | dict[str, RunResult]:
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
    each = {"": result} if isinstance(result, RunResult) else result
    said = [
        _trained(one, out / name, loaded[name or next(iter(loaded))].data.val)
        for name, one in each.items()
    ]
    show(result, "\n\n".join(said), as_json)


def _trained(result: RunResult, out: Path, val: str | None) -> str:
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
        f"{result.student} trained by {result.method} for {result.epochs:.4g} epochs "
        f"({result.steps} steps, {result.seconds:.0f} s, "
        f"{result.crops_per_second:.0f} crops/s){measured}"
    ]
    if result.regions is not None:
        shares = ", ".join(f"{name} {share:.1%}" for name, share in result.regions.items())
        lines.append(f"regions: {shares}")
    lines += [
        f"the run is in {out}",
        f"next: {shlex.join(['ferkd', 'evaluate', str(out), val or 'IMAGES'])}",
    ]
    return "\n".join(lines)
