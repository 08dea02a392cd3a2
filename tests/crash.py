"""Run as a script: disturb a labelling job again and again, resuming it each time.

``python tests/crash.py --kills 100 --seed 0 --json docs/results/store-crash.json`` labels a small
folder once undisturbed by one teacher and adds the signal of another, then interrupts further
passes over it in every way of KINDS, in turn and at random points, until KILLS attempts have been
ended. Every store that comes to its end is
compared with the undisturbed one, byte by byte. Then two jobs are started on one output, and
FLIPS random bits of the store are flipped, one at a time and in every file, for verification to
find. Each attempt is a process of its own, a fork, so that the imports are paid once. With
``--minutes`` the work comes in portions: one that is not through leaves its counts in the file of
``--json`` and ends with 3, and the same command goes on from there, with other random numbers.
"""

from __future__ import annotations

import argparse
import datetime
import json
import math
import os
import platform
import random
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from stores import bytes_of

from ferkd.labelling.run import Progress, label
from ferkd.labelling.verify import verify_store
from ferkd.models.teacher import Inputs, Teacher
from ferkd.store import LabelStore, arrays

PAGE = 4096
ADDED = "second"
ADDING = f"adding-{ADDED}"
ROOM = 64 << 20  # of the small file system, when it is not made full
Prepare = Callable[[], None]
Counts = dict[str, Any]


class Deadline:
    """When a portion of the work ends."""

    def __init__(self, minutes: float) -> None:
        self._at = time.monotonic() + 60 * minutes

    @property
    def over(self) -> bool:
        return time.monotonic() > self._at


ENDLESS = Deadline(math.inf)


def after_each_part(act: Callable[[], object]) -> Callable[[Progress], None]:
    """A progress callback that acts once after each part was written."""
    written = 0

    def progress(now: Progress) -> None:
        nonlocal written
        if now.parts > written:
            written = now.parts
            act()

    return progress


def teacher(seed: int) -> Teacher:
    torch.manual_seed(seed)
    network = torch.nn.Sequential(
        torch.nn.Conv2d(3, 4, 5), torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten()
    )
    module = torch.nn.Sequential(network, torch.nn.Linear(4, 2))
    return Teacher(module, Inputs(image_size=16), spec=f"test {seed}", device="cpu")


class Scene:
    """A folder of images, a file system for the stores, and the store of an undisturbed job."""

    def __init__(self, work: Path, rng: random.Random) -> None:
        self.work, self.rng = work, rng
        self.images, self.disk, self.log = work / "images", work / "disk", work / "log"
        for index in range(60):
            path = self.images / f"class {index % 2}" / f"{index:02}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            shape = (24 + index % 7, 32, 3)
            pixels = np.random.default_rng(index).integers(0, 256, shape, dtype=np.uint8)
            cv2.imwrite(str(path), pixels)
        self.disk.mkdir()
        self.no_tmpfs = _tried("mount", "-t", "tmpfs", "-o", f"size={ROOM}", "tmpfs", self.disk)
        self.round = self.told = 0
        self.out = self.disk / "whole"
        operations = work / "operations"
        begun = time.monotonic()
        assert ended(self.start(lambda: operations_of(self.out, None, operations))) == "done"
        self.seconds = time.monotonic() - begun
        self.operations = operations.stat().st_size
        self.whole = bytes_of(self.out)
        self.added = 0  # interruptions that met a finished store to which a signal was added
        self.fresh()

    def fresh(self) -> None:
        """The next job writes a new store."""
        self.round += 1
        self.out = self.disk / f"{self.round}"

    def check_readable(self) -> None:
        """A store that is finished keeps its first signal's bytes and opens at every instant."""
        if not (self.out / "manifest.json").exists():
            return
        store = LabelStore(self.out)
        self.added += ADDED not in store.manifest.signals
        for file in (*store.manifest.geometry.files, *store.manifest.signals["labels"].files):
            if file.name != "images.npy":  # of an image replaced, the fingerprint may differ
                assert (self.out / file.name).stat().st_size == len(self.whole[file.name])

    def close(self) -> None:
        if not self.no_tmpfs:
            subprocess.run(["umount", self.disk], check=True)

    def start(self, prepare: Prepare | None = None, wait: int | None = None) -> int:
        """Start the job in a process of its own; its id. ``wait``: a pipe to read from midway."""
        pid = os.fork()
        if pid:
            return pid
        try:
            arrays.FILE_BYTES = 4000  # several files of records
            if prepare:
                prepare()
            torch.set_num_threads(1)
            common: dict[str, Any] = {"batch_size": 4, "resume": True, "recheck": True}
            if wait:
                common["progress"] = after_each_part(lambda: os.read(wait, 1))
            drawn: dict[str, Any] = {"crops": 5, "top_k": 1, "part_images": 2}
            label(self.images, teacher(0), self.out, **drawn, **common)
            label(self.images, teacher(1), self.out, into=True, signal=ADDED, top_k=1, **common)
            os._exit(0)
        except BaseException as error:
            resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY,) * 2)
            self.log.write_text(f"{type(error).__name__}: {error}")
        finally:
            os._exit(1)

    def pause(self) -> None:
        time.sleep(self.rng.uniform(0, self.seconds / 2))

    def wait_for(self, pattern: str) -> None:
        """Wait until a job has written such a file."""
        deadline = time.monotonic() + 20
        while not list(self.out.glob(pattern)):
            assert time.monotonic() < deadline, f"no {pattern}; log: {self.log}"
            time.sleep(0.001)

    def an_image(self) -> Path:
        return self.rng.choice(sorted(self.images.rglob("*.png")))


def ended(pid: int) -> str:
    """Wait for a process: "killed" by a signal, "failed" by itself, or "done"."""
    _, status = os.waitpid(pid, 0)
    if os.WIFSIGNALED(status):
        return "killed"
    return "failed" if os.WEXITSTATUS(status) else "done"


def operations_of(out: Path, deadly: int | None, count: Path | None = None) -> None:
    """Count this process's file operations in ``out``; die of the one numbered ``deadly``.

    With ``count``, a byte a operation is appended to that file.
    """
    seen = 0

    def hook(event: str, arguments: tuple[object, ...]) -> None:
        nonlocal seen
        if event not in ("open", "os.rename", "os.remove", "os.mkdir", "os.rmdir"):
            return
        if not str(arguments[0]).startswith(str(out)):
            return
        seen += 1
        if count:
            with count.open("ab") as file:
                file.write(b".")
        if seen == deadly:
            os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)


# Each kind starts the job, disturbs it, undoes the disturbance, and says how the job ended.


def by_signal(scene: Scene, number: signal.Signals) -> str:
    pid = scene.start()
    scene.pause()
    os.kill(pid, number)
    return ended(pid)


def at_an_operation(scene: Scene) -> str:
    deadly = scene.rng.randint(1, scene.operations // 2)
    return ended(scene.start(lambda: operations_of(scene.out, deadly)))


def disk_full(scene: Scene) -> str:
    used = os.statvfs(scene.disk)
    left = used.f_bsize * (used.f_blocks - used.f_bfree) + PAGE * scene.rng.randint(0, 30)
    _run("mount", "-o", f"remount,size={left}", scene.disk)
    outcome = ended(scene.start())
    _run("mount", "-o", f"remount,size={ROOM}", scene.disk)
    return outcome


def file_limit(scene: Scene) -> str:
    limit = scene.rng.randint(1, max(map(len, scene.whole.values())))
    limits = (limit, resource.RLIM_INFINITY)
    return ended(scene.start(lambda: resource.setrlimit(resource.RLIMIT_FSIZE, limits)))


def unwritable(scene: Scene) -> str:
    pid = scene.start()
    scene.pause()
    frozen = [p for p in (scene.out / "parts", scene.out, scene.disk) if p.is_dir()]
    for folder in frozen:
        _freeze(folder, True)
    outcome = ended(pid)
    for folder in frozen:
        if folder.is_dir():
            _freeze(folder, False)
    return outcome


def image_removed(scene: Scene) -> str:
    image, aside = scene.an_image(), scene.work / "aside"
    pid = scene.start()
    scene.wait_for("*.json")  # a new job has listed its images then
    scene.pause()
    image.rename(aside)
    outcome = ended(pid)
    aside.rename(image)
    return outcome


def image_damaged(scene: Scene) -> str:
    image = scene.an_image()
    data = image.read_bytes()
    pid = scene.start()
    scene.pause()
    image.write_bytes(data[: len(data) // 2])
    outcome = ended(pid)
    image.write_bytes(data)
    return outcome


def image_replaced(scene: Scene) -> str:
    """Labels of the other image may be written; the next job finds that it changed."""
    image = scene.an_image()
    data = image.read_bytes()
    image.write_bytes(cv2.imencode(".png", np.zeros((30, 30, 3), np.uint8))[1].tobytes())
    pid = scene.start()
    scene.pause()
    os.kill(pid, signal.SIGKILL)
    outcome = ended(pid)
    image.write_bytes(data)
    image_id = str(image.relative_to(scene.images))
    other = f"{image_id} is not the file that was labelled"
    if outcome == "failed" and other in scene.log.read_text():
        return "refused"  # the store was finished with the image itself; the kill came too late
    if (scene.out / "manifest.json").exists():  # finished before the kill, so it stays as it is
        again = ended(scene.start())
        if again == "failed":  # the added signal is of another image: told while it is added
            assert other in scene.log.read_text()
        if again == "failed" or bytes_of(scene.out) != scene.whole:  # verification tells it too
            verified = verify_store(scene.out, images=scene.images)
            left = [ADDING, "lock"]  # of the pass that was refused
            named = [p.where for p in verified.problems if p.where not in left]
            assert image_id in named or again == "failed", verified
            scene.told += 1
            scene.fresh()
    return outcome


KINDS: dict[str, tuple[str, Callable[[Scene], str]]] = {
    "SIGKILL": ("killed", lambda scene: by_signal(scene, signal.SIGKILL)),
    "SIGTERM": ("killed", lambda scene: by_signal(scene, signal.SIGTERM)),
    "SIGKILL at a file operation": ("killed", at_an_operation),
    "disk full": ("failed", disk_full),
    "file size limit": ("failed", file_limit),
    "folder made unwritable": ("failed", unwritable),
    "image removed": ("failed", image_removed),
    "image damaged": ("failed", image_damaged),
    "image replaced, then SIGKILL": ("killed", image_replaced),
}


def missing_kinds(scene: Scene) -> dict[str, str]:
    """The kinds that this machine cannot do, and why."""
    missing = {}
    if scene.no_tmpfs:
        missing["disk full"] = f"no tmpfs can be mounted ({scene.no_tmpfs})"
    if os.geteuid() == 0 and (reason := _tried("chattr", "-i", scene.disk)):
        missing["folder made unwritable"] = f"root, and no chattr ({reason})"
    return missing


def disturb(
    scene: Scene, kills: int, done: Counts | None = None, until: Deadline = ENDLESS
) -> Counts:
    """Interrupt jobs until that was done ``kills`` times; the counts, those ``done`` before among
    them."""
    missing = missing_kinds(scene)
    found = done or {
        "interruptions": 0,
        "by_kind": dict.fromkeys((kind for kind in KINDS if kind not in missing), 0),
        "not_possible_here": missing,
        "signals_being_added": 0,
        "attempts": 0,
        "stores_completed": 0,
        "stores_differing": 0,
        "finished_with_another_image_and_told_by_verify": 0,
    }
    counts = found["by_kind"]
    while sum(counts.values()) < kills and not until.over:
        found["attempts"] += 1
        assert found["attempts"] < 20 * kills + 100, f"hardly any attempt is hit: {counts}"
        kind = min(counts, key=lambda kind: (counts[kind], scene.rng.random()))
        expected, disturbance = KINDS[kind]
        outcome, before = disturbance(scene), scene.round
        scene.check_readable()
        if outcome == expected:
            counts[kind] += 1
        elif outcome not in ("done", "refused"):
            raise AssertionError(f"{kind}: {outcome}: {scene.log.read_text()}")
        if outcome == "failed":
            told = scene.log.read_text()
            assert told.startswith(("InputError", "Unwritable")), told
        last = sum(counts.values()) == kills or until.over
        if last or outcome == "done":
            if ended(scene.start()) != "done":
                raise AssertionError(f"after {kind}: {scene.log.read_text()}")
            found["stores_completed"] += 1
            if bytes_of(scene.out) != scene.whole:
                found["stores_differing"] += 1
                print(f"the store differs after {kind}", file=sys.stderr)
            shutil.rmtree(scene.out)
            assert before == scene.round
            scene.fresh()
    found["interruptions"] = sum(counts.values())
    found["signals_being_added"] += scene.added
    found["finished_with_another_image_and_told_by_verify"] += scene.told
    return found


def two_jobs(scene: Scene) -> str:
    """Start a second job while the first is in the middle of its work; what the second says."""
    reading, writing = os.pipe()
    first = scene.start(wait=reading)
    scene.wait_for("parts/*.npz")
    assert ended(scene.start()) == "failed"
    refusal = scene.log.read_text()
    os.write(writing, b"." * 100)
    assert ended(first) == "done"
    assert bytes_of(scene.out) == scene.whole
    return refusal.replace(str(scene.out), "STORE")


def flips(
    scene: Scene, count: int, done: Counts | None = None, until: Deadline = ENDLESS
) -> Counts:
    """Flip random bits of the finished store, one at a time, until that was done ``count`` times;
    the counts by file, those ``done`` before among them."""
    files = sorted(scene.out.iterdir())
    found = done or {
        "by_file": dict.fromkeys((file.name for file in files), 0),
        "tried": 0,
        "missed": 0,
    }
    while found["tried"] < count and not until.over:
        file = files[found["tried"] % len(files)]
        whole = file.read_bytes()
        flipped = bytearray(whole)
        flipped[scene.rng.randrange(len(whole))] ^= 1 << scene.rng.randrange(8)
        file.write_bytes(flipped)
        named = [problem.where for problem in verify_store(scene.out).problems]
        found["missed"] += named != [file.name]
        found["tried"] += 1
        found["by_file"][file.name] += 1
        file.write_bytes(whole)
    return found


def _run(*command: object) -> None:
    subprocess.run([str(word) for word in command], check=True, capture_output=True)


def _tried(*command: object) -> str | None:
    """None where the command works, else why not."""
    try:
        _run(*command)
    except FileNotFoundError:
        return f"no {command[0]}"
    except subprocess.CalledProcessError as error:
        return str(error.stderr.decode().strip())
    return None


def _freeze(folder: Path, frozen: bool) -> None:
    if os.geteuid() == 0:  # whom permissions do not stop
        _run("chattr", "+i" if frozen else "-i", folder)
    else:
        folder.chmod(0o555 if frozen else 0o755)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--flips", type=int, default=2000)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--minutes", type=float, default=math.inf)
    options = parser.parse_args()
    begun, until = time.monotonic(), Deadline(options.minutes)
    result: Counts = {"portions": 0, "seconds": 0.0}
    if options.json and options.json.exists():
        before = json.loads(options.json.read_text())
        if before.get("unfinished"):
            result = before
    with tempfile.TemporaryDirectory() as work:
        scene = Scene(Path(work), random.Random(f"{options.seed} {result['portions']}"))
        try:
            result["kills"] = disturb(scene, options.kills, result.get("kills"), until)
            result["second_job_says"] = two_jobs(scene)
            result["flips"] = flips(scene, options.flips, result.get("flips"), until)
        finally:
            scene.close()
    result["portions"] += 1
    result["seconds"] = round(result["seconds"] + time.monotonic() - begun, 1)
    left = result["kills"]["interruptions"] < options.kills
    left = left or result["flips"]["tried"] < options.flips
    numbers = f"--kills {options.kills} --flips {options.flips} --seed {options.seed}"
    if options.minutes < math.inf:
        numbers += f" --minutes {options.minutes:g}"
    machine = (
        f"{platform.system()} {platform.release()} {platform.machine()}, {os.cpu_count()} CPUs"
    )
    result |= {
        "command": f"python tests/crash.py {numbers}",
        "date": datetime.date.today().isoformat(),
        "machine": f"{machine}, Python {platform.python_version()}, torch {torch.__version__}",
        "unfinished": left,
    }
    if not left:
        result = {**result.pop("kills"), **result}
        del result["unfinished"]
    text = json.dumps(result, indent=1) + "\n"
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(text)
    print(text, end="")
    sys.exit(3 if left else 0)


if __name__ == "__main__":
    main()
