"""The command ``ferkd compare``."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from ferkd.cli.console import continuing, meter, say, show
from ferkd.cli.options import Json
from ferkd.system.errors import InputError
from ferkd.system.launch import refuse_several


def register(app: typer.Typer) -> None:
    """Add the command of this file to the ``ferkd`` command."""
    app.command()(compare)


def compare(
    what: Annotated[
        list[str], typer.Argument(help="Run folders; or a suite: a YAML file or a shipped name.")
    ],
    out: Annotated[
        Path | None, typer.Option(help="A suite's folder of runs; finished ones are kept.")
    ] = None,
    html: Annotated[Path | None, typer.Option(help="Write a page with tables and curves.")] = None,
    jobs: Annotated[int, typer.Option(help="Runs of a suite at a time.")] = 1,
    only: Annotated[
        list[str] | None, typer.Option(help="Only this method of a suite; may be repeated.")
    ] = None,
    budget: Annotated[
        list[str] | None, typer.Option(help="Only this budget of a suite; may be repeated.")
    ] = None,
    seeds: Annotated[
        int | None, typer.Option(help="Seeds 0 to N - 1 instead of the suite's.")
    ] = None,
    baseline: Annotated[
        str | None, typer.Option(help="Compare with this method [the suite's, or hard].")
    ] = None,
    report_only: Annotated[
        bool, typer.Option("--report-only", help="Run nothing; report what is finished.")
    ] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the page.")] = False,
    as_json: Json = False,
) -> None:
    """Compare runs, or run a suite of methods on equal budgets and compare them."""
    refuse_several("ferkd compare")
    from ferkd.study.compare.cells import plain, print_rich, tables
    from ferkd.study.compare.folder import is_suite_folder, read_folder
    from ferkd.study.compare.page import write_page
    from ferkd.study.compare.report import compare_runs, compare_suite
    from ferkd.study.compare.suite import load_suite, with_seeds

    if html is not None and html.exists() and not overwrite:
        raise InputError(f"{html} exists; give another file or --overwrite")
    first = Path(what[0])
    own = len(what) == 1 and out is None and is_suite_folder(first)
    if own or out is not None or not first.is_dir():
        if len(what) > 1:
            raise InputError(
                f"{what[1]!r} beside the suite {what[0]!r}: give one suite, or only folders of runs"
            )
        if out is None and not own:
            load_suite(what[0])  # a wrong name is said before a missing folder
            raise InputError("a suite needs a folder for its runs: give --out DIR")
        suite = read_folder(first) if own else load_suite(what[0])
        if seeds is not None:
            suite = with_seeds(suite, seeds)
        with continuing(resume=False), meter("comparing") as advance:
            compared = compare_suite(
                suite,
                out or first,
                name=what[0],
                only=only or [],
                budgets=budget or [],
                jobs=jobs,
                report_only=report_only or own,
                baseline=baseline,
                say=say,
                progress=advance,
            )
    else:
        if only or budget or report_only or jobs != 1 or seeds is not None:
            raise InputError(
                "--only, --budget, --seeds, --report-only and --jobs are for suites, not for runs"
            )
        compared = compare_runs([Path(folder) for folder in what], baseline=baseline)
    result = compared.result
    if html is not None:
        write_page(html, compared)
    for note in result["notes"]:
        say(note)
    if as_json:
        show(result, "", True)
    for name, found in {} if as_json else result["budgets"].items():
        title, both = compared.titles[name], tables(found["methods"], result["baseline"])
        if sys.stdout.isatty():
            print_rich(title, both, found["remarks"])
            continue
        show(result, "\n\n".join([title, *map(plain, both)]), False)
        show(result, "\n".join(["", *found["remarks"]]), False)
    for failure in compared.failures:
        say(f"{failure.run.name} failed: {failure.message}")
    if compared.failures:
        raise typer.Exit(1)
