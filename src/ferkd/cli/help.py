"""``ferkd --help``: the commands by what one wants to do, on one screen, and an example of each."""

from __future__ import annotations

from typing import Any

from typer.core import TyperGroup

# By purpose; what is in no group is listed last, so that no command is hidden.
GROUPS = {
    "do": {
        "distill": "from a folder of photographs to a small model, in one command",
        "demo": "the whole pipeline on data that come with it",
        "label": "label crops of every image with a teacher, once",
        "train": "train a student from a recipe",
        "finetune": "fit a pretrained network to your classes, with care",
        "predict": "classes of images by a finished model",
        "export": "a finished model for other programs, ONNX too",
    },
    "look": {
        "inspect": "what a label store holds; a page to look at it",
        "evaluate": "accuracy and calibration of a finished model",
        "compare": "methods beside each other on equal budgets",
        "verify": "check a store to the last byte, and replay its teacher",
        "doctor": "versions, devices, threads, and what is likely wrong here",
    },
    "share": {
        "publish": "upload a store",
        "fetch": "download one",
        "push": "upload a store, a run or an export",
        "pull": "download one",
        "merge": "several teachers' labels into one store",
        "subset": "a smaller store without labelling again",
        "import": "labels of other systems into a store",
        "export-labels": "labels for other programs",
    },
    "measure": {
        "plan": "hours, bytes and cost beforehand",
        "bench": "speed and size beside other programs",
        "scenes": "pictures whose truth is known, errors planted",
        "data": "data sets that the documentation uses",
        "recipes": "the training recipes that come with ferkd",
    },
}
EXAMPLES = {
    "distill": "ferkd distill photos --out mine",
    "demo": "ferkd demo --out first-look --images photos",
    "label": "ferkd label photos/train --teacher runs/teacher --out labels",
    "train": "ferkd train flowers-ferkd --out runs/student --set data.store=labels",
    "finetune": "ferkd finetune photos --out runs/teacher",
    "predict": "ferkd predict runs/student holiday.jpg",
    "export": "ferkd export runs/student --to model --onnx",
    "inspect": "ferkd inspect labels --images photos/train --html labels.html",
    "evaluate": "ferkd evaluate runs/student photos/val",
    "compare": "ferkd compare scenes-main --out study --seeds 3 --html study.html",
    "verify": "ferkd verify labels --images photos/train --teacher runs/teacher",
    "doctor": "ferkd doctor",
    "publish": "ferkd publish labels s3://bucket/labels",
    "fetch": "ferkd fetch s3://bucket/labels --out labels",
    "push": "ferkd push model hf://ME/flowers",
    "pull": "ferkd pull hf://ME/flowers --out model",
    "merge": "ferkd merge labels-a labels-b --out both --weights 1,3",
    "subset": "ferkd subset labels --out small --crops 10",
    "import fkd": "ferkd import fkd FKD_labels --images photos/train --out labels",
    "export-labels": "ferkd export-labels labels --parquet labels.parquet",
    "plan": "ferkd plan ferkd-resnet50 --teacher-rate 800 --student-rate 400",
    "scenes": "ferkd scenes --out scenes --label-noise 0.2",
    "recipes ls": "ferkd recipes ls",
    "recipes show": "ferkd recipes show flowers-ferkd",
    "recipes copy": "ferkd recipes copy flowers-ferkd my.yaml",
    "bench store": "ferkd bench store --images 256 --crops 50",
    "bench distortion": "ferkd bench distortion --store labels",
    "bench loader": "ferkd bench loader --images photos/train --workers 0",
    "bench label": "ferkd bench label --images photos/train --photos 32",
    "bench loss": "ferkd bench loss --classes 1000",
    "bench step": "ferkd bench step --images photos/train --steps 4",
}
_START = ("distill", "inspect", "compare")


class Commands(TyperGroup):
    """The ``ferkd`` command, or a group of commands in it, with an example of every command."""

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        command = super().get_command(ctx, cmd_name)
        path = f"{ctx.command_path} {cmd_name}".partition(" ")[2]  # without "ferkd"
        if command is not None and path in EXAMPLES:
            command.epilog = f"\b\nExample:\n  {EXAMPLES[path]}"
        return command


class Ferkd(Commands):
    """Its help shows the commands by purpose."""

    def format_help(self, ctx: Any, formatter: Any) -> None:
        self.format_usage(ctx, formatter)
        self.format_help_text(ctx, formatter)
        known = {name for group in GROUPS.values() for name in group}
        others = {
            name: command.get_short_help_str(200).rstrip(".")
            for name in self.list_commands(ctx)
            if name not in known
            and (command := self.get_command(ctx, name)) is not None
            and not command.hidden
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
            "ferkd COMMAND -h tells more. --version; --install-completion for this shell; "
            "--debug shows a traceback with an error."
        )
