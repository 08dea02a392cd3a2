"""How near the labelling pass comes to its teacher's bare forward pass, and whether its memory
grows with the images or the crops."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ferkd.images import open_images
from ferkd.labelling.run import Progress, label
from ferkd.models.teacher import Teacher, load_teacher
from ferkd.study.bench.measuring import (
    Target,
    described,
    in_a_fresh_process,
    in_turns,
    machine,
    peak_resident,
    seconds_of,
    summary,
)
from ferkd.study.bench.photos import PHOTO_SIDES, copy_photos, write_photos
from ferkd.system.compute import Normalise, autocast, resolve_precision
from ferkd.system.settings import check_least

PASS, FORWARD, CALL = "labelling pass", "bare forward pass", "forward pass from uint8"
_FLAT = 1.05  # peak memory with twice the work, at most


def bench_label(
    images: str | Path | None = None,
    *,
    teacher: str = "timm/resnet18?random=0",
    image_size: int = 224,
    batch_size: int = 128,
    precision: str = "auto",
    device: str = "auto",
    photos: int = 64,
    crops: int = 10,
    workers: int = 2,
    repeats: int = 3,
    memory: bool = True,
) -> dict[str, Any]:
    """Crops per second of labelling ``photos`` images x ``crops``, and of the teacher alone.

    A pass goes from the first file read to the last record written; loading the teacher does not
    count. The bare forward pass is that of the network on one normalised batch that is on the
    device already, in the same precision; "from uint8" adds what the teacher does around it:
    normalisation and a look whether the logits are finite. ``images`` is a folder of class folders
    of which ``photos`` are taken; without one, pictures are made. With ``memory``, the peak memory
    of fresh processes that label half of the images, all of them, and half with twice the crops.
    ``value`` is the pass's. Raises InputError for counts out of range.
    """
    check_least(1, batch_size=batch_size, crops=crops, workers=workers, repeats=repeats)
    check_least(2, photos=photos)
    with tempfile.TemporaryDirectory(prefix="ferkd-bench-") as place:
        folder = _photos(Path(place) / "photos", images, photos)
        options = {"image_size": image_size, "device": device, "precision": precision}
        classes = len(open_images(folder).class_names)
        loaded = load_teacher(teacher, num_classes=classes, **options)  # type: ignore[arg-type]
        forward, call = forwards(loaded, batch_size)
        total = photos * crops
        passes = max(1, total // batch_size)

        def labelling(turn: int) -> float:
            last: list[Progress] = []
            label(
                folder,
                loaded,
                Path(place) / f"store-{turn}",
                crops=crops,
                batch_size=batch_size,
                workers=workers,
                progress=last.append,
            )
            return last[-1].crops_per_second

        def alone(function: Callable[[], object]) -> Callable[[int], float]:
            def measure(turn: int) -> float:
                def several() -> None:
                    for _ in range(passes):
                        function()

                return passes * batch_size / seconds_of(several, loaded.device)

            return measure

        sides = {PASS: labelling, FORWARD: alone(forward), CALL: alone(call)}
        found = {n: summary(v) for n, v in in_turns(sides, repeats, uncounted=1).items()}
        peaks = None
        if memory:
            half = copy_photos(open_images(folder), Path(place) / "half", photos // 2)
            spec = [teacher, classes, image_size, batch_size, precision, device, workers]
            peaks = {
                name: in_a_fresh_process(
                    "ferkd.study.bench.label:probe", str(of), str(Path(place) / name), many, *spec
                )
                for name, of, many in (
                    ("once", half, crops),
                    ("twice the images", folder, crops),
                    ("twice the crops", half, 2 * crops),
                )
            }
    rate = {name: side["median"] for name, side in found.items()}
    targets = {f"{PASS} / {FORWARD}": Target(0.9, rate[PASS] / rate[FORWARD])}
    if peaks is not None:
        for name in ("twice the images", "twice the crops"):
            targets[f"peak memory with {name}"] = Target(_FLAT, peaks[name] / peaks["once"], "<=")
    return {
        "benchmark": "label",
        "value": rate[PASS],
        "unit": "crops per second",
        "baselines": {name: rate[name] for name in (FORWARD, CALL)},
        "ratios": {name: rate[PASS] / rate[name] for name in (FORWARD, CALL)},
        "targets": described(targets),
        "details": {
            "teacher": teacher,
            "image_size": loaded.image_size,
            "batch_size": batch_size,
            "precision": loaded.precision,
            "device": str(loaded.device),
            "photos": photos,
            "crops": crops,
            "workers": workers,
            "repeats": repeats,
            "crops_per_second": found,
            "peak_bytes": peaks,
        },
        "machine": machine(),
    }


def forwards(teacher: Teacher, batch: int) -> tuple[Callable[[], object], Callable[[], object]]:
    """The teacher's network on a resident normalised batch, and the teacher on a uint8 one."""
    size, device = teacher.image_size, teacher.device
    noise = np.random.default_rng(0).integers(0, 256, (batch, size, size, 3), np.uint8)
    crops = torch.from_numpy(noise).to(device).permute(0, 3, 1, 2)
    pixels = Normalise(teacher.mean, teacher.std, device)(crops)
    dtype = resolve_precision(teacher.precision, device)  # type: ignore[arg-type]
    module = teacher.module.eval()

    def forward() -> object:
        with torch.inference_mode(), autocast(device, dtype):
            return module(pixels)

    return forward, lambda: teacher(crops)


def probe(
    folder: str,
    out: str,
    crops: int,
    teacher: str,
    classes: int,
    image_size: int,
    batch_size: int,
    precision: str,
    device: str,
    workers: int,
) -> int:
    """Label a folder in this process; the largest number of bytes that it had in memory."""
    loaded = load_teacher(
        teacher, num_classes=classes, image_size=image_size, device=device, precision=precision
    )
    label(folder, loaded, out, crops=crops, batch_size=batch_size, workers=workers)
    return peak_resident()


def _photos(place: Path, images: str | Path | None, count: int) -> Path:
    if images is None:
        return write_photos(place, count, sides=PHOTO_SIDES)
    return copy_photos(open_images(images), place, count)
