"""Several processes label one store together: the bytes of one process, whoever dies."""

from __future__ import annotations

import os
import random
import shutil
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from pictures import write_noise
from stores import bytes_of

from ferkd import label
from ferkd.labelling.engines import label_by_ray
from ferkd.labelling.run import Progress, finish, label_shard
from ferkd.labelling.settings import Labelling
from ferkd.models.teacher import Inputs, Teacher
from ferkd.store import LabelStore, sharing
from ferkd.store.sharing import Shard
from ferkd.system.errors import InputError

IMAGES = 23  # in parts of 3: seven whole ones and one of 2
OPTIONS: dict[str, Any] = {"crops": 2, "part_images": 3, "batch_size": 4, "workers": 1}


def teacher() -> Teacher:
    torch.manual_seed(0)
    torch.set_num_threads(1)
    module = torch.nn.Sequential(
        torch.nn.Conv2d(3, 8, 3),
        torch.nn.AdaptiveAvgPool2d(1),
        torch.nn.Flatten(),
        torch.nn.Linear(8, 3),
    )
    return Teacher(module, Inputs(image_size=16), spec="test", device="cpu")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    sizes = {f"class {i % 3}/{i:02d}.png": (20 + i, 50 - i) for i in range(IMAGES)}
    return write_noise(tmp_path / "images", sizes)


@pytest.fixture
def alone(folder: Path, tmp_path: Path) -> dict[str, bytes]:
    """The bytes that one process writes."""
    label(folder, teacher(), tmp_path / "alone", **OPTIONS)
    return bytes_of(tmp_path / "alone")


def shard(folder: Path, out: Path, which: str, **more: Any) -> LabelStore | None:
    return label_shard(folder, teacher(), out, Shard.parse(which), **(OPTIONS | more))


def parts_of(out: Path) -> list[int]:
    return sorted(int(path.stem) for path in (out / "parts").glob("*.npz"))


TAKEN = 4  # the exit of a process whose shard the other one had taken over


def forked(job: Callable[[], object]) -> int:
    """The id of a process that does ``job``."""
    pid = os.fork()
    if pid == 0:
        try:
            job()
            os._exit(0)
        except BaseException as error:
            print(repr(error), file=sys.stderr, flush=True)
            os._exit(TAKEN if "is being written by another process" in str(error) else 1)
    return pid


def dies_after(parts: int) -> Callable[[Progress], None]:
    def progress(now: Progress) -> None:
        if now.parts == parts:
            os.kill(os.getpid(), signal.SIGKILL)

    return progress


def test_shards_one_after_the_other_write_the_bytes_of_one_process(
    folder: Path, tmp_path: Path, alone: dict[str, bytes]
) -> None:
    out = tmp_path / "s"
    assert shard(folder, out, "0/2") is None
    assert parts_of(out) == [0, 2, 4, 6]  # every second one; what never began is left alone
    assert shard(folder, out, "1/2") is not None
    assert bytes_of(out) == alone


def test_shards_at_once_write_the_bytes_of_one_process(
    folder: Path, tmp_path: Path, alone: dict[str, bytes]
) -> None:
    out = tmp_path / "s"
    pids = [forked(lambda i=i: shard(folder, out, f"{i}/3")) for i in range(3)]
    assert [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids] == [0, 0, 0]
    assert bytes_of(out) == alone


def test_the_same_command_again_does_what_is_missing_and_no_more(
    folder: Path, tmp_path: Path, alone: dict[str, bytes]
) -> None:
    out, crops = tmp_path / "s", []
    shard(folder, out, "0/2")
    shard(folder, out, "0/2", progress=lambda now: crops.append(now.crops))
    assert max(crops) == 0
    (out / "parts" / "000004.npz").unlink()
    shard(folder, out, "0/2", progress=lambda now: crops.append(now.crops))
    assert max(crops) == 3 * 2
    shard(folder, out, "1/2")
    assert shard(folder, out, "1/2") is not None  # finished: opened
    assert bytes_of(out) == alone


def test_the_shard_of_a_process_that_died_is_taken_over(
    folder: Path, tmp_path: Path, alone: dict[str, bytes]
) -> None:
    out = tmp_path / "s"
    pid = forked(lambda: shard(folder, out, "0/2", progress=dies_after(1)))
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGKILL
    assert parts_of(out) == [0]
    assert shard(folder, out, "1/2") is not None
    assert bytes_of(out) == alone


def test_a_shard_belongs_to_one_process_and_a_store_to_one_kind_of_writer(
    folder: Path, tmp_path: Path
) -> None:
    out = tmp_path / "s"

    def waits(now: Progress) -> None:
        if now.parts == 1:
            (tmp_path / "begun").touch()
            time.sleep(60)

    pid = forked(lambda: shard(folder, out, "0/2", progress=waits))
    try:
        while not (tmp_path / "begun").exists():
            time.sleep(0.02)
        with pytest.raises(InputError, match=r"shard 0/2 of .* is being written by another"):
            shard(folder, out, "0/2")
        with pytest.raises(InputError, match=r"another process \(shard-0-of-2\); wait"):
            label(folder, teacher(), out, resume=True, **OPTIONS)
        assert shard(folder, out, "1/2") is None
        assert parts_of(out) == [0, 1, 3, 5, 7]
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    with pytest.raises(InputError, match="begun with other settings"):
        shard(folder, out, "1/2", crops=3)
    assert label(folder, teacher(), out, resume=True, **OPTIONS) is not None


def test_finishing_by_hand(folder: Path, tmp_path: Path, alone: dict[str, bytes]) -> None:
    out = tmp_path / "s"
    with pytest.raises(InputError, match="holds no labels"):
        finish(folder, out)
    shard(folder, out, "0/2")
    with pytest.raises(InputError, match=r"4 of the 8 parts of .* not labelled yet \(first: 1\)"):
        finish(folder, out)
    real = sharing.SharedWriter.finish
    try:  # the last shard dies before it joins
        sharing.SharedWriter.finish = lambda self: os._exit(3)  # type: ignore[method-assign]
        pid = forked(lambda: shard(folder, out, "1/2"))
    finally:
        sharing.SharedWriter.finish = real  # type: ignore[method-assign]
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 3
    assert not (out / "manifest.json").exists()
    assert len(finish(folder, out)) == IMAGES
    assert bytes_of(out) == alone
    assert len(finish(folder, out)) == IMAGES
    (folder / "class 0" / "new.png").write_bytes((folder / "class 0" / "00.png").read_bytes())
    with pytest.raises(InputError, match="are not those"):
        finish(folder, out)


# --- a signal more ----------------------------------------------------------------------------

ADDED = {"into": True, "signal": "more", "top_k": 2}


@pytest.fixture
def more(folder: Path, alone: dict[str, bytes], tmp_path: Path) -> dict[str, bytes]:
    """The bytes of the store with a signal that one process has added."""
    shutil.copytree(tmp_path / "alone", tmp_path / "more")
    label(folder, teacher(), tmp_path / "more", **(OPTIONS | ADDED))
    return bytes_of(tmp_path / "more")


def test_a_signal_is_added_by_shards_as_by_one_process(
    folder: Path, tmp_path: Path, alone: dict[str, bytes], more: dict[str, bytes]
) -> None:
    out = tmp_path / "alone"
    shard(folder, out, "0/2", **ADDED)
    assert parts_of(out / "adding-more") == [0, 2, 4, 6]
    assert {name: bytes_of(out)[name] for name in alone} == alone  # readable, and untouched
    pid = forked(lambda: shard(folder, out, "1/2", progress=dies_after(2), **ADDED))
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGKILL
    wanted = Labelling(**ADDED)
    with pytest.raises(InputError, match=r"2 of the 8 parts of .* not labelled yet \(first: 5\)"):
        finish(folder, out, wanted)
    assert shard(folder, out, "0/2", **ADDED) is not None  # takes over what 1/2 has left
    assert bytes_of(out) == more
    assert not list(out.glob("adding-*"))
    store = finish(folder, out, wanted)
    assert list(store.manifest.signals) == ["labels", "more"]
    # Once more: nothing is to do.
    crops: list[int] = []
    shard(folder, out, "1/2", progress=lambda now: crops.append(now.crops), **ADDED)
    assert max(crops) == 0 and bytes_of(out) == more


def test_a_signal_that_shards_are_adding_is_not_written_by_others(
    folder: Path, tmp_path: Path, alone: dict[str, bytes]
) -> None:
    out, begun = tmp_path / "alone", tmp_path / "begun"

    def waits(now: Progress) -> None:
        if now.parts == 1:
            begun.touch()
            time.sleep(60)

    pid = forked(lambda: shard(folder, out, "0/2", progress=waits, **ADDED))
    try:
        while not begun.exists():
            time.sleep(0.02)
        with pytest.raises(InputError, match=r"another process \(shard-0-of-2\); wait"):
            label(folder, teacher(), out, resume=True, **(OPTIONS | ADDED))
        with pytest.raises(InputError, match=r"another process \(shard-0-of-2\); wait"):
            label(folder, teacher(), out, overwrite=True, **OPTIONS)  # the store below the signal
        other = label(folder, teacher(), out, **(OPTIONS | ADDED | {"signal": "other"}))
        assert list(other.manifest.signals) == ["labels", "other"]
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    with pytest.raises(InputError, match=r"begun with other settings \(record\.k was 2, now 3"):
        shard(folder, out, "1/2", **(ADDED | {"top_k": 3}))


def test_the_signal_of_a_new_store_has_its_usual_name(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"signal is more, but .*; leave signal out, or give into"):
        shard(folder, tmp_path / "s", "0/2", signal="more")


def test_kills_at_random_lose_nothing(
    folder: Path, tmp_path: Path, alone: dict[str, bytes]
) -> None:
    out, rng, kills = tmp_path / "s", random.Random(0), 0
    begun = time.monotonic()
    while not (out / "manifest.json").exists() and time.monotonic() < begun + 60:
        pids = [forked(lambda i=i: shard(folder, out, f"{i}/2")) for i in range(2)]
        for pid in pids:
            time.sleep(rng.uniform(0.0, 0.03))
            os.kill(pid, signal.SIGKILL)
        ends = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids]
        assert all(end in (0, TAKEN, -signal.SIGKILL) for end in ends)
        kills += ends.count(-signal.SIGKILL)
        if kills >= 20:
            break
    assert kills >= 10
    # Also where the store is finished: the process that was joining it may have been killed.
    assert shard(folder, out, "0/2") is not None or shard(folder, out, "1/2") is not None
    assert bytes_of(out) == alone


@pytest.mark.parametrize(
    ("environment", "wanted"),
    [
        ({}, None),
        ({"WORLD_SIZE": "4", "RANK": "3"}, Shard(3, 4)),
        ({"WORLD_SIZE": "1", "RANK": "0"}, None),
        (
            {"SLURM_ARRAY_TASK_ID": "5", "SLURM_ARRAY_TASK_MIN": "1", "SLURM_ARRAY_TASK_MAX": "8",
             "SLURM_ARRAY_TASK_COUNT": "8"},
            Shard(4, 8),
        ),
        (
            {"SLURM_ARRAY_TASK_ID": "20", "SLURM_ARRAY_TASK_MIN": "0", "SLURM_ARRAY_TASK_MAX": "30",
             "SLURM_ARRAY_TASK_COUNT": "4"},
            Shard(2, 4),
        ),
        ({"SLURM_STEP_ID": "0", "SLURM_PROCID": "1", "SLURM_NTASKS": "2"}, Shard(1, 2)),
        ({"SLURM_PROCID": "0", "SLURM_NTASKS": "2"}, None),  # the batch script itself, no task
        (
            {"SLURM_ARRAY_TASK_ID": "1", "SLURM_ARRAY_TASK_MIN": "0", "SLURM_ARRAY_TASK_MAX": "1",
             "SLURM_ARRAY_TASK_COUNT": "2", "SLURM_STEP_ID": "0", "SLURM_PROCID": "1",
             "SLURM_NTASKS": "4"},
            Shard(5, 8),
        ),
    ],
)  # fmt: skip
def test_launchers_tell_the_shard(environment: dict[str, str], wanted: Shard | None) -> None:
    assert Shard.from_environment(environment) == wanted


def test_shards_that_cannot_be() -> None:
    for text in ("2/2", "1", "-1/2", "a/b", "1/0"):
        with pytest.raises(InputError, match="write 0/4 to 3/4"):
            Shard.parse(text)
    array = {"TASK_ID": "3", "TASK_MIN": "1", "TASK_MAX": "7", "TASK_COUNT": "3"}
    uneven = {f"SLURM_ARRAY_{key}": value for key, value in array.items()} | {
        "SLURM_ARRAY_TASK_ID": "2"
    }
    with pytest.raises(InputError, match=r"array of 3 tasks from 1 to 7 has no even steps"):
        Shard.from_environment(uneven)


SPEC = "timm/resnet10t?random=1&num_classes=2"


TEACHER = """
import os, time
from pathlib import Path
import torch

HERE = Path(__file__).parent

class Slow(torch.nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.layers = torch.nn.Sequential(
            torch.nn.AdaptiveAvgPool2d(4), torch.nn.Flatten(), torch.nn.Linear(48, 3)
        )
        with (HERE / "loaded").open("a") as file:
            file.write(f"{os.getpid()}\\n")

    def forward(self, images):
        while (HERE / "wait").exists():
            time.sleep(0.02)
        return self.layers(images)
"""


def test_a_worker_of_ray_is_killed(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A real cluster of this machine with two workers."""
    pytest.importorskip("ray")
    (tmp_path / "slow_teacher.py").write_text(TEACHER)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setenv("RAY_ADDRESS", "local")  # whatever other cluster this machine has
    out, loaded, wait = tmp_path / "s", tmp_path / "loaded", tmp_path / "wait"
    settings = Labelling(
        crops=2, image_size=16, part_images=2, workers=1, check_agreement=False, device="cpu"
    )
    label(folder, "slow_teacher:Slow", tmp_path / "one", settings)
    loaded.unlink()

    def workers() -> list[int]:
        return [int(line) for line in loaded.read_text().split()] if loaded.exists() else []

    seen: list[tuple[int, int]] = []  # workers that have loaded the teacher, parts written by then

    def kill() -> None:
        begun = time.monotonic()
        while len(workers()) < 2 and time.monotonic() < begun + 300:
            time.sleep(0.01)
        seen.append((len(workers()), len(parts_of(out))))
        os.kill(workers()[0], signal.SIGKILL)  # with the part that it is at
        wait.unlink()

    wait.touch()
    killer = threading.Thread(target=kill, daemon=True)
    killer.start()
    heard: list[Progress] = []
    given = (str(folder), "slow_teacher:Slow", out, settings, "ray", 2)
    handler = signal.getsignal(signal.SIGTERM)
    store = label_by_ray(*given, progress=heard.append)
    assert signal.getsignal(signal.SIGTERM) is handler  # Ray sets its own
    killer.join(10)
    assert seen == [(2, 0)]
    assert len(workers()) in (2, 3)  # a teacher each for 12 parts; the new one may come too late
    assert len(store) == IMAGES
    assert bytes_of(out) == bytes_of(tmp_path / "one")
    assert (heard[-1].done, heard[-1].parts, heard[-1].crops) == (IMAGES, 12, IMAGES * 2)


def test_the_command_line_refuses_what_cannot_be_shared(
    folder: Path, tmp_path: Path, command_line: Any
) -> None:
    out = ["--out", str(tmp_path / "s"), "--teacher", SPEC]
    for more, says in (
        (["--shard", "0/2", "--overwrite"], "leave out --overwrite"),
        (["--shard", "3/2"], "write 0/4 to 3/4"),
        (["--engine", "spark"], "'spark' is not one of 'processes', 'ray'"),
        (["--finish"], "holds no labels"),
    ):
        status, _, said = command_line("label", str(folder), *out, *more)
        assert status == 2
        assert says in said
