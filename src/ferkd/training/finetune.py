"""Fine-tuning a pretrained network on class folders with care: never below its own linear probe.

A naive recipe destroys what was paid for: EfficientNet-Lite0 with ImageNet weights gave 87.2 % on
the flowers by a linear probe at 112 px and 82.2 % after six epochs of AdamW at 5e-4. So the head is
fitted first, on frozen features; then all layers learn at a low rate that falls with depth; and
what is kept is the best on the validation images: a look on the way, a blend of the probe's weights
with the last ones (Wortsman et al., Robust fine-tuning of zero-shot models, CVPR 2022), or the
probe.
"""

from __future__ import annotations

import copy
import logging
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch

from ferkd.evaluating.center_crops import CenterCrops
from ferkd.evaluating.measures import measure
from ferkd.evaluating.predictions import match_classes, predict
from ferkd.images import open_images
from ferkd.models.student import ModelConfig, Student, build_student, check_input, normalisation
from ferkd.models.weights import read_state_dict
from ferkd.system.compute import Normalise, Precision, resolve_device, resolve_precision
from ferkd.system.errors import InputError
from ferkd.system.files import write_json
from ferkd.system.interrupt import Interrupt
from ferkd.system.locks import held
from ferkd.system.plain import read_json
from ferkd.system.results import Result
from ferkd.system.storage import local_path
from ferkd.training import folder as folders
from ferkd.training.checkpoint import load_checkpoint, save_checkpoint, save_weights
from ferkd.training.probe import features, fit, head_of
from ferkd.training.recipe import Recipe, make_recipe
from ferkd.training.run import build_trainer
from ferkd.training.trainer import Trainer

_LEAST_STEPS = 20  # between two evaluations
_NOTHING = {"top1": -1.0, "nll": float("inf")}  # what every look is better than
BLENDS = (0.25, 0.5, 0.75)  # shares of the last weights beside the probe's
PROBING = "images seen by the frozen network"  # what is counted before the steps
PROBE, PROBE_WEIGHTS, BEST = "probe.json", "probe.safetensors", "best.safetensors"

log = logging.getLogger("ferkd")
Progress = Callable[[int, int, str], None]


@dataclass(frozen=True, kw_only=True)
class FineTuning:
    """Settings of :func:`fine_tune`.

    ``network`` starts from pretrained weights or a file of yours. ``lr`` is the head's; a layer n
    below it learns at lr * layer_decay^n. Crops hold at least ``smallest_crop`` of an image's area:
    the probe knows whole objects. The running statistics of BatchNorm stay as they came: those of
    augmented crops in batches of 32 are not those of the central crops that are judged. The run
    ends after ``patience`` evaluations, one each ``evaluate_epochs``, that are not better than the
    best before them; the probe is not among those, since a run may start below it and climb.
    ``epochs`` 0 keeps the probe. Labels are not smoothed: a teacher's confidence is what it
    teaches.
    """

    network: Student
    images: str
    val: str
    image_size: int = 224
    epochs: float = 6.0
    batch_size: int = 32
    lr: float = 3e-4
    layer_decay: float = 0.9
    smallest_crop: float = 0.35
    patience: int = 3
    evaluate_epochs: float = 1.0
    crop_fraction: float = 0.875
    workers: int = 2
    seed: int = 0
    device: str = "auto"
    precision: Precision = "auto"

    def recipe(self, out: Path) -> Recipe:
        """The training run that follows the probe, which starts from its weights in ``out``."""
        start = self.network.model_copy(
            update={"pretrained": False, "weights": (out / PROBE_WEIGHTS).resolve()}
        )
        return make_recipe(
            {
                "method": "hard",
                "seed": self.seed,
                "data": {
                    "images": self.images,
                    "val": self.val,
                    "image_size": self.image_size,
                    "batch_size": self.batch_size,
                    "workers": self.workers,
                    "crops": {"scale": [self.smallest_crop, 1.0]},
                },
                "student": start.model_dump(mode="json"),
                "optimizer": {"name": "adamw", "lr": self.lr, "layer_decay": self.layer_decay},
                "schedule": {"epochs": max(self.epochs, 1e-3), "warmup": 0.1},
                "loss": {"label_smoothing": 0.0},
                "ema": 0.99,
                "frozen_statistics": True,
                "device": self.device,
                "precision": self.precision,
                "evaluation": {
                    "every_epochs": self.evaluate_epochs,
                    "crop_fraction": self.crop_fraction,
                },
            }
        )


@dataclass(frozen=True, eq=False, kw_only=True)
class FineTuned(Result):
    """What was kept: ``kept_step`` 0 is the linear probe, whose accuracy is ``probe_top1``.

    ``kept_share`` of that step's weights, the rest being the probe's; ``last_top1`` is the accuracy
    of the last step alone.
    """

    student: str
    top1: float
    probe_top1: float
    kept_step: int
    kept_share: float
    last_top1: float
    nll: float
    ece: float
    steps: int
    probe_penalty: float
    seconds: float
    run: str


def fine_tune(
    settings: FineTuning,
    out: str | Path,
    *,
    resume: bool = False,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> FineTuned:
    """Fit a head and fine-tune into the folder ``out``, a run; returns its result.

    An interrupted call continues with ``resume``, on the CPU to the bit. ``progress(done, total,
    note)`` hears of images and steps. Raises InputError for what cannot be before anything is
    written.
    """
    out = local_path(out, "folder for the run")
    recipe = settings.recipe(out)
    folders.prepare(out, recipe.to_dict(), resume=resume, overwrite=overwrite)
    result = out / folders.RESULT
    if resume and result.is_file():
        return FineTuned.from_json(read_json(result, "result of a run"), result)
    with held(out, folders.BUSY.format(out)):
        folders.prepare(out, recipe.to_dict(), resume=resume, overwrite=overwrite)
        if overwrite:
            folders.clear(out)
            for name in (PROBE, PROBE_WEIGHTS, BEST):
                (out / name).unlink(missing_ok=True)
        found = _tuned(settings, out, recipe, progress or (lambda done, total, note: None))
        write_json(result, found)
        (out / BEST).unlink(missing_ok=True)
    return found


def _tuned(settings: FineTuning, out: Path, recipe: Recipe, tell: Progress) -> FineTuned:
    """The probe, what follows it, and the weights of what is kept; the result."""
    begun = time.perf_counter()
    judge = _Judge(settings)
    if not (out / PROBE).is_file():
        _probe(settings, out, recipe, judge, begun, tell)
    probe = read_json(out / PROBE, "linear probe")
    if settings.epochs <= 0:
        kept = _probed(probe)
        steps, seconds = 0, 0.0
        model = build_student(recipe.student, judge.classes, image_size=settings.image_size)
        save_weights(out / folders.WEIGHTS, model)
    else:
        trainer, _, _ = build_trainer(recipe)
        kept, seconds = _train(recipe, settings, out, trainer, judge, probe, tell)
        steps = trainer.step
        source = BEST if kept["step"] else PROBE_WEIGHTS
        trainer.model.load_state_dict(read_state_dict(out / source))
        save_weights(out / folders.WEIGHTS, trainer.model)
    return FineTuned(
        student=settings.network.name,
        top1=kept["top1"],
        probe_top1=probe["top1"],
        kept_step=kept["step"],
        kept_share=kept["share"],
        last_top1=kept.get("last", probe["top1"]),
        nll=kept["nll"],
        ece=kept["ece"],
        steps=steps,
        probe_penalty=probe["penalty"],
        seconds=probe["seconds"] + seconds,
        run=str(out),
    )


class _Judge:
    """Measures a model on the validation images."""

    def __init__(self, settings: FineTuning) -> None:
        self.train, self.val = open_images(settings.images), open_images(settings.val)
        self.class_names = self.train.class_names
        self.classes = len(self.class_names)
        if self.classes < 2:
            raise InputError(
                f"{self.train.name} has {self.classes} class; a classifier needs at least 2 class "
                "folders"
            )
        targets = torch.from_numpy(self.val.targets.astype(np.int64))
        self.targets = match_classes(
            targets, self.val.class_names, self.class_names, source=self.val.name
        )
        self.crops = self._crops(settings, self.val)
        self.train_crops = self._crops(settings, self.train)

    def __call__(self, model: torch.nn.Module, normalise: Normalise, dtype: torch.dtype) -> Any:
        found = predict(model, self.crops, normalise=normalise, dtype=dtype, batch_size=32)
        return measure(found.logits, self.targets[found.rows])

    def _crops(self, settings: FineTuning, source: Any) -> CenterCrops:
        return CenterCrops(
            source,
            image_size=settings.image_size,
            crop_fraction=settings.crop_fraction,
            workers=settings.workers,
        )


def _probe(
    settings: FineTuning, out: Path, recipe: Recipe, judge: _Judge, begun: float, tell: Progress
) -> None:
    """Fit the head on frozen features; leaves the network with it, its config and its figures.

    The recipe is written first, once nothing is left that the caller could have got wrong.
    """
    torch.manual_seed(settings.seed)
    device = resolve_device(settings.device)
    dtype = resolve_precision(settings.precision, device)
    network = settings.network
    model = build_student(network, judge.classes, image_size=settings.image_size)
    check_input(model, network.name, settings.image_size, judge.classes)
    mean, std = normalisation(network, model)
    folders.write_recipe(out, recipe.to_dict())
    model, normalise = model.to(device), Normalise(mean, std, device)
    head = head_of(model, judge.classes)
    total = len(judge.train)

    def counted() -> Any:
        done = 0
        for batch in judge.train_crops.batches(32):
            done += len(batch[1])
            tell(done, total, PROBING)
            yield batch

    crops = _Heard(judge.train_crops, counted)
    values, rows = features(model, head, cast(Any, crops), normalise=normalise, dtype=dtype)
    targets = torch.from_numpy(judge.train.targets.astype(np.int64))[rows]
    known = targets >= 0
    weight, bias, penalty = fit(values[known], targets[known], judge.classes)
    with torch.no_grad():
        head.weight.copy_(weight)
        if head.bias is None:
            raise InputError(f"the head of {network.name} has no bias; give another network")
        head.bias.copy_(bias)
    figures = judge(model, normalise, dtype)
    save_weights(out / PROBE_WEIGHTS, model)
    config = ModelConfig(
        architecture=network.name,
        num_classes=judge.classes,
        class_names=judge.class_names,
        image_size=settings.image_size,
        mean=mean,
        std=std,
        crop_fraction=settings.crop_fraction,
        model_args=network.model_args,
    )
    write_json(out / folders.CONFIG, config.model_dump(mode="json"))
    seconds = time.perf_counter() - begun
    write_json(out / PROBE, {**figures, "penalty": penalty, "seconds": seconds})
    log.info(
        "linear probe: %.1f %% of the validation images, %.0f s", 100 * figures["top1"], seconds
    )


class _Heard:
    """Crops whose batches are counted aloud."""

    def __init__(self, crops: CenterCrops, batches: Callable[[], Any]) -> None:
        self.images, self._batches = crops.images, batches

    def batches(self, batch_size: int) -> Any:
        return self._batches()


def _train(
    recipe: Recipe,
    settings: FineTuning,
    out: Path,
    trainer: Trainer,
    judge: _Judge,
    probe: dict[str, Any],
    tell: Progress,
) -> tuple[dict[str, Any], float]:
    """Train from the probe; the figures and the step of what is kept, and the seconds it took."""
    kept, best = _probed(probe), _NOTHING
    idle, spent, last_top1 = 0, 0.0, float(probe["top1"])
    identity = folders.recipe_hash(recipe.to_dict())
    checkpoint = out / folders.CHECKPOINT
    if checkpoint.is_file():
        state = load_checkpoint(checkpoint)
        if state["recipe"] != identity:
            raise InputError(f"{checkpoint} is of another recipe; start anew with --overwrite")
        trainer.load_state(state)
        kept, idle, spent = state["kept"], state["idle"], state["spent"]
        best = state.get("best", _NOTHING)  # unknown to states of before
        last_top1 = state["last_top1"]
    images = len(judge.train)
    # Of few images an epoch is few steps, after which nothing can be told yet.
    every = max(_LEAST_STEPS, round(settings.evaluate_epochs * images / settings.batch_size))
    begun = time.perf_counter() - spent

    def save() -> None:
        state = trainer.state()
        state |= {"recipe": identity, "kept": kept, "best": best, "idle": idle}
        state |= {"last_top1": last_top1}
        save_checkpoint(checkpoint, {**state, "spent": time.perf_counter() - begun})

    note = f"steps, probe {probe['top1']:.1%}"
    with Interrupt() as interrupt, closing(cast(Any, trainer.run())) as steps:
        saved = time.monotonic()
        if idle < settings.patience and trainer.step < trainer.steps:
            for step in steps:
                tell(step, trainer.steps, note)
                last = step == trainer.steps
                if last or step % every == 0:
                    trainer.mean_loss()  # raises where training has diverged
                    figures = judge(trainer.best_model, trainer.normalise, trainer.dtype)
                    note = f"steps, probe {probe['top1']:.1%}, now {figures['top1']:.1%}"
                    log.info("step %d of %d: %.1f %%", step, trainer.steps, 100 * figures["top1"])
                    idle += 1
                    last_top1 = figures["top1"]
                    if _better(figures, best):
                        best, idle = {k: figures[k] for k in ("top1", "nll")}, 0
                    if _better(figures, kept):
                        kept = {k: figures[k] for k in ("top1", "nll", "ece")}
                        kept |= {"step": step, "share": 1.0}
                        save_weights(out / BEST, trainer.best_model)
                due = time.monotonic() - saved > recipe.checkpoint_seconds
                if last or due or step % every == 0 or interrupt.requested:
                    save()
                    saved = time.monotonic()
                if interrupt.requested and not last:
                    log.warning("interrupted at step %d; the state is saved", step)
                    raise KeyboardInterrupt
                if idle >= settings.patience:
                    break
    kept = {**_blended(out, trainer, judge, kept, tell), "last": last_top1}
    return kept, time.perf_counter() - begun


def _probed(probe: dict[str, Any]) -> dict[str, Any]:
    return {**{k: probe[k] for k in ("top1", "nll", "ece")}, "step": 0, "share": 0.0}


def _blended(
    out: Path, trainer: Trainer, judge: _Judge, kept: dict[str, Any], tell: Progress
) -> dict[str, Any]:
    """Look at the blends of the probe's weights with the last ones; keeps the best of all."""
    probe = read_state_dict(out / PROBE_WEIGHTS)
    last = trainer.best_model.state_dict()
    model = copy.deepcopy(trainer.best_model)
    for share in BLENDS:
        note = f"steps, {share:.0%} of them beside the probe, best {kept['top1']:.1%}"
        tell(trainer.steps, trainer.steps, note)
        model.load_state_dict(
            {
                name: torch.lerp(probe[name].to(value), value, share)
                if value.is_floating_point()
                else value
                for name, value in last.items()
            }
        )
        figures = judge(model, trainer.normalise, trainer.dtype)
        log.info("%.0f %% of the last weights: %.1f %%", 100 * share, 100 * figures["top1"])
        if _better(figures, kept):
            kept = {k: figures[k] for k in ("top1", "nll", "ece")}
            kept |= {"step": trainer.step, "share": share}
            save_weights(out / BEST, model)
    return kept


def _better(figures: dict[str, float], kept: dict[str, Any]) -> bool:
    ours, best = (figures["top1"], -figures["nll"]), (kept["top1"], -kept["nll"])
    return ours > best
