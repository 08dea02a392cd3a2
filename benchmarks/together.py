"""CPU seconds of recipes on one loader over those of the same recipes one after the other.

    OMP_NUM_THREADS=1 python benchmarks/together.py flowers/train docs/results/together.json

20 images of each class are enlarged to 750 x 500 pixels. The student is tiny, so loading decides.
Single runs and runs together alternate; each figure is the least of its rounds.
"""

import json
import sys
import tempfile
import time
from pathlib import Path

import cv2

import ferkd
from ferkd.training import train, train_together
from ferkd.training.recipe import Recipe, make_recipe

ROUNDS, STEPS = 2, 24


def recipe(root: Path, lr: float) -> Recipe:
    data = {"images": str(root / "photos"), "store": str(root / "labels"), "image_size": 32}
    return make_recipe(
        {
            "method": "fkd",
            "data": {
                **data,
                "batch_size": 32,
                "crops_per_image": 1,
                "workers": 0,
                "scaled_decoding": False,
            },
            "student": {"name": "timm/test_resnet"},
            "optimizer": {"name": "sgd", "lr": lr},
            "schedule": {"steps": STEPS},
        }
    )


def main(images: Path, result: Path, root: Path) -> None:
    classes = sorted(path for path in images.iterdir() if path.is_dir())
    for folder in classes:
        (root / "photos" / folder.name).mkdir(parents=True)
        for file in sorted(folder.iterdir())[:20]:
            large = cv2.resize(cv2.imread(str(file)), (750, 500), interpolation=cv2.INTER_CUBIC)
            cv2.imwrite(str(root / "photos" / folder.name / file.name), large)
    teacher = f"timm/test_resnet?random=0&num_classes={len(classes)}&image_size=32"
    ferkd.label(root / "photos", teacher, root / "labels", crops=8)
    train(recipe(root, 0.05), root / "warm")
    seconds: dict[str, list[float]] = {}
    for number in range(ROUNDS):
        for count in (1, 2, 4):
            recipes = {f"r{i}": recipe(root, 0.05 + 0.01 * i) for i in range(count)}
            begun = time.process_time()
            if count == 1:
                train(recipes["r0"], root / f"alone-{number}")
            else:
                train_together(recipes, root / f"together-{count}-{number}")
            seconds.setdefault(str(count), []).append(time.process_time() - begun)
    one = min(seconds["1"])
    shares = {count: min(times) / (int(count) * one) for count, times in seconds.items()}
    report = {"steps": STEPS, "cpu_seconds": seconds, "share_of_single_runs": shares}
    result.write_text(json.dumps(report, indent=1) + "\n")
    print(json.dumps(report))


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        main(Path(sys.argv[1]), Path(sys.argv[2]), Path(folder))
