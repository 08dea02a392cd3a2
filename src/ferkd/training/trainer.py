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
from contextlib import closing, nullcontext
from dataclasses import replace
from itertools import chain
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils._pytree import tree_map

from ferkd.crops.device import RawImages, cut_batch
from ferkd.methods.base import Attached, Loss, View
from ferkd.models.heads import WithFeatures
from ferkd.store.soft import SoftLabels
from ferkd.system.compute import Normalise, autocast
from ferkd.system.distributed import Ranks, gathered, mean_of_all, rows_of_all
from ferkd.system.errors import InputError
from ferkd.training.checkpoint import random_state, restore_random_state
from ferkd.training.ema import Ema
from ferkd.training.protocols import BatchLike, Stateful, StepLoader, Witness

# (step, images, labels, targets) -> all three mixed; targets are those of the larger parts. Where
# features are learnt from it has partners(step, images) too: rows, and the shares of their pixels.
Mixer = Callable[[int, Tensor, SoftLabels | None, Tensor], tuple[Tensor, SoftLabels | None, Tensor]]


def whole_batch(objective: Loss) -> bool:
    """Whether an objective must be shown a step's rows together: it relates them to each other,
    or remembers them.

    An objective says so by ``whole_batch``; without a word it is a mean over rows. Raises
    InputError for one with a state that does not say: it may be right in parts or not.
    """
    says = getattr(objective, "whole_batch", None)
    if says is None and isinstance(objective, Stateful):
        raise InputError(
            f"{type(objective).__name__} has a state and does not say whether it may be shown a "
            "step in parts; give it whole_batch = True (or False), or train on one process "
            "without accumulate"
        )
    return bool(says)


def freeze_statistics(model: nn.Module) -> None:
    """Set the BatchNorm layers of a model to evaluation mode; gains and biases still learn."""
    for part in model.modules():
        if isinstance(part, nn.modules.batchnorm._BatchNorm):
            part.eval()


class NonFiniteLoss(RuntimeError):
    """The loss became infinite or NaN: training has diverged, or the objective says why not."""


class Trainer:
    """Trains ``model`` on ``steps`` batches of ``loader``; :meth:`run` yields after each step.

    ``objective(logits float32 [B, C], view)`` gives the loss (see :class:`View`);
    ``learning_rate(step)`` the rate of each 0-based step. ``dtype`` other than float32 turns
    autocast on (float16 scales the loss). ``mixer`` mixes normalised images and labels, on the
    device; ``ema`` is the decay of an average of the weights, ``clip_grad`` the largest norm of
    the gradient. With ``frozen_statistics`` BatchNorm normalises by the running statistics that the
    model came with, and does not change them. An objective that is `Attached` has layers of its
    own, which the optimizer is to be made with; ``head`` is then the model's, None for one that
    answers with its features. ``model`` is moved to the normaliser's device. ``seconds`` counts the
    time spent in steps, waiting for data included and everything that the caller does between steps
    left out.

    Of several processes of a group each is told its ``ranks`` and given its part of every batch;
    gradients are averaged, and an objective that needs a step's rows together sees those of all.
    A step's rows are worked through in ``accumulate`` parts, whose gradients add up: it is the
    same step with less memory, but for batch normalisation, and none is ever incomplete.
    """

    def __init__(
        self,
        model: nn.Module,
        loader: StepLoader,
        objective: Loss,
        *,
        optimizer: torch.optim.Optimizer,
        learning_rate: Callable[[int], float],
        steps: int,
        normalise: Normalise,
        dtype: torch.dtype = torch.float32,
        mixer: Mixer | None = None,
        ema: float | None = None,
        clip_grad: float | None = None,
        frozen_statistics: bool = False,
        channels_last: bool = True,
        compile: bool = False,
        accumulate: int = 1,
        ranks: Ranks | None = None,
        head: nn.Linear | None = None,
    ) -> None:
        self.device = normalise.device
        self.ranks, self.accumulate = ranks or Ranks(), accumulate
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
        self.frozen_statistics = frozen_statistics
        self.channels_last = channels_last
        self.ema = None if ema is None else Ema(self.model, ema)
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=dtype == torch.float16)
        self.step = 0
        self.crops = 0
        self.seconds = 0.0
        self._losses: list[Tensor] = []
        self._forward: nn.Module = self.model
        self._attached = isinstance(objective, Attached)
        if isinstance(objective, Attached):
            self._forward = WithFeatures(
                self.model, head, objective.layers, head_alone=objective.head_alone
            )
        self._together = False
        if compile:
            self.model.compile()

    @property
    def trained(self) -> nn.Module:
        """The model, with the layers that its objective has beside it."""
        return self._forward

    @property
    def best_model(self) -> nn.Module:
        """The model to evaluate and to keep: the average if there is one."""
        return self.model if self.ema is None else self.ema.module

    def run(self) -> Iterator[int]:
        """Train from the current step to the last, yielding the number of steps done."""
        self.model.train()
        if self.ranks.world_size > 1:
            device_ids = [self.device] if self.device.type == "cuda" else None
            self._forward = DistributedDataParallel(self._forward, device_ids=device_ids)
            self._together = whole_batch(self.objective)
        if self.accumulate > 1 and whole_batch(self.objective):
            raise InputError(
                f"accumulate is {self.accumulate}, but {type(self.objective).__name__} must see "
                "the rows of a step together; use accumulate 1, or more processes"
            )
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
        view = View(images, labels, targets, rows, crops, *self._features(batch, images))
        if self.frozen_statistics:  # at every step: an evaluation in between sets the mode anew
            freeze_statistics(self.model)
        self.optimizer.zero_grad(set_to_none=True)
        loss = self._gradients(view)
        if self.clip_grad is not None:
            self.scaler.unscale_(self.optimizer)
            nn.utils.clip_grad_norm_(self._forward.parameters(), self.clip_grad)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        if self.ema is not None:
            self.ema.update(self.step)
        self._losses.append(loss)
        self.step += 1
        self.crops += len(batch.targets) * self.ranks.world_size

    def _features(
        self, batch: BatchLike, images: Tensor
    ) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """The stored features of the rows, those of what they are mixed with, and the shares."""
        features: Tensor | None = getattr(batch, "features", None)
        if features is None:
            return None, None, None
        features = features.to(self.device, non_blocking=True)
        if self.mixer is None:
            return features, None, None
        partners, shares = cast(Any, self.mixer).partners(self.step, images)
        return features, features[partners], shares

    def _gradients(self, view: View) -> Tensor:
        """Add up the gradients of a step, part by part; its loss on this process's rows."""
        rows, parts = len(view.targets), self.accumulate
        if rows % parts:
            raise InputError(
                f"{rows} rows of a step do not make {parts} equal parts; let accumulate divide them"
            )
        losses = []
        for number in range(parts):
            part = view
            if parts > 1:
                part = view.part(slice(number * rows // parts, (number + 1) * rows // parts))
            with self._without_exchange(number < parts - 1):
                with autocast(self.device, self.dtype):
                    logits = self._forward(part.images)
                if self._attached:
                    logits, beside = logits
                    part = replace(part, beside=beside.float())
                loss, weight = self._loss(logits.float(), part)
                counted = loss if weight == parts else loss * (weight / parts)
                self.scaler.scale(counted).backward()
            losses.append(loss.detach())
        return losses[0] if parts == 1 else torch.stack(losses).mean()

    def _without_exchange(self, partial: bool) -> Any:
        """Gradients of a part that is not the last are not averaged over the processes yet."""
        if partial and isinstance(self._forward, DistributedDataParallel):
            return self._forward.no_sync()
        return nullcontext()

    def _loss(self, logits: Tensor, view: View) -> tuple[Tensor, int]:
        """The loss, and by what its gradient counts before it is averaged over the processes."""
        if self.ranks.world_size == 1 or not self._together:
            return self.objective(logits, view), 1
        # The rows of all processes, of which only this one's have a gradient: summed over the
        # processes it is that of the whole, while the exchange takes the mean.
        mine = self.ranks.part(len(logits) * self.ranks.world_size)

        def everyones(own: Tensor) -> Tensor:
            found = rows_of_all(own)
            return torch.cat([found[: mine.start], own, found[mine.stop :]])

        whole = replace(
            view,
            labels=None if view.labels is None else tree_map(rows_of_all, view.labels),
            beside=None if view.beside is None else everyones(view.beside),
            **{
                name: rows_of_all(own)
                for name in ("targets", "rows", "crops", "features", "other_features", "shares")
                if (own := getattr(view, name)) is not None
            },
        )
        return self.objective(everyones(logits), whole), self.ranks.world_size

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
        losses = mean_of_all(torch.stack(self._losses).double().cpu())
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
        """Everything that the rest of the run depends on. Raises NonFiniteLoss when diverged.

        Asked of all processes, it is the same on all but for what the first one's is used for.
        """
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
            "random": gathered(random_state()),
        }

    def load_state(self, state: dict[str, Any]) -> None:
        """Continue from :meth:`state`; the rest of the run is then as if it had not stopped.

        On as many processes; on more or fewer the new ones draw other random numbers (dropout).
        """
        self.step, self.crops, self.seconds = state["step"], state["crops"], state["seconds"]
        self._losses = [torch.tensor(v, device=self.device) for v in state["losses"]]
        self.model.load_state_dict(state["model"])
        if self.ema is not None:
            self.ema.module.load_state_dict(state["ema"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.scaler.load_state_dict(state["scaler"])
        if isinstance(self.objective, Stateful):
            self.objective.load_state_dict(state["objective"])
        random = state["random"]
        if self.ranks.rank < len(random):
            restore_random_state(random[self.ranks.rank])
        else:
            self.diversify()

    def diversify(self) -> None:
        """Draw other random numbers than the first process does: masks of dropout and drop path."""
        if self.ranks.rank:
            words = [torch.initial_seed(), self.step, self.ranks.rank]
            torch.manual_seed(int(np.random.SeedSequence(words).generate_state(1, np.uint32)[0]))
