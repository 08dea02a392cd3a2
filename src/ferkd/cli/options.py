"""Command line options that several commands share, and the choices that options take.

The choices stand here once more than in the rooms that they are of, whose modules load torch;
tests/cli/test_choices.py holds the two together.
"""

from __future__ import annotations

import ast
import inspect
from collections.abc import Callable, Collection
from dataclasses import Field, fields
from functools import wraps
from typing import Annotated, Any, Literal

import typer

Json = Annotated[bool, typer.Option("--json", help="One JSON object on stdout.")]
Resume = Annotated[bool, typer.Option("--resume", help="Continue an interrupted output.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace an existing output.")]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:N or mps.")]
Precision = Annotated[
    Literal["auto", "fp32", "bf16", "fp16"], typer.Option(help="Of the arithmetic.")
]
Workers = Annotated[int, typer.Option(help="Threads or processes that load images.")]
Store = Annotated[str, typer.Argument(help="A label store: a folder or an fsspec URL.")]
RecipeName = Annotated[str, typer.Argument(help="A YAML file, or a shipped recipe's name.")]
TopK = Annotated[int, typer.Option(help="Classes kept per crop; 0 keeps all.")]
StoredValues = Literal["u8", "f16", "f32"]
Values = Annotated[
    Literal["auto", "u8", "f16", "f32", "i8"],
    typer.Option(help="Number type; of features i8 or f16."),
]
Calibration = Literal["steps", "blend"]
Score = Literal["max_prob", "true_prob"]
MergeRule = Literal["probs", "logits"]
FkdKind = Literal["auto", "top-k", "smoothing", "hard", "full"]
FkdType = Literal["fp32", "fp16"]
ParquetClasses = Literal["names", "ids"]
ObjectScale = Literal["small", "normal"]
Thresholds = Annotated[str, typer.Option(help="L,M,T (0 to 1, ascending), auto, reliable or none.")]


def from_settings(
    settings: type, leave_out: Collection[str] = ()
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Give a command an option for each field of a settings dataclass; it gets them as ``asked``.

    The metadata of a field hold its ``help``, and the ``flag`` that turns a truth off. Of a field
    of several types the command line gives the first.
    """
    shown = [field for field in fields(settings) if field.name not in leave_out]

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        @wraps(command)
        def run(**given: Any) -> None:
            asked = {field.name: given.pop(_name(field)) for field in shown}
            turned = {field.name: not asked[field.name] for field in shown if _turns_off(field)}
            command(**given, asked=asked | turned)

        own = inspect.signature(command, eval_str=True)
        parameters: list[inspect.Parameter] = []
        for parameter in own.parameters.values():
            parameters += map(_option, shown) if parameter.name == "asked" else [parameter]
        run.__signature__ = own.replace(parameters=parameters)  # type: ignore[attr-defined]
        run.__annotations__ = {p.name: p.annotation for p in parameters}
        return run

    return decorate


def _turns_off(field: Field[Any]) -> bool:
    return field.default is True


def _name(field: Field[Any]) -> str:
    return f"no_{field.name}" if _turns_off(field) else field.name


def _option(field: Field[Any]) -> inspect.Parameter:
    first = str(field.type).partition(" | ")[0]
    kind: Any = {"int": int, "float": float, "bool": bool}.get(first, str)
    if first.startswith("Literal["):
        kind = Literal[ast.literal_eval(f"({first[8:-1]},)")]
    flags = [field.metadata["flag"] or f"--{field.name}"] if kind is bool else []
    option = typer.Option(*flags, help=field.metadata["help"])
    return inspect.Parameter(
        _name(field),
        inspect.Parameter.POSITIONAL_OR_KEYWORD,
        default=False if kind is bool else field.default,
        annotation=Annotated[kind if field.default is not None else kind | None, option],
    )
