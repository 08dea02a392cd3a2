"""The commands that send stores, runs and exports elsewhere and bring them back: push, pull."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from ferkd.cli.console import continuing, meter, show
from ferkd.cli.options import Json, Overwrite
from ferkd.system import text as texts


def register(app: typer.Typer) -> None:
    """Add ``ferkd push`` and ``ferkd pull``."""
    app.command()(push)
    app.command()(pull)


def push(
    what: Annotated[Path, typer.Argument(help="A label store, a finished run or an export.")],
    to: Annotated[
        str, typer.Argument(help="A folder, any fsspec URL, hf://OWNER/NAME, hf://datasets/...")
    ],
    public: Annotated[
        bool, typer.Option("--public", help="A new Hugging Face repository is public.")
    ] = False,
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """Copy a store, a run or an export elsewhere, its listing last: all of it or nothing."""
    from ferkd.product.transfer import push as run

    with continuing(resume=False), meter("pushing") as advance:
        found = run(
            what, to, overwrite=overwrite, public=public, progress=lambda d, t: advance(d, t, "B")
        )
    _show(found, "pushed to", as_json)


def pull(
    source: Annotated[str, typer.Argument(help="Where ferkd push left it.")],
    out: Annotated[Path, typer.Option(help="A new folder.")],
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """Fetch a store, a run or an export, verified; repeat it to go on after an interruption."""
    from ferkd.product.transfer import pull as run

    with continuing(resume=False), meter("pulling") as advance:
        found = run(source, out, overwrite=overwrite, progress=lambda d, t: advance(d, t, "B"))
    _show(found, "pulled into", as_json)


def _show(found: Mapping[str, Any], how: str, as_json: bool) -> None:
    size = f"{found['files']} files, {texts.size(found['bytes'])}"
    show(found, f"{found['kind']} {how} {found['place']} ({size})", as_json)
