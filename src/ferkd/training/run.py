"""A whole training run: from a recipe to a folder with weights, metrics and a result."""

from __future__ import annotations

import logging
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

from ferkd.evaluating.center_crops import CenterCrops
from ferkd.evaluating.predictions import match_classes
from ferkd.images import ImageSource, open_images, refuse_inside_images
from ferkd.methods import METHODS
from ferkd.methods.base import Attached, Setup
from ferkd.models.heads import head_of_student
from ferkd.models.student import (
    ModelConfig,
    build_student,
    check_input,
    check_training,
    normalisation,
)
from ferkd.store.place import refuse_inside_store
from ferkd.system.compute import Normalise, resolve_device, resolve_precision
from ferkd.system.distributed import by_first, gathered, process_group
from ferkd.system.errors import InputError
from ferkd.system.files import sweep, write_json
from ferkd.system.interrupt import Interrupt
from ferkd.system.launch import restarts
from ferkd.system.locks import held
from ferkd.system.storage import local_path
from ferkd.training import folder as folders
from ferkd.training.checkpoint import load_checkpoint, random_state, restore_random_state
from ferkd.training.course import Progress, Run, Validation, check_room
from ferkd.training.data import TrainingData, open_data
from ferkd.training.metrics import require_tensorboard
from ferkd.training.mixing import mixer
from ferkd.training.optim import build_optimizer
from ferkd.training.partial import open_partial
from ferkd.training.result import RunResult, read_result
from ferkd.training.schedule import learning_rate
from ferkd.training.trainer import Trainer

log = logging.getLogger("ferkd")

if TYPE_CHECKING:
    from ferkd.training.recipe import Recipe


def train(
    recipe: Recipe,
    out: str | Path,
    *,
    resume: bool = False,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> RunResult:
    """Train the student of ``recipe`` and leave the run in the folder ``out``; returns its result.

    - ``progress`` is called with the lines of metrics.jsonl ("kind" train or eval), and before them
      with {"kind": "start", "steps", "step", ...}.
    - With ``resume`` an interrupted run continues (to the bit on the CPU), a finished one returns
      its result at once, and a missing one starts.
    - On SIGINT and SIGTERM the state is saved and KeyboardInterrupt raised.

    Raises InputError, before anything is written, for anything that the recipe, the folder or the
    data get wrong, validation images and the disk's room included, and where another process
    writes to ``out``. Raises RuntimeError when training diverges.

    The processes of a process group, or those that torchrun started, train together: the batch of
    a step is that of all, the first one writes and calls ``progress``, all return the result.
    """
    with process_group(resolve_device(recipe.device).type == "cuda"):
        found = ready(recipe, out, resume=resume, overwrite=overwrite, progress=progress)
        if not isinstance(found, Ready):
            return found
        with closing(found), Interrupt() as interrupt:
            run = found.begin()
            for _ in run.steps(interrupt):
                pass
            return run.finish()


@dataclass
class Ready:
    """A run of which all is checked and nothing written; ``holding`` has its folder until it is
    closed. ``state`` is what it goes on from, ``random`` that of torch's generators."""

    recipe: Recipe
    out: Path
    overwrite: bool
    progress: Progress | None
    trainer: Trainer
    data: TrainingData
    config: ModelConfig
    validation: Validation | None
    state: dict[str, Any] | None
    random: dict[str, Any]
    holding: ExitStack

    def begin(self) -> Run:
        """The run before its next step, its folder written."""

        def written() -> None:
            if self.overwrite:
                folders.clear(self.out)
            folders.write_recipe(self.out, self.recipe.to_dict())
            write_json(self.out / folders.CONFIG, self.config.model_dump(mode="json"))

        by_first(written)
        run = Run(self.recipe, self.out, self.data, self.trainer, self.validation, self.progress)
        restore_random_state(self.random)
        run.restore(self.state)
        self.state = None  # its room is needed
        return run

    def close(self) -> None:
        """Let go of the folder."""
        self.holding.close()


def ready(
    recipe: Recipe,
    out: str | Path,
    *,
    resume: bool,
    overwrite: bool,
    progress: Progress | None,
    data: TrainingData | None = None,
) -> Ready | RunResult:
    """A run that may begin, its folder held; the result of one that is finished.

    ``data`` is what another recipe opened, where the two share it. Raises as :func:`train` does.
    """
    out = local_path(out, "folder for the run")
    with ExitStack() as holding:  # of the folder, in the first process
        return _ready(recipe, out, resume, overwrite, progress, data, holding)


def _ready(
    recipe: Recipe,
    out: Path,
    resume: bool,
    overwrite: bool,
    progress: Progress | None,
    data: TrainingData | None,
    holding: ExitStack,
) -> Ready | RunResult:
    settings = recipe.to_dict()

    def prepared() -> RunResult | None:
        check_restart(resume)
        refuse_inside_images(out, recipe.data.images, recipe.data.val)
        refuse_inside_store(out)
        folders.prepare(out, settings, resume=resume, overwrite=overwrite)
        if resume and (out / folders.RESULT).is_file():
            return read_result(out)
        holding.enter_context(held(out, folders.BUSY.format(out)))
        folders.prepare(out, settings, resume=resume, overwrite=overwrite)  # as it is now
        return None

    if (finished := by_first(prepared)) is not None:
        return finished
    if recipe.tensorboard:
        require_tensorboard()

    trainer, data, config = build_trainer(recipe, data)
    _check_same_data(data.identity)
    validation = _validation(recipe, trainer, config)
    if validation is not None:
        validation.check()

    def checked() -> dict[str, Any] | None:
        checkpoint = out / folders.CHECKPOINT
        state = load_checkpoint(checkpoint) if resume and checkpoint.is_file() else None
        if state is not None:
            _check_same(state, folders.recipe_hash(settings), data.identity, checkpoint)
        sweep(out)
        check_room(out, trainer, ema=recipe.ema is not None, kept=state is not None)
        return state

    state = by_first(checked)
    return Ready(
        recipe,
        out,
        overwrite,
        progress,
        trainer,
        data,
        config,
        validation,
        state,
        random_state(),
        holding.pop_all(),  # the folder is the run's from here on
    )


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
    if data is None:
        data = open_partial(recipe) if recipe.data.partial else open_data(recipe)
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
        exif=data.exif,
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
    head, features = None, 0
    if METHODS[recipe.method].attached:
        head, features = head_of_student(model, recipe.data.image_size, data.num_classes)
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
        features=features,
        seed=recipe.seed,
    )
    loss = METHODS[recipe.method].make(recipe.loss, setup)
    layers = loss.layers if isinstance(loss, Attached) else None
    return Trainer(
        model,
        loader,
        loss,
        optimizer=build_optimizer(recipe.optimizer, model, layers),
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
        frozen_statistics=recipe.frozen_statistics,
        channels_last=recipe.channels_last,
        compile=recipe.compile,
        accumulate=recipe.accumulate,
        ranks=ranks,
        head=head,
    )


def _validation(recipe: Recipe, trainer: Trainer, config: ModelConfig) -> Validation | None:
    """What evaluates the student on the validation images; None where the recipe has none."""
    if recipe.data.val is None:
        return None
    if not config.num_classes:
        log.info(
            "the student has no classes, so data.val is not evaluated; judge its features by "
            "ferkd evaluate --knn --probe"
        )
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
        exif=config.exif,
        ranks=trainer.ranks,
    )
    return Validation(crops, targets, trainer, recipe.evaluation.batch_size)


def _check_same(state: dict[str, Any], recipe: str, data: str, checkpoint: Path) -> None:
    if state.get("recipe") != recipe:
        raise InputError(
            f"{checkpoint} belongs to another recipe than the recipe.yaml beside it; start anew "
            "with --overwrite"
        )
    if state.get("data") != data:
        raise InputError(
            f"the images, their classes or the labels are not those that {checkpoint} was trained "
            "on; restore them, or start anew with --overwrite"
        )
