"""Run as a script: kill a job again and again at random moments, resuming it each time.

``python kills.py label|train WORK KILLS SEED`` runs the job once undisturbed into WORK/whole, then
into WORK/killed, where each attempt is ended by SIGKILL after a random time, until KILLS attempts
have been killed; then it is left to finish. Prints how many kills fell within the work. Each
attempt is a fork, so that the imports are paid once.
"""

from __future__ import annotations

import os
import random
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

import timm
import torch

from ferkd.config import Recipe
from ferkd.labelling import label
from ferkd.teachers import Inputs, Teacher
from ferkd.training import train


def attempt(job: Callable[[], None], seconds: float | None) -> bool:
    """Run ``job`` in a fork and kill it after ``seconds``; whether it was killed."""
    pid = os.fork()
    if pid == 0:
        try:
            job()
            os._exit(0)
        except BaseException as error:
            print(f"job failed: {error!r}", file=sys.stderr, flush=True)
            os._exit(1)
    if seconds is not None:
        time.sleep(seconds)
        os.kill(pid, signal.SIGKILL)
    _, status = os.waitpid(pid, 0)
    if os.WIFSIGNALED(status):
        return True
    assert os.WEXITSTATUS(status) == 0, "the job failed"
    return False


def main() -> None:
    kind, work, kills, seed = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])
    job = {"label": label_job, "train": train_job}[kind]
    begun = time.monotonic()
    attempt(lambda: job(work, work / "whole"), None)
    duration = time.monotonic() - begun
    rng = random.Random(seed)
    done = 0
    while done < kills:
        # Short compared with the whole job, so that most attempts die in the middle of it.
        done += attempt(lambda: job(work, work / "killed"), rng.uniform(0, duration * 3 / kills))
        if finished(kind, work / "killed") and done < kills:
            break
    # Also where the result is there already: a kill may have come before the cleaning up.
    attempt(lambda: job(work, work / "killed"), None)
    print(f"{done} kills", flush=True)


def finished(kind: str, out: Path) -> bool:
    return (out / {"label": "manifest.json", "train": "result.json"}[kind]).exists()


def label_job(work: Path, out: Path) -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    module = timm.create_model("resnet10t", num_classes=2, channels=(8, 8, 16, 16), stem_width=8)
    teacher = Teacher(module, Inputs(image_size=32), spec="test")
    label(work / "images", teacher, out, crops=5, top_k=1, part_images=2, batch_size=4, resume=True)


def train_job(work: Path, out: Path) -> None:
    torch.set_num_threads(1)
    recipe = Recipe.model_validate(
        {
            "method": "ferkd",
            "data": {
                "images": str(work / "images"),
                "val": str(work / "images"),
                "store": str(work / "whole-labels"),
                "image_size": 32,
                "batch_size": 8,
                "crops_per_image": 2,
                "workers": 0,
            },
            "student": {
                "name": "timm/resnet10t",
                "model_args": {"channels": [8, 8, 16, 16], "stem_width": 8, "drop_rate": 0.2},
            },
            "schedule": {"steps": 60},
            "mix": {"kind": "selfmix", "probability": 0.5},
            "ema": 0.9,
            "evaluation": {"every_epochs": 2},
            "checkpoint_seconds": 0.05,
            "log_steps": 5,
        }
    )
    train(recipe, out, resume=True)


if __name__ == "__main__":
    main()
