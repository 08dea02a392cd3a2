"""The demo's embedded data set: handwritten digits hidden in cluttered scenes.

scikit-learn bundles 1797 handwritten digits of 8x8 grey values. Each scene shows one of them,
enlarged, slanted, coloured and placed at random among shapes, scribbles and torn pieces of other
digits. Since the place of the digit is known, one can check which crops of a scene hold it.

A written data set::

    OUT/train/CLASS/ID.jpg    OUT/train/boxes.json
    OUT/val/CLASS/ID.jpg      OUT/val/boxes.json

``boxes.json`` maps each image's id (its path inside the split, with ``/``) to the tight box of the
digit's ink and to the number of the source digit in scikit-learn's order.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray
from pydantic import Field, model_validator

from ferkd.crops import object_share
from ferkd.system.errors import InputError
from ferkd.system.settings import Part

CLASS_NAMES = tuple(str(digit) for digit in range(10))
BOXES_FILE = "boxes.json"

Box = tuple[int, int, int, int]
Floats = NDArray[np.float32]

_INK_FROM, _INK_FULL = 0.35, 0.65  # source grey (0..1) where the ink starts and where it covers
_VISIBLE = 0.1  # fainter ink cannot be seen on a textured ground and is dropped
_LUMA = np.array([0.299, 0.587, 0.114], dtype=np.float32)  # ITU-R BT.601


class SceneSettings(Part):
    """What the data set is made of.

    ``size`` is the range of a scene's height and of its width in pixels, ``object_side`` that of
    the longer side of the digit as a share of the scene's shorter side, ``val_sources`` the share
    of the source digits that only validation scenes show, ``contrast`` how much darker (of 255)
    the ink is than its ground at least (black where the ground is too dark for that),
    ``distractors`` the most shapes, scribbles and pieces of digits in a scene, ``noise`` the
    standard deviation (of 255) of the grain, ``quality`` the JPEG quality.
    """

    train_per_class: int = Field(default=400, ge=1)
    val_per_class: int = Field(default=100, ge=1)
    size: tuple[int, int] = (96, 128)
    seed: int = Field(default=0, ge=0)
    object_side: tuple[float, float] = (0.35, 0.55)
    val_sources: float = Field(default=0.25, gt=0, lt=1)
    contrast: float = Field(default=60.0, ge=0, le=100)
    distractors: tuple[int, int, int] = (3, 3, 3)
    noise: float = Field(default=6.0, ge=0)
    quality: int = Field(default=90, ge=1, le=100)

    @model_validator(mode="after")
    def _ordered(self) -> SceneSettings:
        if not 32 <= self.size[0] <= self.size[1]:
            raise ValueError(f"size {self.size} must satisfy 32 <= low <= high")
        if not 0.1 <= self.object_side[0] <= self.object_side[1] <= 0.7:
            raise ValueError(f"object_side {self.object_side}: 0.1 <= low <= high <= 0.7 must hold")
        if min(self.distractors) < 0:
            raise ValueError(f"distractors {self.distractors} must not be negative")
        return self


@dataclass(frozen=True)
class Scene:
    """One picture: uint8 RGB [H, W, 3], the digit's ink (opacity 0..1, [H, W]) and its box."""

    image: NDArray[np.uint8]
    ink: Floats
    box: Box


@dataclass(frozen=True)
class Scenes:
    """A data set on disk: the two folders of class folders."""

    train: Path
    val: Path
    class_names: tuple[str, ...] = CLASS_NAMES


def write_scenes(out: Path, settings: SceneSettings | None = None) -> Scenes:
    """Write the data set into ``out``; the same settings give the same bytes.

    (With the same NumPy and OpenCV: their random streams and JPEG encoders may change between
    versions.) The files are gathered in a temporary folder beside ``out`` that takes its name at
    the end, so that an interrupted run leaves nothing at ``out``. Raises InputError where ``out``
    is anything but absent or an empty folder, and where scikit-learn is not installed.
    """
    settings = settings or SceneSettings()
    out = Path(out)
    if out.is_file() or (out.is_dir() and any(out.iterdir())):
        raise InputError(
            f"{out} exists and is not an empty folder, and nothing is overwritten: "
            "name a new folder, or delete this one first"
        )
    greys, labels = load_digits()
    train_sources, val_sources = split_sources(labels, settings)
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}-") as holder:
        unfinished = Path(holder) / "scenes"  # the holder itself is private to its owner
        for split, sources, per_class in (
            ("train", train_sources, settings.train_per_class),
            ("val", val_sources, settings.val_per_class),
        ):
            _write_split(unfinished / split, greys, labels, sources, per_class, settings)
        if out.is_dir():
            out.rmdir()
        unfinished.rename(out)
    return Scenes(train=out / "train", val=out / "val")


def read_boxes(split_dir: Path) -> dict[str, Box]:
    """The true boxes of one split: id -> (top, left, height, width) in pixels.

    Raises InputError where ``split_dir`` holds no readable ``boxes.json``.
    """
    return {key: box for key, (box, _) in _read_objects(split_dir).items()}


def read_sources(split_dir: Path) -> dict[str, int]:
    """Which source digit each scene of one split shows: id -> number in scikit-learn's order."""
    return {key: source for key, (_, source) in _read_objects(split_dir).items()}


def load_digits() -> tuple[Floats, NDArray[np.int64]]:
    """scikit-learn's digits: ink float32 [1797, 8, 8] in 0..1 and labels int64 [1797]."""
    try:
        from sklearn.datasets import load_digits as bundled
    except ImportError as error:
        raise InputError(
            "the demo's data set is made from scikit-learn's digits and scikit-learn is not "
            'installed: pip install "ferkd[demo]"'
        ) from error
    digits = bundled()
    return (digits.images / 16).astype(np.float32), digits.target.astype(np.int64)


def split_sources(
    labels: NDArray[np.int64], settings: SceneSettings
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Share the source digits out, class by class: numbers for train and numbers for val."""
    rng = np.random.default_rng([settings.seed, 0])
    train, val = [], []
    for digit in range(len(CLASS_NAMES)):
        numbers = rng.permutation(np.flatnonzero(labels == digit))
        held = min(max(round(len(numbers) * settings.val_sources), 1), len(numbers) - 1)
        val.append(numbers[:held])
        train.append(numbers[held:])
    return np.concatenate(train), np.concatenate(val)


def draw_scene(rng: Generator, grey: Floats, others: Floats, settings: SceneSettings) -> Scene:
    """Draw one scene around the digit ``grey`` [8, 8]; ``others`` [n, 8, 8] lend the pieces.

    The digit is painted last, so that all of its ink is visible and ``box`` is the tight box of
    ``ink > 0``. It lies inside the scene's central square, which is what an evaluation sees.
    """
    height, width = (int(v) for v in rng.integers(settings.size[0], settings.size[1] + 1, 2))
    side = rng.uniform(*settings.object_side) * min(height, width)
    glyph = digit_ink(rng, grey, side)
    square = min(height, width)
    top, left = _place(rng, glyph.shape, (square, square), edge=0.5)
    box = (top + (height - square) // 2, left + (width - square) // 2, *glyph.shape)
    ink = np.zeros((height, width), dtype=np.float32)
    _window(ink, box)[:] = glyph

    image = _ground(rng, height, width)
    shapes, scribbles, pieces = (int(rng.integers(0, most + 1)) for most in settings.distractors)
    for _ in range(shapes):
        _paint(image, _shape(rng, height, width), _colour(rng, 60), rng.uniform(0.3, 0.8))
    for _ in range(scribbles):
        _paint(image, _scribble(rng, height, width, side), _colour(rng))
    under = np.average(_window(image, box) @ _LUMA, weights=glyph)
    colour = _ink_colour(rng, float(under), settings.contrast)
    gap = round(side * 0.12)
    around = (box[0] - gap, box[1] - gap, box[2] + 2 * gap, box[3] + 2 * gap)
    for _ in range(pieces):
        piece = torn_piece(rng, digit_ink(rng, others[rng.integers(len(others))], side))
        place = (*_place(rng, piece.shape, (height, width)), *piece.shape)
        if object_share(place, around) == 0:  # the two joined could look like a third digit
            # Half of the pieces share the digit's colour, so that colour alone tells nothing.
            _paint(_window(image, place), piece, colour if rng.random() < 0.5 else _colour(rng))
    _paint(_window(image, box), glyph, colour)
    image += rng.standard_normal(image.shape, dtype=np.float32) * np.float32(settings.noise)
    return Scene(np.clip(np.rint(image), 0, 255).astype(np.uint8), ink, box)


def digit_ink(rng: Generator, grey: Floats, side: float) -> Floats:
    """Enlarge a digit [8, 8] to ``side`` pixels (its longer side), slightly turned and slanted.

    Returns the opacity of its ink, 0..1, cut tightly: no outer row or column is empty.
    """
    canvas = int(np.ceil(side * 2))
    angle, slant = rng.uniform(-0.2, 0.2), rng.uniform(-0.2, 0.2)
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    matrix = turn @ np.array([[1.0, slant], [0.0, 1.0]])
    scale = side / _extent(matrix, grey)
    matrix = np.hstack([matrix * scale, np.zeros((2, 1))])
    matrix[:, 2] = (canvas - 1) / 2 - matrix[:, :2] @ (3.5, 3.5)  # centre on centre
    smooth = cv2.warpAffine(grey, matrix, (canvas, canvas), flags=cv2.INTER_CUBIC)
    t = np.clip((smooth - _INK_FROM) / (_INK_FULL - _INK_FROM), 0, 1)
    return _tight(t * t * (3 - 2 * t))


def torn_piece(rng: Generator, ink: Floats) -> Floats:
    """Tear a piece holding 25 to 45 % of the ink off one side, at a random angle; cut tightly."""
    rows, columns = np.nonzero(ink)
    angle = rng.uniform(0, 2 * np.pi)
    along = rows * np.sin(angle) + columns * np.cos(angle)
    order = np.argsort(along, kind="stable")
    mass = np.cumsum(ink[rows[order], columns[order]])
    kept = order[: max(1, int(np.searchsorted(mass, rng.uniform(0.25, 0.45) * mass[-1])))]
    piece = np.zeros_like(ink)
    piece[rows[kept], columns[kept]] = ink[rows[kept], columns[kept]]
    return _tight(piece)


def _write_split(
    folder: Path,
    greys: Floats,
    labels: NDArray[np.int64],
    sources: NDArray[np.int64],
    per_class: int,
    settings: SceneSettings,
) -> None:
    """Write one split; its pieces of digits come from its own sources, too."""
    objects = {}
    for key, source, rng in _plan(folder.name, labels, sources, per_class, settings.seed):
        others = greys[sources[labels[sources] != labels[source]]]
        scene = draw_scene(rng, greys[source], others, settings)
        path = folder / key
        path.parent.mkdir(parents=True, exist_ok=True)
        options = [cv2.IMWRITE_JPEG_QUALITY, settings.quality]
        path.write_bytes(cv2.imencode(".jpg", scene.image[..., ::-1], options)[1].tobytes())
        objects[key] = {"box": scene.box, "source": source}
    lines = (f"{json.dumps(key)}: {json.dumps(entry)}" for key, entry in objects.items())
    (folder / BOXES_FILE).write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")


def _plan(
    split: str, labels: NDArray[np.int64], sources: NDArray[np.int64], per_class: int, seed: int
) -> Iterator[tuple[str, int, Generator]]:
    """Each scene's id, source digit and own random stream; sources take turns within a class."""
    stream = {"train": 1, "val": 2}[split]
    for digit, name in enumerate(CLASS_NAMES):
        mine = sources[labels[sources] == digit]
        for number in range(per_class):
            rng = np.random.default_rng([seed, stream, digit, number])
            yield f"{name}/{number:05d}.jpg", int(mine[number % len(mine)]), rng


def _read_objects(split_dir: Path) -> dict[str, tuple[Box, int]]:
    path = Path(split_dir) / BOXES_FILE
    objects = {}
    try:
        for key, entry in json.loads(path.read_text(encoding="utf-8")).items():
            top, left, height, width = (int(value) for value in entry["box"])
            objects[str(key)] = (top, left, height, width), int(entry["source"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(
            f"{path} cannot be read ({error!r}): the true boxes come only with a data set written "
            "by the demo; name its train or val folder"
        ) from error
    return objects


def _extent(matrix: NDArray[np.float64], grey: Floats) -> float:
    """The longer side of a digit's ink, in source pixels, once ``matrix`` has been applied."""
    rows, columns = np.nonzero(grey > (_INK_FROM + _INK_FULL) / 2)
    spots = matrix @ np.stack([columns, rows])
    return float(np.ptp(spots, axis=1).max()) + 1


def _tight(ink: Floats) -> Floats:
    """Drop invisible ink and cut away the empty rows and columns around the rest."""
    ink = np.where(ink >= _VISIBLE, ink, 0).astype(np.float32)
    rows, columns = np.flatnonzero(ink.any(axis=1)), np.flatnonzero(ink.any(axis=0))
    return ink[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]


def _place(
    rng: Generator, shape: tuple[int, ...], scene: tuple[int, int], edge: float = 1.0
) -> tuple[int, int]:
    """A random top left corner that keeps ``shape`` inside the scene.

    Uniform for ``edge`` 1; below that, places at the scene's edges are the likelier ones.
    """
    free = np.subtract(scene, shape)
    top, left = np.minimum(np.floor(rng.beta(edge, edge, 2) * (free + 1)), free)
    return int(top), int(left)


def _window(plane: Floats, box: Box) -> Floats:
    """The part of ``plane`` [H, W, ...] inside ``box``, as a view."""
    top, left, height, width = box
    return plane[top : top + height, left : left + width]


def _paint(image: Floats, alpha: Floats, colour: Floats, opacity: float = 1.0) -> None:
    """Blend ``colour`` into ``image`` [H, W, 3] in place where ``alpha`` [H, W] says."""
    image += (alpha * np.float32(opacity))[..., None] * (colour - image)


def _colour(rng: Generator, low: float = 10, high: float = 245) -> Floats:
    return rng.uniform(low, high, 3).astype(np.float32)


def _ink_colour(rng: Generator, under: float, contrast: float) -> Floats:
    """A random dark colour whose luminance lies below ``under`` by ``contrast`` at least."""
    colour = _colour(rng, 0, 160)
    return colour * np.float32(min(1.0, max(0.0, under - contrast) / float(colour @ _LUMA)))


def _ground(rng: Generator, height: int, width: int) -> Floats:
    """A light ground: a slope between two colours, soft blotches, and stripes now and then."""
    y, x = np.mgrid[0:height, 0:width].astype(np.float32)
    angle = rng.uniform(0, 2 * np.pi)
    along = x * np.cos(angle) + y * np.sin(angle)
    slope = ((along - along.min()) / np.ptp(along))[..., None]
    first = _colour(rng, 120, 250)
    second = np.clip(first + rng.normal(0, 30, 3), 100, 255)
    image = first * (1 - slope) + second * slope
    for cells, strength in ((4, 12), (16, 8)):
        blotches = rng.normal(0, strength, (cells, cells, 3)).astype(np.float32)
        image += cv2.resize(blotches, (width, height), interpolation=cv2.INTER_CUBIC)
    if rng.random() < 0.4:
        period, tint = rng.uniform(5, 16), rng.normal(0, 12, 3)
        turned = x * np.sin(2 * angle) + y * np.cos(2 * angle)
        image += np.sin(turned * (2 * np.pi / period))[..., None] * tint
    return np.ascontiguousarray(image, dtype=np.float32)


def _shape(rng: Generator, height: int, width: int) -> Floats:
    """A disc, ellipse or polygon, filled or in outline, as opacity [height, width]."""
    mask = np.zeros((height, width), dtype=np.uint8)
    centre = rng.uniform(0, (width, height))
    radii = rng.uniform(0.05, 0.3, 2) * min(height, width)
    thickness = cv2.FILLED if rng.random() < 0.6 else int(rng.integers(1, 4))
    turn = rng.uniform(0, 2 * np.pi)
    corners = int(rng.choice([3, 4, 5, 40]))  # 40 corners pass for an ellipse
    angles = turn + np.arange(corners) * (2 * np.pi / corners)
    spots = centre + radii * np.stack([np.cos(angles), np.sin(angles)], axis=1)
    if thickness == cv2.FILLED:
        cv2.fillPoly(mask, [_subpixel(spots)], 255, cv2.LINE_AA, _SHIFT)
    else:
        cv2.polylines(mask, [_subpixel(spots)], True, 255, thickness, cv2.LINE_AA, _SHIFT)
    return mask.astype(np.float32) / np.float32(255)


def _scribble(rng: Generator, height: int, width: int, side: float) -> Floats:
    """A pen stroke, a cubic Bezier curve, thinner than a digit's, as opacity."""
    mask = np.zeros((height, width), dtype=np.uint8)
    reach = side * rng.uniform(0.3, 1.2)
    spots = rng.uniform(0, (width, height)) + rng.uniform(-reach / 2, reach / 2, (4, 2))
    t = np.linspace(0, 1, 24)[:, None]
    bezier = np.hstack([(1 - t) ** 3, 3 * t * (1 - t) ** 2, 3 * t**2 * (1 - t), t**3])
    curve = _subpixel(bezier @ spots)
    thickness = max(1, round(side * rng.uniform(0.03, 0.12)))
    cv2.polylines(mask, [curve], False, 255, thickness, cv2.LINE_AA, _SHIFT)
    return mask.astype(np.float32) / np.float32(255)


_SHIFT = 4  # OpenCV takes coordinates as integers with this many fractional bits


def _subpixel(spots: NDArray[np.float64]) -> NDArray[np.int32]:
    return np.rint(spots * 2**_SHIFT).astype(np.int32)
