"""Runs an example and notes what it trains on: recorded.py LOG STOP EXAMPLE ARGUMENTS...

One line a batch goes to LOG.RANK: pass, batch, rows, crops. One line an optimiser's step goes to
LOG.RANK.weights: the sum of all weights. After STOP batches the first process ends as one that is
killed while it writes a checkpoint: half of the file is there.
"""

from __future__ import annotations

import io
import json
import os
import runpy
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch.optim.optimizer import register_optimizer_step_post_hook

from ferkd.loading.batch import Batch
from ferkd.loading.loader import SoftLabelLoader

log, stop, example = sys.argv[1], int(sys.argv[2]), sys.argv[3]
given, save = SoftLabelLoader.__iter__, torch.save
handed_out, rank = 0, 0


def note(file: str, line: Any) -> None:
    with Path(file).open("a") as opened:
        opened.write(json.dumps(line) + "\n")


def recorded(self: SoftLabelLoader) -> Iterator[Batch]:
    global handed_out, rank
    rank = self.ranks.rank
    for batch in given(self):
        if handed_out == stop:  # nothing is being written
            os._exit(9)
        handed_out += 1
        epoch, number = self._at
        note(f"{log}.{rank}", [epoch, number - 1, batch.rows.tolist(), batch.crops.tolist()])
        yield batch


def torn(value: Any, file: Any, *args: Any, **options: Any) -> None:
    if handed_out < stop or rank:
        save(value, file, *args, **options)
        return
    whole = io.BytesIO()
    save(value, whole)
    if isinstance(file, str | os.PathLike):
        Path(file).write_bytes(whole.getvalue()[: whole.tell() // 2])
    os._exit(9)


def weighed(optimizer: torch.optim.Optimizer, *_: Any) -> None:
    weights = [w.double().sum() for group in optimizer.param_groups for w in group["params"]]
    note(f"{log}.{rank}.weights", float(sum(weights)))


SoftLabelLoader.__iter__ = recorded  # type: ignore[method-assign]
torch.save = torn  # type: ignore[assignment]
register_optimizer_step_post_hook(weighed)
if __name__ == "__main__":
    sys.argv = [example, *sys.argv[4:]]
    runpy.run_path(example, run_name="__main__")
