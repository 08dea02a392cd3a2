"""``ferkd --help``: the commands by what one wants to do, on one screen, and an example of each."""

from __future__ import annotations

import shutil
from typing import Any

from typer.core import TyperGroup

# By purpose; what is in no group is listed last, so that no command is hidden. The words are short
# enough for one line of 40 columns beside their command.
GROUPS = {
    "do": {
        "distill": "photos to a small model",
        "demo": "the whole pipeline, to see",
        "label": "crops by a teacher, once",
        "train": "a student by a recipe",
        "finetune": "a network to your classes",
        "predict": "what images show",
        "export": "for timm and ONNX",
    },
    "look": {
        "inspect": "what a label store holds",
        "evaluate": "accuracy, calibration",
        "compare": "methods on equal budgets",
        "verify": "a store to the last byte",
        "doctor": "what this machine lacks",
    },
    "share": {
        "publish": "upload a store",
        "fetch": "download a store",
        "push": "upload a run or export",
        "pull": "download one",
        "merge": "teachers in one store",
        "subset": "a smaller store",
        "signals": "what a store holds",
        "import": "labels from elsewhere",
        "export-labels": "for other programs",
    },
    "measure": {
        "plan": "hours, bytes, cost, before",
        "bench": "speed and size",
        "scenes": "pictures of known truth",
        "data": "the data sets used here",
        "recipes": "list, show, copy them",
    },
}
EXAMPLES = {
    "distill": "ferkd distill photos --out mine",
    "demo": "ferkd demo --out first-look",
    "label": "ferkd label photos/train --teacher runs/teacher --out labels",
    "train": "ferkd train flowers-ferkd --out runs/student --set data.store=labels",
    "finetune": "ferkd finetune photos/train --val photos/val --teacher timm/resnet50 --out t",
    "predict": "ferkd predict mine/model x.jpg",
    "export": "ferkd export runs/student --to model --onnx",
    "inspect": "ferkd inspect labels --images photos/train --html labels.html",
    "evaluate": "ferkd evaluate runs/student photos/val",
    "compare": "ferkd compare flowers-small --out study --seeds 3 --html study.html",
    "verify": "ferkd verify labels --images photos/train --teacher runs/teacher",
    "doctor": "ferkd doctor",
    "publish": "ferkd publish labels s3://bucket/labels",
    "fetch": "ferkd fetch s3://bucket/labels --out labels",
    "push": "ferkd push model hf://ME/flowers",
    "pull": "ferkd pull hf://ME/flowers --out model",
    "merge": "ferkd merge labels-a labels-b --out both --weights 1,3",
    "subset": "ferkd subset labels --out small --crops 10",
    "signals ls": "ferkd signals ls labels",
    "signals drop": "ferkd signals drop labels dino",
    "signals copy": "ferkd signals copy labels#dino --into other",
    "signals table": "ferkd signals table labels#dino class-means --means",
    "import fkd": "ferkd import fkd FKD_labels --images photos/train --out labels",
    "export-labels": "ferkd export-labels labels --parquet labels.parquet",
    "plan": "ferkd plan ferkd-resnet50 --teacher-rate 800 --student-rate 400",
    "scenes": "ferkd scenes --out scenes --label-noise 0.2",
    "data flowers": "ferkd data flowers flowers",
    "data fashion-mnist": "ferkd data fashion-mnist fashion --wrong 0.4",
    "recipes ls": "ferkd recipes ls",
    "recipes show": "ferkd recipes show flowers-ferkd",
    "recipes copy": "ferkd recipes copy flowers-ferkd my.yaml",
    "bench store": "ferkd bench store --images 256 --crops 50",
    "bench distortion": "ferkd bench distortion --store labels",
    "bench loader": "ferkd bench loader --images photos/train --workers 0",
    "bench label": "ferkd bench label --images photos/train --photos 32",
    "bench loss": "ferkd bench loss --classes 1000",
    "bench batch": "ferkd bench batch --image-size 112 --batches 1,16,128",
    "bench step": "ferkd bench step --images photos/train --steps 4",
}
_START = ("demo", "distill", "predict")


class Commands(TyperGroup):
    """The ``ferkd`` command, or a group of commands in it, with an example of every command."""

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        command = super().get_command(ctx, cmd_name)
        path = f"{ctx.command_path} {cmd_name}".partition(" ")[2]  # without "ferkd"
        if command is not None and path in EXAMPLES:
            command.epilog = f"\b\nExample:\n  {EXAMPLES[path]}"
        return command

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        rows = [(name, self._first_sentence(ctx, name)) for name in self.list_commands(ctx)]
        with formatter.section("Commands"):
            formatter.write_dl(rows)

    def _first_sentence(self, ctx: Any, name: str) -> str:
        command = self.get_command(ctx, name)
        return "" if command is None else command.get_short_help_str(200).rstrip(".")


class Ferkd(Commands):
    """Its help shows the commands by purpose; all help is as wide as the terminal, 80 at most."""

    def make_context(self, info_name: Any, args: Any, parent: Any = None, **extra: Any) -> Any:
        # Left alone, click takes 50 columns where there are fewer, and the terminal breaks words.
        columns = shutil.get_terminal_size().columns
        extra.setdefault("terminal_width", max(24, min(columns, 80) - 1))
        return super().make_context(info_name, args, parent, **extra)

    def format_help(self, ctx: Any, formatter: Any) -> None:
        self.format_usage(ctx, formatter)
        self.format_help_text(ctx, formatter)
        known = {name for group in GROUPS.values() for name in group}
        others = {
            name: self._first_sentence(ctx, name)
            for name in self.list_commands(ctx)
            if name not in known and not self.commands[name].hidden
        }
        for title, group in {**GROUPS, "more": others}.items():
            rows = [(name, words) for name, words in group.items() if name in self.commands]
            if rows:
                with formatter.section(title.capitalize()):
                    formatter.write_dl(rows)
        with formatter.section("Examples"):
            for name in _START:
                if name in self.commands:
                    formatter.write_text(EXAMPLES[name])
        formatter.write_paragraph()
        formatter.write_text(
            "ferkd COMMAND -h tells more; also --version --install-completion --debug"
        )
