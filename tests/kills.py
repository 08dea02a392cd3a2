"""Run as a script: kill a training run again and again at random moments, resuming it each time.

``python kills.py WORK KILLS SEED`` trains once undisturbed into WORK/whole, then into WORK/killed,
where each attempt is ended by SIGKILL after a random time, until KILLS attempts have been killed;
then it is left to finish. Prints how many kills fell within the work. Each attempt is a fork, so
that the imports are paid once.
"""

from __future__ import annotations

import os
import random
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch

from ferkd.training import train
from ferkd.training.recipe import Recipe


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
    work, kills, seed = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    begun = time.monotonic()
    attempt(lambda: train_job(work, work / "whole"), None)
    duration = time.monotonic() - begun
    rng = random.Random(seed)
    done = 0
    while done < kills and not (work / "killed" / "result.json").exists():
        # Short compared with the whole run, so that most attempts die in the middle of it.
        seconds = rng.uniform(0.1, 1.5) * duration / kills
        done += attempt(lambda: train_job(work, work / "killed"), seconds)
    attempt(lambda: train_job(work, work / "killed"), None)
    print(f"{done} kills", flush=True)


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
            "schedule": {"steps": 120},
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
