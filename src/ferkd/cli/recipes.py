"""The shipped recipes: ``ferkd recipes ls``, ``show`` and ``copy``."""

from __future__ import annotations

from pathlib import Path

import typer

from ferkd.cli.console import show, table
from ferkd.cli.help import Commands
from ferkd.cli.options import Json, Overwrite
from ferkd.system.errors import InputError
from ferkd.system.files import writing

recipes_app = typer.Typer(
    help="Shipped recipes: ls, show, copy.", no_args_is_help=True, cls=Commands
)


def register(app: typer.Typer) -> None:
    """Add ``ferkd recipes``."""
    app.add_typer(recipes_app, name="recipes")


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
