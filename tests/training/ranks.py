"""What each process of a group does in tests: ranks.py TASKS.json, a list of tasks one by one.

A task trains a recipe, stops it at a step, trains recipes on one loader, or predicts the central
crops of images.
"""

from __future__ import annotations

import json
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from torch import distributed

sys.path.insert(0, str(Path(__file__).parents[1]))


def trained(recipe: dict[str, Any], out: str, stop: int = 0, resume: bool = False) -> None:
    from runs import interrupt_at

    from ferkd.training import train
    from ferkd.training.recipe import make_recipe

    progress = interrupt_at(stop) if stop else None
    with suppress(KeyboardInterrupt):
        result = train(make_recipe(recipe), out, progress=progress, resume=resume)
        assert result["world_size"] == distributed.get_world_size()


def together(recipes: dict[str, dict[str, Any]], out: str) -> None:
    from ferkd.training import train_together
    from ferkd.training.recipe import make_recipe

    results = train_together({name: make_recipe(one) for name, one in recipes.items()}, out)
    assert {result["world_size"] for result in results.values()} == {distributed.get_world_size()}


def predicted(images: str, out: str) -> None:
    from nets import small_convnet

    from ferkd.evaluating.center_crops import CenterCrops
    from ferkd.evaluating.predictions import predict
    from ferkd.images import open_images
    from ferkd.system.compute import Normalise
    from ferkd.system.distributed import find_ranks

    crops = CenterCrops(open_images(images), image_size=8, ranks=find_ranks())
    for again in range(2):  # the second time from memory
        found = predict(
            small_convnet(0), crops, normalise=Normalise([0.5] * 3, [0.5] * 3), batch_size=32
        )
        answer = {"logits": found.logits, "rows": found.rows, "targets": found.targets}
        torch.save(answer, f"{out}.{distributed.get_rank()}.{again}")


if __name__ == "__main__":
    torch.set_num_threads(1)
    distributed.init_process_group("gloo")
    for task in json.loads(Path(sys.argv[1]).read_text()):
        {"train": trained, "together": together, "predict": predicted}[task.pop("do")](**task)
    distributed.destroy_process_group()
