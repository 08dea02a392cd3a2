"""Run as a script: kill processes that label together again and again, by both engines.

``python label_kills.py REPORT.json [PROCESSES RAY SEED]``: kills of forked shards [70] and of Ray's
workers [30], each at a random moment of its work; a killed shard is started again by the same
command, a killed worker by Ray. A store that is finished is compared with that of one process, byte
by byte, and the next is begun. At last the command is run once more, and once more without a part.
The report keeps what it has of former runs and adds up their kills.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import torch
from pictures import write_noise
from stores import bytes_of

from ferkd.labelling.engines import label_by_ray
from ferkd.labelling.run import Progress, label, label_shard
from ferkd.labelling.settings import Labelling
from ferkd.store.sharing import Shard

IMAGES, SPEC = 60, "timm/test_resnet?random=1&num_classes=3"
SETTINGS = Labelling(
    crops=8, image_size=64, part_images=2, batch_size=8, workers=1, check_agreement=False,
    device="cpu",
)  # fmt: skip


class Killed:
    """What is killed, and how much a killed store has by then."""

    def __init__(self, root: Path, seed: int) -> None:
        sizes = {f"{i % 3}/{i:02d}.png": (40 + i, 90 - i) for i in range(IMAGES)}
        self.images = write_noise(root / "images", sizes)
        label(self.images, SPEC, root / "one", SETTINGS)
        self.root, self.wanted, self.rng = root, bytes_of(root / "one"), random.Random(seed)

    def parts(self, out: Path) -> int:
        return sum(1 for _ in (out / "parts").glob("*.npz"))

    def by_processes(self, kills: int) -> dict[str, Any]:
        """Two shards at a time, each killed within 0.4 s of its start or 0.1 s of a new part."""
        begun, done, stores = time.monotonic(), 0, 0
        within: list[int] = []
        while done < kills:
            out = self.root / f"processes-{stores}"
            while not (out / "manifest.json").exists():
                pids = [self._forked(out, index) for index in range(2)]
                for pid in pids if done < kills else []:
                    if self.rng.random() < 0.8:
                        self._wait_for_a_part(out)
                        time.sleep(self.rng.uniform(0, 0.1))
                    else:
                        time.sleep(self.rng.uniform(0, 0.4))
                    os.kill(pid, signal.SIGKILL)
                ends = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids]
                done += ends.count(-signal.SIGKILL)
                within.append(self.parts(out))
            # Who joined the parts may have been killed at it.
            assert label_shard(self.images, SPEC, out, Shard(), SETTINGS) is not None
            assert bytes_of(out) == self.wanted
            stores += 1
        seconds = round(time.monotonic() - begun)
        return {"kills": done, "stores": stores, "parts_at_restarts": within, "seconds": seconds}

    def _wait_for_a_part(self, out: Path) -> None:
        before, until = self.parts(out), time.monotonic() + 20
        while self.parts(out) == before and time.monotonic() < until:
            if (out / "manifest.json").exists():
                return
            time.sleep(0.005)

    def _forked(self, out: Path, index: int) -> int:
        pid = os.fork()
        if pid == 0:
            try:
                label_shard(self.images, SPEC, out, Shard(index, 2), SETTINGS)
                os._exit(0)
            except BaseException as error:
                # A shard of a process just killed may have been taken over by the other.
                print(repr(error), file=sys.stderr, flush=True)
                os._exit(0 if "is being written by another process" in str(error) else 1)
        return pid

    def by_ray(self, kills: int) -> dict[str, Any]:
        """Two workers at a time, each killed up to 0.3 s after it was seen to write parts."""
        import ray

        os.environ["FERKD_KILLS"] = str(self.root)
        ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False)
        killed: list[tuple[int, int]] = []
        begun, stores = time.monotonic(), 0

        def kill(out: Path, ended: threading.Event) -> None:
            while not ended.is_set() and len(killed) < kills:
                self._wait_for_a_part(out)
                time.sleep(self.rng.uniform(0, 0.1))
                if (pids := self._workers()) and not ended.is_set():
                    os.kill(self.rng.choice(pids), signal.SIGKILL)
                    killed.append((stores, self.parts(out)))

        while len(killed) < kills:
            out, ended = self.root / f"ray-{stores}", threading.Event()
            killer = threading.Thread(target=kill, args=(out, ended), daemon=True)
            killer.start()
            label_by_ray(str(self.images), SPEC, out, SETTINGS, "ray", 2)
            ended.set()
            killer.join(30)
            assert bytes_of(out) == self.wanted
            stores += 1
        ray.shutdown()
        seconds = round(time.monotonic() - begun)
        parts = [part for _, part in killed]
        return {"kills": len(killed), "stores": stores, "parts_at_kills": parts, "seconds": seconds}

    def _workers(self) -> list[int]:
        found = []
        for place in Path("/proc").glob("[0-9]*"):
            try:
                title, environment = (
                    (place / name).read_bytes() for name in ("cmdline", "environ")
                )
            except OSError:
                continue
            # Its title while it is at a part or loads its teacher.
            if title.startswith(b"ray::Device.label") and str(self.root).encode() in environment:
                found.append(int(place.name))
        return found

    def once_more(self) -> dict[str, int]:
        """Crops labelled by a second run, and by one of a store that lacks a part."""
        out, seen = self.root / "again", [0]

        def hear(now: Progress) -> None:
            seen[0] = max(seen[0], now.crops)

        label_shard(self.images, SPEC, out, Shard(0, 2), SETTINGS)
        label_shard(self.images, SPEC, out, Shard(0, 2), SETTINGS, progress=hear)
        again, seen[0] = seen[0], 0
        (out / "parts" / "000004.npz").unlink()
        label_shard(self.images, SPEC, out, Shard(0, 2), SETTINGS, progress=hear)
        return {"second_run": again, "with_one_part_missing": seen[0], "of_a_part": 2 * 8}


def main(report: Path, processes: int = 70, ray: int = 30, seed: int = 0) -> None:
    torch.set_num_threads(1)
    found: dict[str, Any] = json.loads(report.read_text()) if report.exists() else {}
    found |= {"images": IMAGES, "parts": IMAGES // 2}
    with tempfile.TemporaryDirectory() as folder:
        killed = Killed(Path(folder), seed)
        runs = found.setdefault("runs", [])
        if processes:
            runs.append({"engine": "processes", "seed": seed, **killed.by_processes(processes)})
            found["crops"] = killed.once_more()
        if ray:
            runs.append({"engine": "ray", "seed": seed, **killed.by_ray(ray)})
    found["kills"] = {
        engine: sum(run["kills"] for run in runs if run["engine"] == engine)
        for engine in ("processes", "ray")
    }
    report.write_text(json.dumps(found, indent=1) + "\n")
    print(json.dumps(found))


if __name__ == "__main__":
    main(Path(sys.argv[1]), *map(int, sys.argv[2:]))
