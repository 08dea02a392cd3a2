"""What a model says of images: a run, an exported folder or an ONNX file, on files and folders."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from ferkd.evaluating.center_crops import CenterCrops
from ferkd.images import ImageSource, Unreadable, decode, open_images
from ferkd.models.student import ModelConfig, check_input, load_run
from ferkd.product import bundle
from ferkd.system.compute import Normalise, resolve_device
from ferkd.system.errors import InputError
from ferkd.system.settings import check_least
from ferkd.system.storage import is_url, local_path, masked
from ferkd.system.text import cell

if TYPE_CHECKING:
    from ferkd.product.graphs import Session

_MOST_BYTES = 1 << 30  # of an image file that is named by itself


@dataclass(frozen=True)
class Predictor:
    """A model that is ready to answer, and what it says of its input and its classes."""

    answers: _Torch | Session
    config: ModelConfig

    @property
    def class_names(self) -> tuple[str, ...]:
        return bundle.class_names(self.config)


@dataclass(frozen=True)
class Prediction:
    """The most probable classes of one image, best first, as (name, probability)."""

    path: str
    classes: tuple[tuple[str, float], ...]

    def to_dict(self) -> dict[str, Any]:
        return {
            "path": self.path,
            "classes": [{"name": name, "probability": p} for name, p in self.classes],
        }


def load_predictor(model: str | Path, *, device: str = "auto") -> Predictor:
    """A finished run, a folder of ferkd export, or an ONNX file of it. Raises InputError.

    An exported folder whose files were edited is refused. ONNX files run on the CPU.
    """
    path = local_path(model, "model")
    if not path.exists():
        raise InputError(
            f"{path} does not exist; give a run, a folder of ferkd export, or its model.onnx"
        )
    if path.suffix == ".onnx" and path.is_file():
        from ferkd.product.graphs import Session

        session = Session(path)
        return Predictor(session, session.config)
    network, config = bundle.load_bundle(path) if bundle.is_bundle(path) else load_run(path)
    check_input(network, config.architecture, config.image_size, config.num_classes)
    return Predictor(_Torch(network, config, device), config)


class _Torch:
    """Logits of a torch module."""

    def __init__(self, model: torch.nn.Module, config: ModelConfig, device: str) -> None:
        where = resolve_device(device)
        self._model = model.to(where).eval()
        self._normalise = Normalise(config.mean, config.std, where)

    def logits(self, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        images = torch.from_numpy(pixels).permute(0, 3, 1, 2)
        with torch.inference_mode():
            found: NDArray[np.float32] = self._model(self._normalise(images)).float().cpu().numpy()
        return found


class Predictions:
    """Iterating gives a :class:`Prediction` an image, in the order given; folders are sorted.

    Images are prepared as the model was evaluated in training: the central crop, EXIF orientation
    as the labels had it. Those that cannot be read are left out and then listed in ``unreadable``.
    Raises InputError for paths that are not there and folders without images.
    """

    def __init__(
        self,
        predictor: Predictor,
        images: Sequence[str | Path],
        *,
        top_k: int = 5,
        batch_size: int = 32,
        workers: int = 2,
    ) -> None:
        check_least(1, top_k=top_k, batch_size=batch_size)
        check_least(0, workers=workers)
        self._predictor, self._top_k, self._batch_size = predictor, top_k, batch_size
        self._source = _Images(images)
        config = predictor.config
        self._crops = CenterCrops(
            self._source,
            image_size=config.image_size,
            crop_fraction=config.crop_fraction,
            workers=workers,
            exif=config.exif,
        )

    def __len__(self) -> int:
        return len(self._source)

    @property
    def unreadable(self) -> list[Unreadable]:
        return self._crops.unreadable

    def __iter__(self) -> Iterator[Prediction]:
        names = self._predictor.class_names
        places = range(len(self._source))
        for answers, rows in self._answers(places):
            logits = torch.from_numpy(answers)
            best, which = logits.softmax(1).topk(min(self._top_k, len(names)), dim=1)
            for row, values, classes in zip(
                rows.tolist(), best.tolist(), which.tolist(), strict=True
            ):
                found = [(names[c], p) for c, p in zip(classes, values, strict=True)]
                yield Prediction(self._source.ids[row], tuple(found))

    def _answers(self, places: range) -> Iterator[tuple[NDArray[np.float32], torch.Tensor]]:
        """Logits [n, C] and the places of their images; a few at a time."""
        answers = self._predictor.answers
        if isinstance(answers, _Torch) or answers.takes != "photograph":
            for pixels, rows in self._crops.batches(self._batch_size, places):
                yield answers.logits(pixels.permute(0, 2, 3, 1).contiguous().numpy()), rows
            return
        for place in places:
            try:
                image = decode(self._source.read(place), exif=self._predictor.config.exif)
            except InputError as error:
                self._crops.unreadable.append(Unreadable(self._source.ids[place], str(error)))
                continue
            yield answers.of_photographs([image]), torch.tensor([place])


def table(predictions: Sequence[Prediction]) -> str:
    """Comma-separated values: a line an image and class, best first; names as
    `ferkd.system.text.cell` writes them, for people and spreadsheets."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["path", "rank", "class", "probability"])
    for found in predictions:
        for rank, (name, probability) in enumerate(found.classes, 1):
            writer.writerow([cell(found.path), rank, cell(name), f"{probability:.6f}"])
    return text.getvalue()


class _Images:
    """Files and folders as one image source; the id of an image is its path as a user would
    write it."""

    def __init__(self, given: Sequence[str | Path]) -> None:
        if not given:
            raise InputError("no image is given; name image files or folders")
        self.name = "the images given"
        self.class_names: tuple[str, ...] = ()
        ids: list[str] = []
        self._places: list[tuple[ImageSource | None, int]] = []
        for entry in given:
            text = str(entry).rstrip("/") if is_url(entry) else str(entry)
            path = None if is_url(text) else local_path(text, "file or folder")
            if path is not None and path.is_file():
                ids.append(text)
                self._places.append((None, len(ids) - 1))
                continue
            if path is not None and not path.exists():
                raise InputError(f"{text} does not exist; give image files or folders")
            source = open_images(entry, targets=False)
            ids += [f"{masked(text).rstrip('/')}/{image_id}" for image_id in source.ids]
            self._places += [(source, place) for place in range(len(source))]
        self.ids: tuple[str, ...] = tuple(ids)
        self.targets = np.full(len(ids), -1, np.int32)

    def __len__(self) -> int:
        return len(self.ids)

    def read(self, index: int) -> bytes:
        source, place = self._places[index]
        if source is not None:
            return source.read(place)
        from ferkd.system.files import read_plain

        path = local_path(self.ids[index], "file")
        try:
            return read_plain(path, _MOST_BYTES)
        except OSError as error:
            raise InputError(f"{self.ids[index]} cannot be read ({error.strerror})") from None
