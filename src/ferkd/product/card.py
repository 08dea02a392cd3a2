"""The model card of an exported model: what it is, what was measured, how it is used."""

from __future__ import annotations

import re
from typing import Any

from ferkd.models.student import ModelConfig
from ferkd.product import bundle
from ferkd.system import text as texts

_SPECIAL = re.compile(r"([\\`*_{}\[\]<>()#+!|~&$])")
_SHOWN = 50


def escaped(name: object) -> str:
    """A name as Markdown text that is nothing but text."""
    return _SPECIAL.sub(r"\\\1", texts.name(name))


def card(config: ModelConfig, figures: dict[str, Any], command: str) -> str:
    """The card in Markdown. ``figures`` are the export's; what is missing was not measured."""
    names = bundle.class_names(config)
    listed = ", ".join(map(escaped, names[:_SHOWN]))
    more = f" and {len(names) - _SHOWN} more (labels.txt)" if len(names) > _SHOWN else ""
    size, mean, std = config.image_size, list(config.mean), list(config.std)
    blocks = [
        f"# {escaped(config.architecture)}, {len(names)} classes",
        f"An image classifier, trained by method {escaped(figures.get('method', 'unknown'))} of "
        f"ferkd and written by `{command}`.",
        f"Classes: {listed}{more}.",
        "## Measured",
        _table(figures),
        "## Input",
        f"RGB, the central square of {config.crop_fraction:g} of the shorter side at {size} x "
        f"{size} pixels, value / 255, mean {mean}, standard deviation {std}. EXIF orientation is "
        f"{'applied' if config.exif else 'ignored'}.",
        "## Use",
        "```\nferkd predict DIR PHOTO.jpg\n```",
    ]
    if config.architecture.startswith("timm/"):
        blocks.append(
            "```python\nimport timm\n\n"
            'model = timm.create_model("local-dir:DIR", pretrained=True).eval()\n'
            "data = timm.data.resolve_model_data_config(model)\n"
            "transform = timm.data.create_transform(**data, is_training=False)\n```"
        )
    if "onnx" in figures:
        takes = {
            "normalised": f"float32 [N, 3, {size}, {size}], normalised",
            "pixels": f"uint8 [N, {size}, {size}, 3], RGB",
            "photograph": "one whole upright photograph uint8 [H, W, 3], RGB",
        }[figures["onnx"]["takes"]]
        blocks.append(
            f"`model.onnx` takes `images`, {takes}, and gives `logits` [N, {len(names)}]."
        )
    return "\n\n".join(blocks) + "\n"


def _table(figures: dict[str, Any]) -> str:
    rows = [
        (words, form.format(figures[key]))
        for key, words, form in (
            ("top1", "top-1", "{:.2%}"),
            ("top5", "top-5", "{:.2%}"),
            ("nll", "negative log-likelihood", "{:.4f}"),
            ("ece", "calibration error (ECE)", "{:.4f}"),
            ("epochs", "epochs of training", "{:.4g}"),
            ("parameters", "parameters", "{:,}"),
            ("bytes", "bytes of the weights", "{:,}"),
        )
        if key in figures
    ]
    for kind in ("onnx", "torchscript"):
        if kind in figures:
            rows.append(
                (f"{kind} against torch, largest difference", f"{figures[kind]['difference']:.1e}")
            )
    if "int8" in figures:
        found = figures["int8"]
        rows.append(("int8: bytes", f"{found['bytes']:,}"))
        rows.append(("int8: same answer as ONNX", f"{found['agreement']:.2%}"))
        if found["top1"] is not None:
            rows.append(
                ("int8: top-1, and before", f"{found['top1']:.2%}, {found['top1_before']:.2%}")
            )
    head = ["| figure | value |", "|---|---|"]
    return "\n".join([*head, *(f"| {name} | {value} |" for name, value in rows)])
