"""Command line options that several commands share."""

from __future__ import annotations

from typing import Annotated

import typer

Json = Annotated[bool, typer.Option("--json", help="One JSON object on stdout.")]
Resume = Annotated[bool, typer.Option("--resume", help="Continue an interrupted output.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace an existing output.")]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:N or mps.")]
Precision = Annotated[str, typer.Option(help="auto, fp32, bf16 or fp16.")]
Workers = Annotated[int, typer.Option(help="Threads or processes that load images.")]
Store = Annotated[str, typer.Argument(help="A label store: a folder or an fsspec URL.")]
RecipeName = Annotated[str, typer.Argument(help="A YAML file, or a shipped recipe's name.")]
TopK = Annotated[int, typer.Option(help="Classes kept per crop; 0 keeps all.")]
Values = Annotated[
    str, typer.Option(help="Number type: auto, u8, f16 or f32; of features i8 or f16.")
]
Thresholds = Annotated[str, typer.Option(help="L,M,T (0 to 1, ascending), auto, reliable or none.")]
