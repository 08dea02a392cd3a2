"""The course of a run: steps, and between them the log, evaluations and saved states.

The weights come first: they are on the disk before the last state, which is larger, and before
the last evaluation. Whatever else fails meanwhile is said and costs the run nothing.
"""

from __future__ import annotations

import logging
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from torch import Tensor

from ferkd.evaluating.center_crops import CenterCrops
from ferkd.evaluating.measures import measure
from ferkd.evaluating.predictions import NonFiniteOutputs, predict
from ferkd.store.checking import ChecksumCheck
from ferkd.system.distributed import agreed, as_first, by_first
from ferkd.system.errors import InputError
from ferkd.system.files import Unwritable, require_room, write_json
from ferkd.system.interrupt import Interrupt
from ferkd.system.launch import is_first_here
from ferkd.training import folder as folders
from ferkd.training.checkpoint import save_checkpoint, save_weights
from ferkd.training.data import TrainingData
from ferkd.training.metrics import Line, MetricsLog
from ferkd.training.result import RunResult
from ferkd.training.trainer import Trainer

if TYPE_CHECKING:
    from ferkd.training.recipe import Recipe

Progress = Callable[[dict[str, Any]], None]

log = logging.getLogger("ferkd")


class Validation:
    """Measures the student on validation images; ``targets`` are their classes by the model's."""

    def __init__(
        self, crops: CenterCrops, targets: Tensor, trainer: Trainer, batch_size: int
    ) -> None:
        self._crops, self._targets = crops, targets
        self._trainer, self._batch_size = trainer, batch_size

    def check(self) -> None:
        """Raise InputError where too many of the images are unreadable, before any step."""
        self._crops.check()

    def __call__(self) -> dict[str, float]:
        as_first(self._trainer.best_model)  # each process's BatchNorm has seen its own crops
        found = predict(
            self._trainer.best_model,
            self._crops,
            normalise=self._trainer.normalise,
            dtype=self._trainer.dtype,
            batch_size=self._batch_size,
        )
        return measure(found.logits, self._targets[found.rows])


def check_room(out: Path, trainer: Trainer, *, ema: bool, kept: bool) -> None:
    """Raise Unwritable where ``out`` cannot take what a run writes, before any step.

    A state is replaced by a whole new one, so there are two for a moment; ``kept``: one is there.
    """
    weights, trained = (
        sum(tensor.numel() * tensor.element_size() for tensor in module.state_dict().values())
        for module in (trainer.model, trainer.trained)
    )
    # Optimizers keep at most two numbers a parameter; the rest of a state is small beside them.
    checkpoint = 3 * trained + ema * weights + (1 << 20)
    require_room(out, *[checkpoint] * (1 if kept else 2), weights, what="a run's state and weights")


class Run:
    """The outer loop of the run in ``out``."""

    def __init__(
        self,
        recipe: Recipe,
        out: Path,
        data: TrainingData,
        trainer: Trainer,
        evaluate: Validation | None,
        progress: Progress | None,
    ) -> None:
        self.recipe, self.out, self.data, self.trainer = recipe, out, data, trainer
        self.evaluate = evaluate
        store = data.store if is_first_here() else None  # once a machine
        self.check = None if store is None else ChecksumCheck(store)
        self._progress = progress
        self.figures: dict[str, float] = {}  # of the last evaluation
        self.evaluated = 0  # the step that it was made at
        self._labels: list[dict[str, Any]] = []  # what was logged of a store being written
        every, loader = recipe.evaluation.every_epochs, data.loader
        steps_per_epoch = loader.images / loader.batch_size
        self.eval_steps = trainer.steps if every is None else max(1, round(every * steps_per_epoch))

    def restore(self, state: dict[str, Any] | None) -> None:
        """Go on from ``state`` (None: from the start)."""
        if state is None:
            self.trainer.diversify()
            return
        try:
            self.trainer.load_state(state)
            self.figures, self.evaluated = state["figures"], state["evaluated"]
            if (growing := self.data.growing) is not None:
                growing.restore(state["labels"])
                self._labels = growing.seen()
        except (KeyError, ValueError, TypeError, AttributeError, IndexError, RuntimeError) as error:
            cause = next(iter(str(error).splitlines()), type(error).__name__)
            raise InputError(
                f"{self.out / folders.CHECKPOINT} is damaged: it is no state of this run "
                f"({cause}); delete it to start the run anew with --resume"
            ) from error

    def steps(self, interrupt: Interrupt) -> Iterator[int]:
        """Train to the last step, yielding after each what it was; logs, evaluates and saves.

        Raises KeyboardInterrupt once the state is saved.
        """
        self._announce()
        board = self.out / folders.TENSORBOARD if self.recipe.tensorboard else None
        # An evaluation that the state does not know of will be made again.
        known = lambda line: line["kind"] != "eval" or line["step"] <= self.evaluated  # noqa: E731
        path, step = self.out / folders.METRICS, self.trainer.step
        first = self.trainer.ranks.rank == 0
        record = MetricsLog(path, keep=step, known=known, tensorboard=board) if first else None
        with record or nullcontext() as self.metrics:
            yield from self._train(interrupt)
            if self.evaluate and self.evaluated < self.trainer.step:
                self._log_evaluation(self.evaluate)

    def finish(self) -> RunResult:
        """Write the result, and return it."""
        return by_first(self._written)

    def _train(self, interrupt: Interrupt) -> Iterator[int]:
        trainer, recipe = self.trainer, self.recipe
        saved = time.monotonic()
        with closing(cast(Any, trainer.run())) as steps:
            for step in steps:
                if self.check is not None:
                    self.check.require()
                self._log_labels()
                last = step == trainer.steps
                if last or step % recipe.log_steps == 0:
                    self._log_training()
                if last:
                    by_first(self._keep_weights)
                elif self.evaluate and step % self.eval_steps == 0:
                    self._log_evaluation(self.evaluate)
                due = time.monotonic() - saved > recipe.checkpoint_seconds
                due, interrupted = agreed(due and self.metrics is not None, interrupt.requested)
                if last or due or interrupted:
                    self._save(needed=interrupted and not last)
                    saved = time.monotonic()
                if interrupted and not last:
                    log.warning(
                        "interrupted at step %d of %d; the state is saved in %s, continue with "
                        "--resume",
                        *(step, trainer.steps, self.out),
                    )
                    raise KeyboardInterrupt
                yield step
        if not by_first((self.out / folders.WEIGHTS).is_file):  # continued from the last step
            by_first(self._keep_weights)

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
            self._tell(start)

    @property
    def _epoch(self) -> float:
        loader = self.data.loader
        return self.trainer.step * loader.batch_size / loader.images

    @property
    def _decodes(self) -> int:
        """How often an image was decoded for training so far."""
        return self.trainer.step * self.data.loader.images_per_batch

    def _tell(self, line: Line) -> None:
        if self._progress is not None:
            try:
                self._progress(line)
            except OSError as error:  # a terminal or pipe that has gone
                self._progress = None
                log.warning("progress is no longer shown (%s); the run goes on", error)

    def _write(self, kind: str, figures: Mapping[str, Any]) -> None:
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
            self._tell(line)

    def _log_labels(self) -> None:
        """What was found of a store that is still being written, as soon as it is trained on."""
        growing = self.data.growing
        if growing is None or self._labels == (seen := growing.seen()):
            return
        for stretch in seen[len(self._labels) :]:
            self._write("labels", stretch)
        self._labels = seen

    def _log_training(self) -> None:
        trainer = self.trainer
        rate = trainer.learning_rate(trainer.step - 1)
        self._write("train", {"loss": trainer.mean_loss(), "lr": rate})

    def _log_evaluation(self, evaluate: Validation) -> None:
        """Evaluate; an evaluation that cannot be made is said and left out."""
        try:
            self.figures = evaluate()
        except NonFiniteOutputs:  # the run itself has failed
            raise
        except Exception as error:
            if self.trainer.ranks.world_size > 1:  # the others wait for this process
                raise
            log.warning(
                "the evaluation at step %d failed (%s: %s); training goes on, and the weights are "
                "kept: measure them later by ferkd evaluate",
                *(self.trainer.step, type(error).__name__, error),
            )
            self.figures = {}
            return
        self.evaluated = self.trainer.step
        self._write("eval", self.figures)

    def _save(self, *, needed: bool) -> None:
        """Save the state to continue from; one that is not ``needed`` now may fail."""
        state = self.trainer.state()
        if self.metrics is None:  # the first process writes
            return
        self.metrics.sync()
        state["figures"], state["evaluated"] = self.figures, self.evaluated
        state["recipe"] = folders.recipe_hash(self.recipe.to_dict())
        state["data"] = self.data.identity
        if self.data.growing is not None:
            state["labels"] = self.data.growing.state()
        try:
            save_checkpoint(self.out / folders.CHECKPOINT, state)
        except Unwritable as error:
            if needed:
                raise
            log.warning("the state at step %d is not saved: %s", self.trainer.step, error)

    def _keep_weights(self) -> None:
        """Write the weights, in the system's temporary folder where the run's takes none."""
        model = self.trainer.best_model
        try:
            save_weights(self.out / folders.WEIGHTS, model)
        except Unwritable as error:
            try:
                elsewhere = Path(tempfile.mkdtemp(prefix="ferkd-run-"))
                save_weights(elsewhere / folders.WEIGHTS, model)
                for name in (folders.CONFIG, folders.RECIPE):
                    (elsewhere / name).write_bytes((self.out / name).read_bytes())
            except (OSError, Unwritable):
                raise error from None
            raise Unwritable(
                f"{error}. The trained weights are in {elsewhere} instead: move them, and measure "
                "them by ferkd evaluate"
            ) from error

    def _written(self) -> RunResult:
        trainer, mining = self.trainer, self.data.mining
        if self.check is not None:
            self.check.require(ended=True)
        found: dict[str, Any] = dict(self.figures)
        if mining is not None:
            found |= {
                "thresholds": list(mining.thresholds),
                "regions": mining.shares,
                "rescued": mining.rescued,
                "note": mining.note or None,
            }
        if self.data.temperature is not None:
            found["label_temperature"] = asdict(self.data.temperature)
        if self.data.growing is not None:
            found["partial"] = self.data.growing.seen()
        if self.data.store is not None:
            found["images_without_labels"] = self.data.images_without_labels
        result = RunResult(
            method=self.recipe.method,
            student=self.recipe.student.name,
            seed=self.recipe.seed,
            epochs=self._epoch,
            steps=trainer.steps,
            decodes=self._decodes,
            seconds=trainer.seconds,
            crops_per_second=trainer.crops / trainer.seconds,
            world_size=trainer.ranks.world_size,
            data=self.data.identity,
            run=str(self.out),
            **found,
        )
        write_json(self.out / folders.RESULT, result)
        return result
