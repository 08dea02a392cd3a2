"""Command line options that several commands share, and the choices that options take.

The choices stand here once more than in the rooms that they are of, whose modules load torch;
tests/cli/test_choices.py holds the two together.
"""

from __future__ import annotations

from typing import Annotated, Literal

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
