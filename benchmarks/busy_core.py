"""What waiting threads cost beside a busy core: ``ferkd demo`` and ``ferkd distill``, timed.

``OMP_NUM_THREADS=2 python benchmarks/busy_core.py --images flowers --out DIR`` runs each command
with threads that sleep while they wait (what ferkd sets before it loads torch) and as OpenMP comes,
in turns, beside ``--busy`` processes of its own that do nothing but count. A run is stopped after
``--limit`` seconds and its progress told instead. Prints JSON: wall and processor seconds.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

# OpenMP of GCC as it comes: a waiting thread spins 300,000 times before it sleeps.
POLICIES = {
    "passive": {"OMP_WAIT_POLICY": "PASSIVE"},
    "as it comes": {"OMP_WAIT_POLICY": "", "GOMP_SPINCOUNT": "300000"},
}


def commands(images: Path, out: Path) -> dict[str, list[str]]:
    """The commands that are timed; ``images`` are about 20 photographs of each of a few classes."""
    model = "timm/test_efficientnet?pretrained=false"
    return {
        "demo": ["ferkd", "demo", "--out", str(out / "demo"), "--overwrite"],
        "distill": [
            *("ferkd", "distill", str(images), "--out", str(out / "distill"), "--overwrite"),
            *("--teacher", "timm/test_resnet?random=0", "--student", model),
            *("--image-size", "64", "--teacher-image-size", "64", "--budget", "12"),
        ],
    }


def timed(command: list[str], environment: dict[str, str], limit: float) -> dict[str, Any]:
    """Wall and processor seconds of a command and its children; ``finished`` says whether it ended
    within ``limit`` seconds."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    begun = time.perf_counter()
    with subprocess.Popen(
        command,
        env={**os.environ, **environment},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            _, told = process.communicate(timeout=limit)
        except subprocess.TimeoutExpired:
            process.kill()
            _, told = process.communicate()
    wall = time.perf_counter() - begun
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return {
        "finished": process.returncode == 0,
        "wall": round(wall, 1),
        "processor": round(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, 1),
        "last": told.strip().splitlines()[-1:] or [""],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--busy", type=int, default=1, help="processes that keep a core busy")
    parser.add_argument("--turns", type=int, default=2)
    parser.add_argument("--limit", type=float, default=600.0)
    parser.add_argument("--only", choices=("demo", "distill"))
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    company = [
        subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(given.busy)
    ]
    rows = []
    try:
        for turn in range(given.turns):
            for name, command in commands(given.images, given.out).items():
                if given.only not in (None, name):
                    continue
                for policy, environment in POLICIES.items():
                    load = os.getloadavg()[0]
                    found = timed(command, environment, given.limit)
                    rows.append(
                        {"command": name, "policy": policy, "turn": turn, "load": load, **found}
                    )
                    print(json.dumps(rows[-1]), file=sys.stderr, flush=True)
    finally:
        for process in company:
            process.kill()
        for name in ("demo", "distill"):
            shutil.rmtree(given.out / name, ignore_errors=True)
    threads = os.environ.get("OMP_NUM_THREADS", "all")
    print(json.dumps({"threads": threads, "busy": given.busy, "rows": rows}, indent=1))


if __name__ == "__main__":
    main()
