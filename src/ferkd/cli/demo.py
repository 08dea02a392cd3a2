"""The command ``ferkd demo``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ferkd.cli.console import continuing, meter, say, show
from ferkd.cli.options import Json, Overwrite, Resume
from ferkd.system.launch import refuse_several


def register(app: typer.Typer) -> None:
    """Add ``ferkd demo``."""
    app.command()(demo)


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
        found = run_demo(
            out,
            images=images,
            seeds=seeds,
            held_out=held_out,
            resume=resume,
            overwrite=overwrite,
            say=say,
            meter=meter,
        )
    show(found.result, found.table, as_json)
