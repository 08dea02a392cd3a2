"""How a linear probe's penalty is chosen from few labels: by one fifth, and by each fifth in turn.

``python docs/results/probe_penalty.py STORE`` takes the features of the first crop of 1 to 10 % of
the images of STORE, four draws of each share, fits a probe with each penalty, and judges it on the
second crop of the images that are left. Prints the mean NLL there of the penalty that one fifth of
the known images chooses (the least loss on every fifth image), of the one that
:func:`ferkd.training.probe.choose_penalty` chooses, and of the best one.
"""

from __future__ import annotations

import sys

import numpy as np
import torch
from torch import Tensor, nn

from ferkd.store import LabelStore
from ferkd.system.tables import markdown
from ferkd.training.probe import PENALTIES, _loss_on, _regression, choose_penalty

SHARES, DRAWS = (1, 2, 5, 10), 4


def main(path: str) -> None:
    store = LabelStore(path).of_kinds("features")
    rows = np.arange(len(store))
    targets = torch.from_numpy(store.truth(rows))
    first, second = (torch.from_numpy(store.features(rows, crop)) for crop in (0, 1))
    lines = []
    for share in SHARES:
        found = np.array([_draw(first, second, targets, share, draw) for draw in range(DRAWS)])
        cells = [f"{share} %", *(f"{value:.3f}" for value in found.mean(0))]
        lines.append(cells)
    print(markdown(["known", "by one fifth", "by each fifth", "best"], lines))


def _draw(
    first: Tensor, second: Tensor, targets: Tensor, share: int, seed: int
) -> tuple[float, float, float]:
    """The NLL of one draw of the known images by each way of choosing."""
    generator, classes = torch.Generator().manual_seed(seed), int(targets.max()) + 1
    parts = []
    for one in range(classes):
        places = (targets == one).nonzero()[:, 0]
        count = max(1, len(places) * share // 100)
        parts.append(places[torch.randperm(len(places), generator=generator)[:count]].sort().values)
    known = torch.cat(parts)
    rest = torch.ones(len(targets), dtype=torch.bool)
    rest[known] = False
    mean, std = first[known].mean(0), first[known].std(0, correction=0).clamp_min(1e-6)
    values, truth = (first[known] - mean) / std, targets[known]
    judged = (second[rest] - mean) / std

    def loss(penalty: float) -> float:
        weight, bias = _regression(values, truth, classes, penalty)
        return float(nn.functional.cross_entropy(judged @ weight.T + bias, targets[rest]))

    losses = {penalty: loss(penalty) for penalty in PENALTIES}
    fifth = torch.arange(len(truth)) % 5 == 4
    single = min(PENALTIES, key=lambda p: float(_loss_on(values, truth, classes, p, fifth).mean()))
    chosen = choose_penalty(values, truth, classes)
    return losses[single], losses[chosen], min(losses.values())


if __name__ == "__main__":
    main(sys.argv[1])
