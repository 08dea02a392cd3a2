"""The trial of sampled tails on a real teacher's labels: gradients of a student, and its training.

First labels of all classes, for the training and the validation images; LITE0 stands for
``tf_efficientnet_lite0?checkpoint=tf_efficientnet_lite0.safetensors``, which
``python docs/results/pretrained_weights.py 0`` writes:

    ferkd label flowers/train --teacher timm/LITE0 --no-targets --crops 4 --top-k 0 --values f32 \\
        --image-size 160 --out train
    ferkd label flowers/val (the same) --out val
    python benchmarks/sampled_tails.py flowers train val --json FILE

A run that ended early goes on: what FILE holds is not done again. ``--runs`` bounds how many
students are trained at a time. docs/lab-log.md has the criterion.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from torch import Tensor, nn

from ferkd.crops import cut
from ferkd.images import decode, open_images
from ferkd.store import LabelStore
from ferkd.study.bench.forms import Stored
from ferkd.study.bench.measuring import machine
from ferkd.study.bench.tails import Sampled
from ferkd.system.statistics import mean, mean_interval

SIDE, BATCH, STEPS, SEEDS = 48, 64, 200, (0, 1, 2)
GRADIENT_BATCH, GRADIENT_BATCHES = 256, 8
FLAT = Stored(5, "u8")
FORMS = {"full": None, "flat": FLAT, "3 and 3 drawn": Sampled(3, 3), "1 and 6 drawn": Sampled(1, 6)}


def load(images: Path, store: LabelStore) -> tuple[Tensor, Tensor]:
    """All crops, uint8 [n, 3, S, S], and their logits [n, C]."""
    source, every = open_images(images, targets=False), np.arange(store.crops_per_image)
    places = {image: place for place, image in enumerate(source.ids)}
    pixels = np.zeros((len(store), len(every), SIDE, SIDE, 3), np.uint8)
    for row, image_id in enumerate(store.ids):
        image = decode(source.read(places[image_id]))
        boxes, flips = store.boxes(row, every), store.flips(row, every)
        for crop in every:
            cut(image, boxes[crop], bool(flips[crop]), SIDE, out=pixels[row, crop])
    logits = [labels.log_probs for _, _, labels in store.scan()]
    flat = torch.from_numpy(pixels.reshape(-1, SIDE, SIDE, 3)).permute(0, 3, 1, 2)
    return flat, torch.cat(logits)


def recovered(form: Stored | Sampled | None, logits: Tensor) -> Tensor:
    """What a student is given, float32 [n, C]: of all crops once, for a label is stored once."""
    unknown = torch.full((len(logits),), -1)
    if form is None:
        return logits.double().softmax(1).float()
    parts = zip(logits.split(1024), unknown.split(1024), strict=True)
    return torch.cat([form.recover(some, none).float() for some, none in parts])


def normalised(pixels: Tensor) -> Tensor:
    return pixels.float() / 127.5 - 1


def student(seed: int, classes: int) -> nn.Module:
    torch.manual_seed(seed)
    return timm.create_model(
        "resnet10t", num_classes=classes, channels=(32, 64, 128, 256), stem_width=16
    )


def trained(pixels: Tensor, targets: Tensor, seed: int) -> nn.Module:
    """A student after STEPS steps of soft cross-entropy, cosine from 2e-3."""
    model = student(seed, targets.shape[1]).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=0.05)
    order = torch.Generator().manual_seed(seed)
    rows = torch.cat([torch.randperm(len(pixels), generator=order) for _ in range(9)])
    for step in range(STEPS):
        for group in optimizer.param_groups:
            group["lr"] = 1e-3 * (1 + math.cos(math.pi * step / STEPS))
        some = rows[step * BATCH : (step + 1) * BATCH]
        loss = nn.functional.cross_entropy(model(normalised(pixels[some])), targets[some])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model.eval()


@torch.no_grad()
def judged(model: nn.Module, pixels: Tensor, logits: Tensor) -> dict[str, float]:
    """Against the teacher on the validation crops: mean KL in nats, share of equal answers."""
    answers = torch.cat([model(normalised(some)) for some in pixels.split(256)])
    log_p, log_q = logits.log_softmax(1), answers.log_softmax(1)
    kl = (log_p.exp() * (log_p - log_q)).sum(1).mean()
    return {
        "kl": float(kl),
        "agreement": float((log_p.argmax(1) == log_q.argmax(1)).float().mean()),
    }


def gradients(
    model: nn.Module, pixels: Tensor, exact: Tensor, forms: dict[str, Tensor]
) -> dict[str, float]:
    """The relative error of the whole gradient by form, root of the mean squares over batches."""
    model.train()
    parameters = [p for p in model.parameters() if p.requires_grad]
    rows = torch.randperm(len(pixels), generator=torch.Generator().manual_seed(0))
    right, wrong = 0.0, dict.fromkeys(forms, 0.0)
    for batch in range(GRADIENT_BATCHES):
        some = rows[batch * GRADIENT_BATCH : (batch + 1) * GRADIENT_BATCH]
        answers = model(normalised(pixels[some]))

        def squared(by: Tensor, answers: Tensor = answers) -> float:
            found = torch.autograd.grad(answers, parameters, by / len(by), retain_graph=True)
            return float(sum(g.double().square().sum() for g in found))

        right += squared(answers.detach().softmax(1) - exact[some])
        for name, given in forms.items():
            wrong[name] += squared(exact[some] - given[some])
    return {name: math.sqrt(value / right) for name, value in wrong.items()}


def over(one: list[float], other: list[float]) -> dict[str, Any]:
    """The mean of the differences by seed, and its 95 % interval."""
    differences = [a - b for a, b in zip(one, other, strict=True)]
    return {"mean": mean(differences), "interval": mean_interval(differences)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("images", type=Path, help="a folder with train/ and val/")
    parser.add_argument("train")
    parser.add_argument("val")
    parser.add_argument("--json", type=Path, required=True)
    parser.add_argument("--runs", type=int, default=99)
    options = parser.parse_args()
    torch.set_num_threads(1)
    store = LabelStore(options.train)
    pixels, logits = load(options.images / "train", store)
    shown, answers = load(options.images / "val", LabelStore(options.val))
    found: dict[str, Any] = {"runs": {}}
    if options.json.exists():
        found = json.loads(options.json.read_text())
    runs, done = found["runs"], 0
    every = {name: recovered(form, logits) for name, form in FORMS.items()}
    for seed in SEEDS:
        for name, targets in every.items():
            if f"{name}, seed {seed}" in runs or done == options.runs:
                continue
            begun, done = time.process_time(), done + 1
            model = trained(pixels, targets, seed)
            runs[f"{name}, seed {seed}"] = judged(model, shown, answers)
            if name == "full" and seed == 0:
                given = {other: every[other] for other in FORMS if other != "full"}
                found["gradient_error"] = {
                    "untrained": gradients(student(0, logits.shape[1]), pixels, targets, given),
                    "trained": gradients(model, pixels, targets, given),
                }
            print(f"{name}, seed {seed}: {time.process_time() - begun:.0f} s", flush=True)
            options.json.write_text(json.dumps(found, indent=1) + "\n")
    if len(runs) < len(FORMS) * len(SEEDS):
        return
    kl = {name: [runs[f"{name}, seed {seed}"]["kl"] for seed in SEEDS] for name in FORMS}
    ordered = logits.softmax(1).sort(1, descending=True).values
    found |= {
        "command": "python benchmarks/sampled_tails.py flowers train val --json FILE",
        "teacher": store.settings.teacher,
        "crops": len(logits),
        "mass": {k: float(ordered[:, :k].sum(1).mean()) for k in (1, 3, 5, 10)},
        "label_bytes": {n: 18 for n, form in FORMS.items() if form is not None},
        "kl": kl,
        "kl_over_flat": {name: over(kl[name], kl["flat"]) for name in FORMS if name != "flat"},
        "machine": machine(),
    }
    options.json.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
