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
import sys
import traceback
from typing import Annotated

import typer

from ferkd import __version__
from ferkd.cli import bench as cli_bench
from ferkd.cli import compare as cli_compare
from ferkd.cli import data as cli_data
from ferkd.cli import demo as cli_demo
from ferkd.cli import distill as cli_distill
from ferkd.cli import doctor as cli_doctor
from ferkd.cli import evaluate as cli_evaluate
from ferkd.cli import inspect as cli_inspect
from ferkd.cli import label as cli_label
from ferkd.cli import plan as cli_plan
from ferkd.cli import product as cli_product
from ferkd.cli import recipes as cli_recipes
from ferkd.cli import store as cli_store
from ferkd.cli import train as cli_train
from ferkd.cli import transfer as cli_transfer
from ferkd.cli.console import expanded, say
from ferkd.cli.help import Ferkd
from ferkd.system import text as texts
from ferkd.system.errors import InputError
from ferkd.system.launch import SaidByTheFirst
from ferkd.system.troubles import in_plain_words

app = typer.Typer(
    name="ferkd",
    help="Stored soft-label distillation: a heavy teacher labels crops once, many small students "
    "train from the labels.",
    no_args_is_help=True,
    cls=Ferkd,
    context_settings={"help_option_names": ["-h", "--help"]},
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

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
    # A library that has a handler of its own has said it; what others tell of their work in detail
    # concerns nobody here.
    log.addFilter(lambda record: not logging.getLogger(record.name.partition(".")[0]).handlers)
    logging.basicConfig(level=logging.WARNING, handlers=[log])
    logging.getLogger("ferkd").setLevel(logging.INFO)
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


cli_train.register(app)
cli_evaluate.register(app)
cli_demo.register(app)
cli_recipes.register(app)
cli_distill.register(app)
cli_doctor.register(app)
cli_inspect.register(app)
cli_label.register(app)
cli_plan.register(app)
cli_product.register(app)
cli_store.register(app)
cli_transfer.register(app)
cli_bench.register(app)
cli_compare.register(app)
cli_data.register(app)
