"""A linear probe: the best head on a network's frozen features, which are computed once."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn

from ferkd.evaluating.center_crops import CenterCrops
from ferkd.system.compute import Normalise, autocast
from ferkd.system.errors import InputError

# Of the squared weights, on standardised features.
PENALTIES = (1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0)
_FOLDS = 5
_FEW = 2000  # images of which each is held out once; of more every fifth, which are enough
_ITERATIONS = 200


def head_of(model: nn.Module, classes: int) -> nn.Linear:
    """The linear layer that ends the network; InputError where there is none of ``classes``."""
    get_classifier = getattr(model, "get_classifier", None)
    found = get_classifier() if callable(get_classifier) else None
    if not isinstance(found, nn.Linear):
        linear = [part for part in model.modules() if isinstance(part, nn.Linear)]
        found = linear[-1] if linear else None
    if found is None or found.out_features != classes:
        raise InputError(
            f"{type(model).__name__} does not end in a linear layer of {classes} classes, which "
            "a linear probe needs; give another network, or a teacher of these classes"
        )
    return found


def features(
    model: nn.Module,
    head: nn.Linear,
    crops: CenterCrops,
    *,
    normalise: Normalise,
    dtype: torch.dtype = torch.float32,
    batch_size: int = 32,
) -> tuple[Tensor, Tensor]:
    """What reaches ``head`` for the central crop of every readable image, in evaluation mode.

    Returns float32 [N, D] on the CPU, and int64 [N]: the images' places in their source.
    """
    caught: list[Tensor] = []

    def keep(_: nn.Module, inputs: tuple[Any, ...]) -> None:
        caught.append(cast(Tensor, inputs[0]).detach().float().cpu())

    rows: list[Tensor] = []
    model.eval()
    hook = head.register_forward_pre_hook(keep)
    try:
        with torch.inference_mode(), autocast(normalise.device, dtype):
            for pixels, numbers in crops.batches(batch_size):
                model(normalise(pixels))
                rows.append(numbers)
    finally:
        hook.remove()
    if not rows:
        raise InputError(f"{crops.images.name} holds no image that can be read; check the path")
    return torch.cat(caught).clone(), torch.cat(rows)


def fit(values: Tensor, targets: Tensor, classes: int) -> tuple[Tensor, Tensor, float]:
    """Multinomial logistic regression of ``targets`` int64 [N] on ``values`` float [N, D].

    Features are standardised; :func:`choose_penalty` chooses, and the fit is then made on all.
    Returns weights [C, D] and biases [C] for the features as they are, and the penalty.
    Deterministic.
    """
    mean, std = values.mean(0), values.std(0, correction=0).clamp_min(1e-6)
    scaled = ((values - mean) / std).float()
    penalty = choose_penalty(scaled, targets, classes)
    weight, bias = _regression(scaled, targets, classes, penalty)
    weight = weight / std
    return weight, bias - weight @ mean, penalty


def choose_penalty(values: Tensor, targets: Tensor, classes: int) -> float:
    """The penalty of :data:`PENALTIES` for standardised ``values``, by images that are held out.

    Every fifth image of a class is held out, and of up to :data:`_FEW` images each fifth in turn:
    one fifth of few images is too small a jury. Of penalties whose losses there differ by no more
    than a standard error of the difference the largest is taken, since a probe that is too sure
    teaches worse than one that is not sure enough (the one-standard-error rule of Breiman et al.,
    Classification and Regression Trees, 1984, on paired losses).
    """
    place = torch.empty_like(targets)
    for one in targets.unique():
        of_class = targets == one
        count = int(of_class.sum())
        # The only image of a class is never held out: a fit without it knows nothing of the class.
        place[of_class] = torch.arange(count) % _FOLDS if count > 1 else -1
    turns = range(_FOLDS) if len(values) <= _FEW else [_FOLDS - 1]
    held = [place == turn for turn in turns if (place == turn).any() and (place != turn).any()]
    if not held:
        return PENALTIES[-2]
    losses = torch.stack(
        [
            torch.cat([_loss_on(values, targets, classes, one, out) for out in held])
            for one in PENALTIES
        ]
    )
    best = int(losses.mean(1).argmin())
    excess = losses - losses[best]
    error = excess.std(1, correction=0) / excess.shape[1] ** 0.5
    return PENALTIES[int((excess.mean(1) <= error).nonzero().max())]


def _loss_on(values: Tensor, targets: Tensor, classes: int, penalty: float, held: Tensor) -> Tensor:
    """The cross-entropy of each image that is ``held`` out of the fit."""
    weight, bias = _regression(values[~held], targets[~held], classes, penalty)
    logits = values[held] @ weight.T + bias
    return nn.functional.cross_entropy(logits, targets[held], reduction="none")


def _regression(
    values: Tensor, targets: Tensor, classes: int, penalty: float
) -> tuple[Tensor, Tensor]:
    weight = torch.zeros(classes, values.shape[1], requires_grad=True)
    bias = torch.zeros(classes, requires_grad=True)
    search = torch.optim.LBFGS(
        [weight, bias], max_iter=_ITERATIONS, line_search_fn="strong_wolfe", tolerance_change=1e-7
    )

    def loss() -> Tensor:
        search.zero_grad()
        value = nn.functional.cross_entropy(values @ weight.T + bias, targets)
        value = value + penalty / 2 * weight.square().sum()
        value.backward()  # type: ignore[no-untyped-call]
        return value

    search.step(loss)  # type: ignore[no-untyped-call]
    return weight.detach(), bias.detach()
