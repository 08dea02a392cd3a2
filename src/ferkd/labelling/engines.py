"""Labelling on a Ray cluster: shards as tasks, which write their parts themselves."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from ferkd.labelling.run import finish, label_shard
from ferkd.labelling.settings import Labelling
from ferkd.store.reader import LabelStore
from ferkd.store.sharing import Shard
from ferkd.system.errors import InputError


def label_by_ray(
    images: str, teacher: str, out: str | Path, settings: Labelling, engine: str, workers: int
) -> LabelStore:
    """Label with ``workers`` tasks on the Ray cluster that is there, else on one of this machine.

    All machines of the cluster see ``images`` and ``out`` under the same paths. A task labels a
    shard with a teacher of its own, on a GPU where the cluster has some, and hands back nothing.
    Ray starts one again whose worker has died; meanwhile the others take over its parts. Raises
    InputError.
    """
    if engine != "ray":
        raise InputError(f"engine is {engine!r}; it must be processes or ray")
    if workers < 1:
        raise InputError(f"ray_workers is {workers}; give at least 1")
    try:
        import ray
    except ImportError:
        raise InputError("engine ray needs Ray; pip install 'ferkd[ray]'") from None
    begun = not ray.is_initialized()
    if begun:
        address = os.environ.get("RAY_ADDRESS")
        ray.init(address=address, include_dashboard=False, log_to_driver=False)
    try:
        gpus = 1 if ray.cluster_resources().get("GPU", 0) else 0
        task: Any = ray.remote(num_cpus=1, num_gpus=gpus, max_retries=-1)(_shard)
        place = str(Path(out).expanduser().absolute())
        given = _absolute(images)
        waiting = [
            task.remote(given, teacher, place, Shard(i, workers), settings) for i in range(workers)
        ]
        while waiting:
            done, waiting = ray.wait(waiting)
            for message in ray.get(done):
                if message is not None:
                    raise InputError(message)
    finally:
        if begun:
            ray.shutdown()
    return finish(images, out, targets=settings.targets)


def _shard(images: str, teacher: str, out: str, shard: Shard, settings: Labelling) -> str | None:
    """What a task does; the message of an InputError, which Ray would wrap."""
    try:
        label_shard(images, teacher, out, shard, settings)
    except InputError as error:
        return str(error)
    return None


def _absolute(images: str) -> str:
    """A path that means the same in another working directory; what is no path stays."""
    path = Path(images).expanduser()
    return str(path.absolute()) if path.exists() else images
