"""A whole training run: from a recipe to a folder with weights, metrics and a result."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import closing, nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from torch import nn

from ferkd.evaluating.run import CenterCrops, match_classes, measure, predict
from ferkd.images import ImageSource, open_images, refuse_inside_images
from ferkd.methods import METHODS
from ferkd.methods.base import Setup
from ferkd.models.student import (
    ModelConfig,
    build_student,
    check_input,
    check_training,
    normalisation,
)
from ferkd.store.checking import ChecksumCheck
from ferkd.store.place import refuse_inside_store
from ferkd.system.compute import Normalise, resolve_device, resolve_precision
from ferkd.system.distributed import agreed, as_first, by_first, gathered, process_group
from ferkd.system.errors import InputError
from ferkd.system.files import write_json
from ferkd.system.interrupt import Interrupt
from ferkd.system.launch import is_first_here, restarts
from ferkd.system.plain import read_json
from ferkd.training import folder as folders
from ferkd.training.checkpoint import load_checkpoint, save_checkpoint, save_weights
from ferkd.training.data import TrainingData, mixer, open_data
from ferkd.training.metrics import MetricsLog, require_tensorboard
from ferkd.training.optim import build_optimizer
from ferkd.training.schedule import learning_rate
from ferkd.training.trainer import Trainer

if TYPE_CHECKING:
    from ferkd.training.recipe import Recipe

Progress = Callable[[dict[str, Any]], None]

log = logging.getLogger("ferkd")


def train(
    recipe: Recipe,
    out: str | Path,
    *,
    resume: bool = False,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Train the student of ``recipe`` and leave the run in the folder ``out``; returns its result.

    ``progress`` is called with the lines of metrics.jsonl ("kind" train or eval) and before them
    with {"kind": "start", "steps", "step", ...}. With ``resume`` an interrupted run continues (to
    the bit on the CPU), a finished one returns its result at once, and a missing one starts.
    On SIGINT and SIGTERM the state is saved and KeyboardInterrupt raised. Raises InputError for
    anything that the recipe, the folder or the data get wrong, before anything is written;
    RuntimeError when training diverges.

    The processes of a process group, or those that torchrun started, train together: the batch of
    a step is that of all, the first one writes and calls ``progress``, all return the result.
    """
    with process_group(resolve_device(recipe.device).type == "cuda"):
        run = begin(recipe, Path(out), resume=resume, overwrite=overwrite, progress=progress)
        if not isinstance(run, Run):
            return run
        with Interrupt() as interrupt:
            for _ in run.steps(interrupt):
                pass
        return run.finish()


def begin(
    recipe: Recipe,
    out: Path,
    *,
    resume: bool,
    overwrite: bool,
    progress: Progress | None,
    data: TrainingData | None = None,
) -> Run | dict[str, Any]:
    """A run before its next step, its folder made; the result of one that is finished.

    ``data`` is what another recipe opened, where the two share it. Raises as :func:`train` does.
    """
    settings = recipe.to_dict()

    def prepared() -> dict[str, Any] | None:
        check_restart(resume)
        refuse_inside_images(out, recipe.data.images, recipe.data.val)
        refuse_inside_store(out)
        folders.prepare(out, settings, resume=resume, overwrite=overwrite)
        if resume and (out / folders.RESULT).is_file():
            return dict(read_json(out / folders.RESULT, "result of a run"))
        return None

    if (finished := by_first(prepared)) is not None:
        return finished
    if recipe.tensorboard:
        require_tensorboard()

    trainer, data, config = build_trainer(recipe, data)
    _check_same_data(data.identity)
    evaluation = _evaluation(recipe, trainer, config)

    def begun() -> dict[str, Any] | None:
        checkpoint = out / folders.CHECKPOINT
        state = load_checkpoint(checkpoint) if resume and checkpoint.is_file() else None
        if state is not None:
            _check_same(state, folders.recipe_hash(settings), data.identity, checkpoint)
        out.mkdir(parents=True, exist_ok=True)
        if overwrite:
            folders.clear(out)
        folders.write_recipe(out, settings)
        write_json(out / folders.CONFIG, config.model_dump(mode="json"))
        return state

    run = Run(recipe, out, data, trainer, evaluation, progress)
    run.restore(by_first(begun))
    return run


def check_restart(resume: bool) -> None:
    """Refuse a start by torchrun's --max-restarts that would not continue what was begun."""
    if restarts() and not resume:
        raise InputError(
            f"torchrun has started these processes again (restart {restarts()}), and only --resume "
            "goes on with what was begun; give it from the first start (a missing run is begun)"
        )


def _check_same_data(identity: str) -> None:
    """Refuse processes that see different images or labels: their batches would not fit."""
    if len(others := set(gathered(identity))) > 1:
        raise InputError(
            f"the processes see {len(others)} different sets of images or labels; give all the "
            "same files"
        )


def build_trainer(
    recipe: Recipe, data: TrainingData | None = None
) -> tuple[Trainer, TrainingData, ModelConfig]:
    """What a run trains with, at its first step: nothing is written. Raises InputError."""
    data = open_data(recipe) if data is None else data
    torch.manual_seed(recipe.seed)
    size = recipe.data.image_size
    model = build_student(recipe.student, data.num_classes, image_size=size)
    _check_student(recipe, model, data)
    mean, std = normalisation(recipe.student, model)
    config = ModelConfig(
        architecture=recipe.student.name,
        num_classes=data.num_classes,
        class_names=data.class_names,
        image_size=size,
        mean=mean,
        std=std,
        crop_fraction=recipe.evaluation.crop_fraction,
        model_args=recipe.student.model_args,
    )
    return _trainer(recipe, model, data, config), data, config


def _check_student(recipe: Recipe, model: nn.Module, data: TrainingData) -> None:
    """Refuse a student that does not take what it will be shown, at any of its sizes."""
    name, size, classes = recipe.student.name, recipe.data.image_size, data.num_classes
    check_input(model, name, size, classes)
    for _, side in recipe.schedule.image_size or ():
        check_input(
            *(model, name, side, classes),
            remedy="leave that size out of schedule.image_size, or use a student of any size",
        )
    check_training(model, name, size, classes, data.loader.batch_size)


def _trainer(recipe: Recipe, model: nn.Module, data: TrainingData, config: ModelConfig) -> Trainer:
    device = resolve_device(recipe.device)
    dtype = resolve_precision(recipe.precision, device)
    loader, schedule = data.loader, recipe.schedule
    ranks = loader.ranks
    if ranks.world_size > 1 and device.type == "cuda":
        device = torch.device("cuda", torch.cuda.current_device())
    if recipe.sync_batchnorm and ranks.world_size > 1:
        if device.type != "cuda":
            raise InputError(
                f"sync_batchnorm needs CUDA devices, and the device is {device.type}; set it to "
                "false (each process then normalises over its own crops)"
            )
        model = nn.SyncBatchNorm.convert_sync_batchnorm(model)
    model = model.to(device)
    steps = schedule.total_steps(loader.images, loader.batch_size)
    warmup = schedule.warmup_steps(loader.images, loader.batch_size)

    def rate(step: int) -> float:
        return learning_rate(
            step, total=steps, warmup=warmup, peak=recipe.optimizer.lr, floor=schedule.min_lr
        )

    setup = Setup(
        num_classes=data.num_classes,
        images=loader.images,
        batch_size=loader.batch_size,
        steps=steps,
        device=device,
        mean=config.mean,
        std=config.std,
        teacher=data.teacher,
        store=data.store,
        unlabelled=data.unlabelled,
    )
    return Trainer(
        model,
        loader,
        METHODS[recipe.method].make(recipe.loss, setup),
        optimizer=build_optimizer(recipe.optimizer, model),
        learning_rate=rate,
        steps=steps,
        normalise=Normalise(config.mean, config.std, device, reuse=True),
        dtype=dtype,
        mixer=mixer(
            recipe.mix,
            crops_per_image=recipe.data.crops_per_image,
            seed=recipe.seed,
            num_classes=data.num_classes,
            label_smoothing=getattr(recipe.loss, "label_smoothing", 0.0),
            ranks=ranks,
        ),
        ema=recipe.ema,
        clip_grad=recipe.clip_grad,
        channels_last=recipe.channels_last,
        compile=recipe.compile,
        accumulate=recipe.accumulate,
        ranks=ranks,
    )


Evaluate = Callable[[], dict[str, float]]


def _evaluation(recipe: Recipe, trainer: Trainer, config: ModelConfig) -> Evaluate | None:
    """What evaluates the student on the validation images; None where the recipe has none."""
    if recipe.data.val is None:
        return None
    images: ImageSource = open_images(recipe.data.val)
    targets = torch.from_numpy(images.targets.astype(np.int64))
    if config.class_names:
        targets = match_classes(targets, images.class_names, config.class_names, source=images.name)
    elif len(images.class_names) != config.num_classes:
        raise InputError(
            f"{images.name} has {len(images.class_names)} classes, the labels have "
            f"{config.num_classes}; give validation images of the labels' classes as data.val"
        )
    crops = CenterCrops(
        images,
        image_size=config.image_size,
        crop_fraction=config.crop_fraction,
        workers=recipe.data.workers,
        ranks=trainer.ranks,
    )

    def evaluate() -> dict[str, float]:
        as_first(trainer.best_model)  # each process's batch normalisation has seen its own crops
        found = predict(
            trainer.best_model,
            crops,
            normalise=trainer.normalise,
            dtype=trainer.dtype,
            batch_size=recipe.evaluation.batch_size,
        )
        return measure(found.logits, targets[found.rows])

    return evaluate


def _check_same(state: dict[str, Any], recipe: str, data: str, checkpoint: Path) -> None:
    if state["recipe"] != recipe:
        raise InputError(
            f"{checkpoint} belongs to another recipe than the recipe.yaml beside it; start anew "
            "with --overwrite"
        )
    if state["data"] != data:
        raise InputError(
            f"the images, their classes or the labels are not those that {checkpoint} was trained "
            "on; restore them, or start anew with --overwrite"
        )


class Run:
    """The outer loop: logs, evaluates and saves between the trainer's steps."""

    def __init__(
        self,
        recipe: Recipe,
        out: Path,
        data: TrainingData,
        trainer: Trainer,
        evaluate: Evaluate | None,
        progress: Progress | None,
    ) -> None:
        self.recipe, self.out, self.data, self.trainer = recipe, out, data, trainer
        self.evaluate = evaluate
        store = data.store if is_first_here() else None  # once a machine
        self.check = None if store is None else ChecksumCheck(store)
        self.progress = progress or (lambda line: None)
        self.figures: dict[str, float] = {}  # of the last evaluation
        every, loader = recipe.evaluation.every_epochs, data.loader
        steps_per_epoch = loader.images / loader.batch_size
        self.eval_steps = trainer.steps if every is None else max(1, round(every * steps_per_epoch))

    def restore(self, state: dict[str, Any] | None) -> None:
        """Go on from ``state`` (None: from the start)."""
        if state is not None:
            self.trainer.load_state(state)
            self.figures = state["figures"]
        else:
            self.trainer.diversify()

    def steps(self, interrupt: Interrupt) -> Iterator[int]:
        """Train to the last step, yielding after each what it was; logs, evaluates and saves.

        Raises KeyboardInterrupt once the state is saved.
        """
        trainer, recipe = self.trainer, self.recipe
        self._announce()
        board = self.out / folders.TENSORBOARD if recipe.tensorboard else None
        path = self.out / folders.METRICS
        first = trainer.ranks.rank == 0
        metrics = MetricsLog(path, keep=trainer.step, tensorboard=board) if first else None
        with (
            metrics or nullcontext() as self.metrics,
            closing(cast(Any, trainer.run())) as steps,
        ):
            saved = time.monotonic()
            for step in steps:
                if self.check is not None:
                    self.check.require()
                last = step == trainer.steps
                if last or step % recipe.log_steps == 0:
                    self._log_training()
                if self.evaluate and (last or step % self.eval_steps == 0):
                    self._log_evaluation(self.evaluate)
                due = first and time.monotonic() - saved > recipe.checkpoint_seconds
                due, interrupted = agreed(due, interrupt.requested)
                if last or due or interrupted:
                    self._save()
                    saved = time.monotonic()
                if interrupted and not last:
                    log.warning("interrupted at step %d; the state is saved", step)
                    raise KeyboardInterrupt
                yield step

    def _announce(self) -> None:
        trainer = self.trainer
        start: dict[str, Any] = {
            "kind": "start",
            "step": trainer.step,
            "steps": trainer.steps,
            "images": self.data.loader.images,
            "batch_size": self.data.loader.batch_size,
            "device": str(trainer.device),
            "precision": str(trainer.dtype).removeprefix("torch."),
            "parameters": sum(p.numel() for p in trainer.model.parameters()),
            "world_size": trainer.ranks.world_size,
        }
        if (mining := self.data.mining) is not None:
            start["regions"] = mining.describe()
            if mining.note:
                start["note"] = mining.note
                log.warning("%s", mining.note)
        if self.data.loader.cache is not None:
            start["cache"] = self.data.loader.cache.describe()
        if trainer.ranks.rank == 0:
            self.progress(start)

    @property
    def _epoch(self) -> float:
        loader = self.data.loader
        return self.trainer.step * loader.batch_size / loader.images

    @property
    def _decodes(self) -> int:
        """How often an image was decoded for training so far."""
        return self.trainer.step * self.data.loader.images_per_batch

    def _write(self, kind: str, figures: dict[str, float]) -> None:
        trainer = self.trainer
        where = {"kind": kind, "step": trainer.step, "epoch": self._epoch}
        line = {
            **where,
            **figures,
            "seconds": trainer.seconds,
            "crops": trainer.crops,
            "decodes": self._decodes,
        }
        if self.metrics is not None:
            self.metrics.write(line)
            self.progress(line)

    def _log_training(self) -> None:
        trainer = self.trainer
        rate = trainer.learning_rate(trainer.step - 1)
        self._write("train", {"loss": trainer.mean_loss(), "lr": rate})

    def _log_evaluation(self, evaluate: Evaluate) -> None:
        self.figures = evaluate()
        self._write("eval", self.figures)

    def _save(self) -> None:
        state = self.trainer.state()
        if self.metrics is None:  # the first process writes
            return
        self.metrics.sync()
        state["figures"] = self.figures
        state["recipe"] = folders.recipe_hash(self.recipe.to_dict())
        state["data"] = self.data.identity
        save_checkpoint(self.out / folders.CHECKPOINT, state)

    def finish(self) -> dict[str, Any]:
        """Write the weights and the result, and return it."""
        return by_first(self._written)

    def _written(self) -> dict[str, Any]:
        trainer, mining = self.trainer, self.data.mining
        save_weights(self.out / folders.WEIGHTS, trainer.best_model)
        if self.check is not None:
            self.check.require(ended=True)
        result: dict[str, Any] = {
            "method": self.recipe.method,
            "student": self.recipe.student.name,
            "seed": self.recipe.seed,
            **self.figures,
            "epochs": self._epoch,
            "steps": trainer.steps,
            "decodes": self._decodes,
            "seconds": trainer.seconds,
            "crops_per_second": trainer.crops / trainer.seconds,
            "world_size": trainer.ranks.world_size,
            "data": self.data.identity,
            "run": str(self.out),
        }
        if mining is not None:
            result["thresholds"] = list(mining.thresholds)
            result["regions"] = mining.shares
            result["rescued"] = mining.rescued
            if mining.note:
                result["note"] = mining.note
        if self.data.temperature is not None:
            result["label_temperature"] = asdict(self.data.temperature)
        if self.data.store is not None:
            result["images_without_labels"] = self.data.images_without_labels
        write_json(self.out / folders.RESULT, result)
        return result
