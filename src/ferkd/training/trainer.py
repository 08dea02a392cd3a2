"""The training loop: a model, a stream of batches, an objective and an optimiser.

Usable alone, with any model and any object that has ``batches(start, stop)``::

    trainer = Trainer(model, loader, objective, optimizer=optimizer, steps=1000,
                      learning_rate=lambda step: 0.1, normalise=Normalise(mean, std, device))
    for step in trainer.run():
        if step % 100 == 0:
            print(step, trainer.mean_loss())
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from itertools import chain
from typing import Any, Protocol, cast, runtime_checkable

import torch
from torch import Tensor, nn

from ferkd.crops.device import RawImages, cut_batch
from ferkd.store.soft import SoftLabels
from ferkd.system.compute import Normalise, autocast
from ferkd.training.checkpoint import random_state, restore_random_state
from ferkd.training.ema import Ema


@dataclass(frozen=True)
class View:
    """What the student is shown at a step, and what is known of it; all on its device.

    ``images`` float32 [B, 3, S, S], normalised and mixed; ``labels`` the stored labels, mixed
    alike, or mixed hard labels where none are stored, None without either; ``targets`` int64 [B]
    the ground truth, of the larger part of a mixed row, -1 for none; ``rows`` int64 [B] each
    row's image (for a mixed row the first of the two) and ``crops`` int64 [B] its crop number.
    """

    images: Tensor
    labels: SoftLabels | None
    targets: Tensor
    rows: Tensor
    crops: Tensor


# logits float32 [B, C] and the view that they answer -> the loss, a scalar. It may have a state;
# see Stateful.
Objective = Callable[[Tensor, View], Tensor]
# (step, images, labels, targets) -> all three mixed; targets are those of the larger parts.
Mixer = Callable[[int, Tensor, SoftLabels | None, Tensor], tuple[Tensor, SoftLabels, Tensor]]


@runtime_checkable
class Stateful(Protocol):
    """An objective that remembers: its state is saved in checkpoints.

    The state is made of tensors, numbers, strings and containers of them only.
    """

    def state_dict(self) -> dict[str, Any]: ...
    def load_state_dict(self, state: dict[str, Any]) -> None: ...


@runtime_checkable
class Witness(Protocol):
    """An objective that can say what is wrong where the student is not to blame for a loss that
    is not finite; None where it is."""

    def complaint(self) -> str | None: ...


class BatchLike(Protocol):
    """What the trainer takes of a batch: images uint8 [B, 3, S, S], labels, and int64 [B] each:
    targets, rows (the image) and crops (its crop number). One whose ``raw`` are whole images
    (`ferkd.loading.batch.Batch`) has its crops cut on the device."""

    @property
    def images(self) -> Tensor: ...
    @property
    def labels(self) -> SoftLabels | None: ...
    @property
    def targets(self) -> Tensor: ...
    @property
    def rows(self) -> Tensor: ...
    @property
    def crops(self) -> Tensor: ...


class StepLoader(Protocol):
    """A stream of batches addressed by step: the same step is always the same batch."""

    def batches(self, start: int, stop: int) -> Iterator[Any]: ...


class NonFiniteLoss(RuntimeError):
    """The loss became infinite or NaN: training has diverged, or the objective says why not."""


class Trainer:
    """Trains ``model`` on ``steps`` batches of ``loader``; :meth:`run` yields after each step.

    ``objective(logits float32 [B, C], view)`` gives the loss (see :class:`View`);
    ``learning_rate(step)`` the rate of each 0-based step. ``dtype`` other than float32 turns
    autocast on (float16 scales the loss). ``mixer`` mixes normalised images and labels, on the
    device; ``ema`` is the decay of an average of the weights, ``clip_grad`` the largest norm of
    the gradient. ``model`` is moved
    to the normaliser's device. ``seconds`` counts the time spent in steps, waiting for data
    included and everything that the caller does between steps left out.
    """

    def __init__(
        self,
        model: nn.Module,
        loader: StepLoader,
        objective: Objective,
        *,
        optimizer: torch.optim.Optimizer,
        learning_rate: Callable[[int], float],
        steps: int,
        normalise: Normalise,
        dtype: torch.dtype = torch.float32,
        mixer: Mixer | None = None,
        ema: float | None = None,
        clip_grad: float | None = None,
        channels_last: bool = True,
        compile: bool = False,
    ) -> None:
        self.device = normalise.device
        self.model = model.to(self.device)
        if channels_last:
            # Conv weights only change their layout, so this is in place for the optimizer too.
            self.model = cast(Any, self.model).to(memory_format=torch.channels_last)
        self.loader = loader
        self.objective = objective
        self.optimizer = optimizer
        self.learning_rate = learning_rate
        self.steps = steps
        self.normalise = normalise
        self.dtype = dtype
        self.mixer = mixer
        self.clip_grad = clip_grad
        self.channels_last = channels_last
        self.ema = None if ema is None else Ema(self.model, ema)
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=dtype == torch.float16)
        self.step = 0
        self.crops = 0
        self.seconds = 0.0
        self._losses: list[Tensor] = []
        if compile:
            self.model.compile()

    @property
    def best_model(self) -> nn.Module:
        """The model to evaluate and to keep: the average if there is one."""
        return self.model if self.ema is None else self.ema.module

    def run(self) -> Iterator[int]:
        """Train from the current step to the last, yielding the number of steps done."""
        self.model.train()
        with closing(cast(Any, self.loader.batches(self.step, self.steps))) as batches:
            started = time.perf_counter()
            # Starting a torch DataLoader draws from the global generator, which would shift
            # dropout's stream in a continued run.
            random = random_state()
            first = next(batches, None)
            restore_random_state(random)
            for batch in chain([] if first is None else [first], batches):
                self._take(batch)
                self.seconds += time.perf_counter() - started
                yield self.step
                started = time.perf_counter()

    def _take(self, batch: BatchLike) -> None:
        """One optimiser step. Nothing here waits for the device."""
        rate = self.learning_rate(self.step)
        for group in self.optimizer.param_groups:
            group["lr"] = rate * group.get("lr_scale", 1.0)
        images = self.normalise(self._images(batch))
        if self.channels_last:
            images = images.contiguous(memory_format=torch.channels_last)
        targets, rows, crops = (
            numbers.to(self.device, non_blocking=True)
            for numbers in (batch.targets, batch.rows, batch.crops)
        )
        labels = batch.labels
        if labels is not None:
            labels = labels.to(self.device, non_blocking=True)
        if self.mixer is not None:
            images, labels, targets = self.mixer(self.step, images, labels, targets)
        with autocast(self.device, self.dtype):
            logits = self.model(images)
        loss = self.objective(logits.float(), View(images, labels, targets, rows, crops))
        self.optimizer.zero_grad(set_to_none=True)
        self.scaler.scale(loss).backward()
        if self.clip_grad is not None:
            self.scaler.unscale_(self.optimizer)
            nn.utils.clip_grad_norm_(self.model.parameters(), self.clip_grad)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        if self.ema is not None:
            self.ema.update(self.step)
        self._losses.append(loss.detach())
        self.step += 1
        self.crops += len(batch.targets)

    def _images(self, batch: BatchLike) -> Tensor:
        """The crops of a batch, cut on the device where it brings its images whole."""
        raw: RawImages | None = getattr(batch, "raw", None)
        if raw is None:
            return batch.images
        return cut_batch(raw.to(self.device, non_blocking=True))

    def mean_loss(self) -> float:
        """The mean loss of the steps since the last call. Raises NonFiniteLoss."""
        losses = self._read_losses()
        self._losses = []
        return sum(losses) / len(losses) if losses else float("nan")

    def _read_losses(self) -> list[float]:
        """The losses not yet reported; waits for the device, which counts as training time."""
        if not self._losses:
            return []
        started = time.perf_counter()
        losses = torch.stack(self._losses).double().cpu()
        self.seconds += time.perf_counter() - started
        finite = losses.isfinite()
        if not bool(finite.all()):
            step = self.step - len(losses) + int((~finite).int().argmax())
            complaint = self.objective.complaint() if isinstance(self.objective, Witness) else None
            value = float(losses[~finite][0])
            where = f"the loss became {value} at step {step + 1} of {self.steps}"
            if complaint is not None:
                raise NonFiniteLoss(f"{where}: {complaint}")
            raise NonFiniteLoss(
                f"{where} (learning rate {self.learning_rate(step):.3g}): training has diverged. "
                "Lower optimizer.lr, lengthen schedule.warmup, set clip_grad (for instance 1.0), "
                "or use precision fp32"
            )
        return [float(v) for v in losses]

    def state(self) -> dict[str, Any]:
        """Everything that the rest of the run depends on. Raises NonFiniteLoss when diverged."""
        losses = self._read_losses()
        return {
            "step": self.step,
            "crops": self.crops,
            "seconds": self.seconds,
            "losses": losses,
            "model": self.model.state_dict(),
            "ema": None if self.ema is None else self.ema.module.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "objective": (
                self.objective.state_dict() if isinstance(self.objective, Stateful) else None
            ),
            "random": random_state(),
        }

    def load_state(self, state: dict[str, Any]) -> None:
        """Continue from :meth:`state`; the rest of the run is then as if it had not stopped."""
        self.step, self.crops, self.seconds = state["step"], state["crops"], state["seconds"]
        self._losses = [torch.tensor(v, device=self.device) for v in state["losses"]]
        self.model.load_state_dict(state["model"])
        if self.ema is not None:
            self.ema.module.load_state_dict(state["ema"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.scaler.load_state_dict(state["scaler"])
        if isinstance(self.objective, Stateful):
            self.objective.load_state_dict(state["objective"])
        restore_random_state(state["random"])
