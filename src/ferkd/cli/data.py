"""`ferkd data`: the data sets of the results, laid out by name."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from ferkd.cli.console import meter, show
from ferkd.cli.help import Commands
from ferkd.cli.options import Json, Overwrite

data_app = typer.Typer(
    help="The data sets of recipes, suites and results.", no_args_is_help=True, cls=Commands
)

Folder = Annotated[Path, typer.Argument(help="A new folder.")]
From = Annotated[
    Path | None, typer.Option("--from", help="The archive, or a folder of it [download].")
]


def register(app: typer.Typer) -> None:
    """Add the commands to the command line."""
    app.add_typer(data_app, name="data")


@data_app.command("flowers")
def flowers(
    folder: Folder, given: From = None, overwrite: Overwrite = False, as_json: Json = False
) -> None:
    """3670 flowers of five kinds: train, val (a fifth), and 300 originals to time (229 MB)."""
    from ferkd.study.data import flowers as lay_out

    with meter("flowers") as advance:
        counts = lay_out(folder, given, overwrite=overwrite, progress=advance)
    _show(folder, counts, as_json)


@data_app.command("fashion-mnist")
def fashion_mnist(
    folder: Folder,
    given: From = None,
    wrong: Annotated[float, typer.Option(help="Share of train under a wrong class.")] = 0.0,
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """Fashion-MNIST: 400 images a class to train, 200 to validate (39 MB)."""
    from ferkd.study.data import fashion_mnist as lay_out

    with meter("fashion-mnist") as advance:
        counts = lay_out(folder, given, wrong=wrong, overwrite=overwrite, progress=advance)
    _show(folder, counts, as_json)


def _show(folder: Path, counts: dict[str, int], as_json: bool) -> None:
    result: dict[str, Any] = {"folder": str(folder), **counts}
    said = ", ".join(f"{folder / part}: {count} images" for part, count in counts.items() if count)
    show(result, said, as_json)
