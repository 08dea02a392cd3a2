"""Labelling on a Ray cluster: a part is a task, a device an actor that has loaded the teacher."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

from ferkd.images import open_images
from ferkd.labelling.passes import PartLabeller, Pass, check_skipped, shared_writer
from ferkd.labelling.run import Progress, Report, pass_begun
from ferkd.labelling.settings import Labelling
from ferkd.store.reader import LabelStore
from ferkd.store.sharing import Shard, SharedWriter
from ferkd.store.unfinished import begun_settings
from ferkd.system.errors import InputError
from ferkd.system.threads import workers as worker_threads

_DEATHS = 10  # for each actor, until a part is written
_PAUSE = 1.0  # seconds before parts are looked at again that other processes hold


def label_by_ray(
    images: str,
    teacher: str,
    out: str | Path,
    settings: Labelling,
    engine: str,
    workers: int,
    *,
    progress: Report | None = None,
) -> LabelStore:
    """Label with ``workers`` actors on the Ray cluster that is there, else on one of this machine.

    All machines of the cluster see ``images`` and ``out`` under the same paths. An actor loads the
    teacher once, on a GPU where the cluster has some, and labels one part after the other: it reads
    the images and writes the part itself, and only the end of it passes through Ray. An actor that
    the cluster has no room for joins when there is some. In the place of one that dies another is
    started, and its part is given to whoever is free. Raises InputError.
    """
    if engine != "ray":
        raise InputError(f"engine is {engine!r}; it must be processes or ray")
    if workers < 1:
        raise InputError(f"ray_workers is {workers}; give at least 1")
    out = Path(out).expanduser().absolute()
    with _cluster() as ray:
        gpus = 1 if ray.cluster_resources().get("GPU", 0) else 0
        actor = ray.remote(num_cpus=1, num_gpus=gpus)(Device)
        given = (_absolute(images), teacher, str(out), settings)
        crew = _Crew(ray, lambda: actor.remote(*given), workers)
        try:
            crew.first()  # has written the settings, which only a teacher tells
            count = len(open_images(images, targets=settings.targets))
            begun = begun_settings(out, settings.name if settings.into else None)
            with shared_writer(out, begun, count, settings, Shard()) as writer:
                crew.label(writer, progress or (lambda now: None))
                check_skipped(writer, settings)
                return writer.finish()
        finally:
            crew.end()


class Device:
    """What an actor does on its device; the message of an InputError, which Ray would wrap."""

    def __init__(self, images: str, teacher: str, out: str, settings: Labelling) -> None:
        self._given, self._out = (images, teacher, out, settings), out
        self._parts: PartLabeller | None = None
        self._open = ExitStack()  # until the process ends

    def label(self, part: int | None) -> str | None:
        """Load the teacher if it is not, then label a part, unless it is written or another
        process is at it."""
        try:
            if self._parts is None:
                self._parts = self._load()
            if part is not None:
                with self._writer.claiming(part) as mine:
                    if mine:
                        self._parts.write(part, lambda crops: None)
        except InputError as error:
            return str(error)
        return None

    def _load(self) -> PartLabeller:
        settings = self._given[-1]
        job = Pass.prepare(*self._given, begun=pass_begun(self._out, settings))
        pool = self._open.enter_context(worker_threads(settings.workers))
        self._writer = self._open.enter_context(job.shared_writer(self._out, None))
        return PartLabeller(job, self._writer, pool)


class _Crew:
    """The actors of a job, each with at most one part at a time."""

    def __init__(self, ray: Any, make: Callable[[], Any], count: int) -> None:
        self._ray, self._make, self._allowed = ray, make, _DEATHS * count
        self._at_work: dict[Any, tuple[Any, int | None]] = {}
        self._free: list[Any] = []
        self._deaths = 0
        for _ in range(count):
            self._give(make(), None)

    def end(self) -> None:
        """End the actors, whatever they are at."""
        for device in [*self._free, *(device for device, _ in self._at_work.values())]:
            self._kill(device)

    def _kill(self, device: Any) -> None:
        with suppress(Exception):  # the actor, or the whole cluster, may have ended before
            self._ray.kill(device)

    def first(self) -> None:
        """Wait for one that has loaded its teacher. Raises InputError for what none can do."""
        while not self._free:
            self._hear()

    def label(self, writer: SharedWriter, progress: Report) -> None:
        """Have all missing parts of the store written."""
        waiting = deque(missing := writer.missing())
        done = writer.total - sum(len(writer.part_range(number)) for number in missing)
        begun, crops, parts = time.perf_counter(), 0, 0
        while missing:
            progress(Progress(done, writer.total, crops, time.perf_counter() - begun, parts))
            while waiting and self._free:
                self._give(self._free.pop(), waiting.popleft())
            if waiting or any(part is not None for _, part in self._at_work.values()):
                part, ended = self._hear()
                if part is not None and not ended:
                    waiting.append(part)
                elif part is not None:
                    images = len(writer.part_range(part))
                    done, parts = done + images, parts + 1
                    crops += images * writer.settings.crops.count
            elif missing := writer.missing():  # another process holds them, or has died with them
                time.sleep(_PAUSE)
                waiting.extend(missing)
        progress(Progress(writer.total, writer.total, crops, time.perf_counter() - begun, parts))

    def _give(self, device: Any, part: int | None) -> None:
        self._at_work[device.label.remote(part)] = (device, part)

    def _hear(self) -> tuple[int | None, bool]:
        """Wait for an actor; its part, None where it was to load, and whether it has ended it."""
        (call,), _ = self._ray.wait(list(self._at_work), num_returns=1)
        device, part = self._at_work.pop(call)
        try:
            message = self._ray.get(call)
        except self._ray.exceptions.RayActorError as error:
            self._deaths += 1
            if self._deaths > self._allowed:
                raise RuntimeError(
                    f"workers have died {self._deaths} times and written no part between (last: "
                    f"{str(error).splitlines()[0]}); look at Ray's logs and the machines' memory, "
                    "then run the same command again"
                ) from None
            self._kill(device)  # where it is only out of reach
            self._give(self._make(), None)
            return part, False
        if message is not None:
            raise InputError(message)
        self._free.append(device)
        if part is not None:
            self._deaths = 0
        return part, True


@contextmanager
def _cluster() -> Iterator[Any]:
    """Ray, on the cluster that is there or on one that ends with this."""
    try:
        import ray
    except ImportError:
        raise InputError("engine ray needs Ray; pip install 'ferkd[ray]'") from None
    begun = not ray.is_initialized()
    handler = signal.getsignal(signal.SIGTERM)
    if begun:
        address = os.environ.get("RAY_ADDRESS")
        ray.init(address=address, include_dashboard=False, log_to_driver=False)
    try:
        yield ray
    finally:
        if begun:
            ray.shutdown()
            # Ray leaves a handler of its own, under which workers that this process forks later can
            # miss the signal that ends them.
            if handler is not None and threading.current_thread() is threading.main_thread():
                signal.signal(signal.SIGTERM, handler)


def _absolute(images: str) -> str:
    """A path that means the same in another working directory; what is no path stays."""
    path = Path(images).expanduser()
    return str(path.absolute()) if path.exists() else images
