"""What a report holds: plain frozen data, ``json.dumps(dataclasses.asdict(report))`` works.

Every section is optional; None or an empty tuple leaves it out of the page. Probabilities and
shares are fractions 0..1; nan stands for "not measured" and is shown as n/a. Names (files,
classes, methods) may be any text: the page escapes them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

# By region code: DISCARDED = 0, HARD = 1, IMPORTANT = 2.
REGION_NAMES = ("discarded", "hard", "important")
JPEG_URI = "data:image/jpeg;base64,"


@dataclass(frozen=True)
class Fact:
    """One number in the head of the report, already worded for a reader."""

    name: str
    value: str


@dataclass(frozen=True)
class Series:
    """Mean over runs with the ends of its band, one entry per evaluation."""

    mean: Sequence[float]
    low: Sequence[float]
    high: Sequence[float]


@dataclass(frozen=True)
class Curve:
    """One method's evaluations: ``steps`` and mean ``seconds`` are the two horizontal axes."""

    method: str
    runs: int
    steps: Sequence[float]
    seconds: Sequence[float]
    top1: Series
    nll: Series


@dataclass(frozen=True)
class Goal:
    """An accuracy to reach: its level, its name, and by method the evaluation that first has it
    (its place in the method's curve)."""

    level: float
    name: str
    reached: Mapping[str, int]


@dataclass(frozen=True)
class Cell:
    """An entry of a table in words: the figure, its deviation or interval, if it is the best."""

    text: str
    note: str = ""
    best: bool = False


@dataclass(frozen=True)
class Table:
    """A table with a row a method; ``head`` names the columns after the method's."""

    title: str
    words: str
    head: Sequence[str]
    rows: Mapping[str, Sequence[Cell]]


@dataclass(frozen=True)
class Difference:
    """A method's mean paired difference to the baseline and its interval (None: one seed)."""

    method: str
    mean: float
    interval: tuple[float, float] | None
    seeds: int


@dataclass(frozen=True)
class Budget:
    """The methods of a suite on one budget. The curves' bands are mean ± sample deviation."""

    title: str
    tables: Sequence[Table]
    curves: Sequence[Curve] = ()
    goal: Goal | None = None
    baseline: str = ""
    top1: Sequence[Difference] = ()
    nll: Sequence[Difference] = ()
    remarks: Sequence[str] = ()


@dataclass(frozen=True)
class Reliability:
    """r(s) = P(argmax = y | s) at the scores ``at``, with its confidence band."""

    at: Sequence[float]
    rate: Sequence[float]
    low: Sequence[float]
    high: Sequence[float]


@dataclass(frozen=True)
class ConfidencePanel:
    """Histogram of the teacher's score over all stored crops, split by region.

    ``edges`` has one entry more than each of the three ``counts`` (one row per region code).
    ``thresholds`` are (T_L, T_M, T_T), or None where they are ranks within an image and so have no
    place on this axis. ``chance`` is 1 / classes.
    """

    edges: Sequence[float]
    counts: Sequence[Sequence[int]]
    thresholds: tuple[float, float, float] | None
    reliability: Reliability | None = None
    chance: float | None = None
    score: str = "max_prob"
    note: str = ""


@dataclass(frozen=True)
class RegionShares:
    """How much of the true object the crops of one region hold; nan where it has no crop."""

    region: int
    crops: int
    mean: float
    quartiles: tuple[float, float, float]
    holding: float
    histogram: Sequence[int]


@dataclass(frozen=True)
class MiningPanel:
    """Region mining judged by the true boxes.

    ``holds`` is the share of the object from which a crop counts as holding it, ``positives`` the
    share of such crops; the ROC is that of the score for them.
    """

    regions: Sequence[RegionShares]
    auroc: float
    positives: float
    false_rate: Sequence[float]
    true_rate: Sequence[float]
    holds: float = 0.5
    note: str = ""


@dataclass(frozen=True)
class GalleryCrop:
    """One crop: box as (top, left, height, width) in pixels of the image, best classes first."""

    box: tuple[int, int, int, int]
    flip: bool
    region: int
    score: float
    top: Sequence[tuple[str, float]] = ()


@dataclass(frozen=True)
class GalleryItem:
    """An image, its thumbnail as a JPEG data URI, its crops, and the true box if known."""

    name: str
    image: str
    height: int
    width: int
    crops: Sequence[GalleryCrop]
    target: str = ""
    object_box: tuple[int, int, int, int] | None = None

    def __post_init__(self) -> None:
        _check_uri(self.image)


@dataclass(frozen=True)
class CropThumb:
    """One crop as the student sees it."""

    name: str
    image: str
    crop: GalleryCrop
    target: str = ""

    def __post_init__(self) -> None:
        _check_uri(self.image)


@dataclass(frozen=True)
class Gallery:
    items: Sequence[GalleryItem]
    thumbs: Sequence[CropThumb] = ()
    note: str = ""


@dataclass(frozen=True)
class Choice:
    """What was chosen and why."""

    name: str
    value: str
    reason: str


@dataclass(frozen=True)
class Report:
    title: str
    verdict: str = ""
    facts: Sequence[Fact] = ()
    budgets: Sequence[Budget] = ()
    confidence: ConfidencePanel | None = None
    mining: MiningPanel | None = None
    gallery: Gallery | None = None
    choices: Sequence[Choice] = ()
    commands: Sequence[str] = ()


def _check_uri(uri: str) -> None:
    # Anything else would make the page reach out of itself.
    if not uri.startswith(JPEG_URI):
        raise ValueError(f"{uri[:40]!r} is not an embedded image: it must begin with {JPEG_URI!r}")
