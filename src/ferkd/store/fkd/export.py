"""Export of a label store to the layout of FKD's authors."""

from __future__ import annotations

import io
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path, PureWindowsPath
from typing import Any, Literal

import numpy as np
import torch

from ferkd.store.fkd.convert import EXACT_HALF_CLASSES, EXACT_HALF_SIDE, coords_of
from ferkd.store.fkd.match import SUFFIX, cut_at_dot
from ferkd.store.manifest import check_kind
from ferkd.store.reader import LabelStore
from ferkd.system.errors import InputError
from ferkd.system.files import make_folder, writing
from ferkd.system.storage import local_path

Progress = Callable[[int, int], None]  # images done, of all

_DTYPES: dict[str, type[np.floating]] = {"fp32": np.float32, "fp16": np.float16}


def export_fkd(
    store: str | Path | LabelStore,
    directory: str | Path,
    *,
    k: int | None = None,
    dtype: Literal["fp32", "fp16"] = "fp32",
    split: str = "train",
    progress: Progress | None = None,
) -> int:
    """Write a store's labels in FKD's layout: ``directory/split/CLASS/NAME.tar``, one an image.

    Each file is a torch.save of three tensors that ``torch.load(weights_only=True)`` reads:
    coordinates [N, 4], flips [N], and labels [N, 2, k] of the ``k`` most probable classes (None:
    all that are stored) for FKD's marginal smoothing. ``directory`` must be new or empty and
    appears when all is written. Returns the number of files. Raises InputError for what half
    precision cannot hold, for ids that share a file name under FKD's rule (the name up to its
    first dot), and for ids that are no paths inside of the folder.
    """
    store, target = LabelStore.open(store), local_path(directory)
    check_kind(store.geometry, "random", store.path)
    kept = store.record.k if k is None else k
    if not 1 <= kept <= store.record.k:
        raise InputError(f"k is {k}; {store.path} holds {store.record.k}: give 1 to that")
    if dtype not in _DTYPES:
        raise InputError(f"dtype is {dtype!r}; it must be one of {', '.join(_DTYPES)}")
    if dtype == "fp16":
        _check_half(store)
    paths = _export_paths(store, split)
    if target.exists() and not (target.is_dir() and not any(target.iterdir())):
        raise InputError(f"{target} exists and is not an empty folder; give a new one")
    make_folder(target.parent)
    work = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
    try:
        folder = work / "labels"  # not `work` itself, which only its owner may enter
        for row, path in enumerate(paths):
            make_folder((folder / path).parent)
            buffer = io.BytesIO()  # a full disk would show in torch's own words
            torch.save(_export_file(store, row, kept, _DTYPES[dtype]), buffer)
            with writing(target / path):
                (folder / path).write_bytes(buffer.getvalue())
            if progress:
                progress(row + 1, len(paths))
        folder.mkdir(exist_ok=True)
        if target.exists():
            target.rmdir()
        folder.rename(target)
    finally:
        shutil.rmtree(work)
    return len(paths)


def _check_half(store: LabelStore) -> None:
    side = max((int(store.images[name].max(initial=0)) for name in ("height", "width")), default=0)
    for what, held, most in (
        (f"sides of {side} pixels", side, EXACT_HALF_SIDE),
        (f"{store.num_classes} classes", store.num_classes, EXACT_HALF_CLASSES),
    ):
        if held > most:
            raise InputError(f"{store.path} has {what}; fp16 is exact up to {most}: use fp32")


def _export_file(store: LabelStore, row: int, k: int, dtype: type[np.floating]) -> list[Any]:
    every = np.arange(store.crops_per_image)
    records, image = store.records(row, every), store.images[row]
    coords = coords_of(
        store.boxes(row, every).astype(np.int64), image["height"], image["width"], dtype
    )
    labels = store.record.decode(records)
    log_probs, order = labels.log_probs.sort(dim=1, descending=True, stable=True)
    classes = labels.classes.gather(1, order)
    pairs = torch.stack([classes[:, :k].double(), log_probs[:, :k].double().exp()], 1)
    coordinates = torch.from_numpy(coords)
    return [coordinates, torch.from_numpy(store.flips(row, every)), pairs.to(coordinates.dtype)]


def _export_paths(store: LabelStore, split: str) -> list[str]:
    """The label file of each image, relative; no id leads out of the folder."""
    ids: dict[str, str] = {}  # by path
    for image_id in store.ids:
        stem = cut_at_dot(image_id)
        parts = (*split.split("/"), *image_id.split("/"), stem.rpartition("/")[2])
        if not all(map(_is_plain, parts)):
            raise InputError(
                f"image {image_id!a} of split {split!a} cannot be a file in {store.path}'s export: "
                "a part of its path is empty, leads upwards or is not a plain name; rename it"
            )
        path = f"{split}/{stem}{SUFFIX}"
        if path in ids:
            raise InputError(
                f"{ids[path]} and {image_id} would both be {path}, for FKD names a file by the "
                "image's name up to its first dot; rename one of them, or leave one out"
            )
        ids[path] = image_id
    return list(ids)


def _is_plain(part: str) -> bool:
    """Whether this is a file's name alone, on every system."""
    return part not in ("", ".", "..") and "\0" not in part and PureWindowsPath(part).name == part
