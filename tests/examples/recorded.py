"""Runs an example and notes what its loader hands out: recorded.py LOG STOP EXAMPLE ARGUMENTS...

One line a batch goes to LOG.RANK: pass, batch, rows, crops. The process ends where it asks for one
batch more than STOP, as one that is killed there.
"""

from __future__ import annotations

import json
import os
import runpy
import sys
from collections.abc import Iterator
from pathlib import Path

from ferkd.loading.batch import Batch
from ferkd.loading.loader import SoftLabelLoader

log, stop, example = sys.argv[1], int(sys.argv[2]), sys.argv[3]
given = SoftLabelLoader.__iter__
handed_out = 0


def recorded(self: SoftLabelLoader) -> Iterator[Batch]:
    global handed_out
    for batch in given(self):
        if handed_out == stop:
            os._exit(9)
        handed_out += 1
        epoch, number = self._at
        line = [epoch, number - 1, batch.rows.tolist(), batch.crops.tolist()]
        with Path(f"{log}.{self.ranks.rank}").open("a") as file:
            file.write(json.dumps(line) + "\n")
        yield batch


SoftLabelLoader.__iter__ = recorded  # type: ignore[method-assign]
if __name__ == "__main__":
    sys.argv = [example, *sys.argv[4:]]
    runpy.run_path(example, run_name="__main__")
