"""ferkd train, but that process 1 is killed at step STEP of its first start: killed.py STEP ..."""

from __future__ import annotations

import os
import signal
import sys

from ferkd import cli
from ferkd.system.launch import restarts
from ferkd.training.trainer import Trainer

STEP = int(sys.argv.pop(1))
take = Trainer._take


def mortal(self: Trainer, batch: object) -> None:
    if self.step == STEP and os.environ["RANK"] == "1" and not restarts():
        os.kill(os.getpid(), signal.SIGKILL)
    take(self, batch)


Trainer._take = mortal  # type: ignore[method-assign, assignment]
if __name__ == "__main__":
    cli.main()
