"""Does a teacher's answer agree with the ground truth, and would another order agree better?

A teacher without class names is taken to number its classes as the folders are sorted. Where it
does not, every label is wrong without a trace, so its answers are compared with the ground truth:
before labelling on a few images, and while labelling on all crops.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from ferkd.crops import center_box, cut
from ferkd.images import ImageSource, UnreadableImage, decode
from ferkd.models.classes import orders
from ferkd.models.committee import Committee
from ferkd.models.teacher import Teacher
from ferkd.store.reader import LabelStore
from ferkd.system.errors import InputError

PROBED = 128  # images that are shown to a teacher before labelling
_ENOUGH = 200  # images on which an agreement near chance is no accident
_CLASSES = 5  # seen at least, unless there are fewer: the first images are all of one class
_SIGMAS = 3.0
_DENSE = 2048  # classes up to which every pair of class and answer is counted
_SAMPLED = 20_000  # crops of a finished store

log = logging.getLogger("ferkd")

_WHO_ORDERS = {
    "sorted": "the folders' sorted order (0, 1, 10, 2; torchvision's ImageFolder numbers them so)",
    "natural": "the folders' natural order (0, 1, 2, 10; timm's own training numbers them so)",
    "number": "the folders' names taken as class numbers (as ImageNet-V2 has them)",
}


class Agreement:
    """The answers of ``teacher`` to crops of known classes, as counts.

    Raises InputError, in :meth:`check`, where they say that its classes are in another order than
    ``folders``, or that it knows nothing of them.
    """

    def __init__(self, teacher: Teacher | Committee, folders: Sequence[str]) -> None:
        first = teacher.members[0] if isinstance(teacher, Committee) else teacher
        self._who = f"teacher {teacher.describe()['spec']}"
        self._folders = tuple(folders)
        count = len(folders)
        columns = np.arange(count) if first.matching is None else np.array(first.matching.columns)
        own = int(first.describe()["num_classes"])
        # By the word of an order: the answer that would be right for each folder, -1 for none.
        self._others: dict[str, NDArray[np.int64]] = {}
        place = np.full(own, -1, np.int64)
        place[columns] = np.arange(count)
        for word, order in orders(folders, own).items():
            if tuple(columns) != order:
                self._others[word] = place[np.array(order)]
        self._counts = np.zeros((count, count if count <= _DENSE else 0), np.int64)
        self._of_class = np.zeros(count, np.int64)
        self._of_answer = np.zeros(count, np.int64)
        self._right = dict.fromkeys(("given", *self._others), 0)
        self.images, self.crops = 0, 0

    @property
    def share(self) -> float:
        """The share of crops that are answered with their class; 0 of none."""
        return self._right["given"] / max(1, self.crops)

    def add(self, targets: NDArray[np.integer], answers: NDArray[np.integer], images: int) -> None:
        """Count crops [B] of ``images`` images; those whose target is below 0 are passed over."""
        known = np.asarray(targets) >= 0
        true, said = np.asarray(targets)[known], np.asarray(answers)[known]
        self.images += images if known.any() else 0
        self.crops += len(true)
        self._of_class += np.bincount(true, minlength=len(self._of_class))
        self._of_answer += np.bincount(said, minlength=len(self._of_answer))
        self._right["given"] += int((true == said).sum())
        for word, answer in self._others.items():
            self._right[word] += int((answer[true] == said).sum())
        if self._counts.size:
            np.add.at(self._counts, (true, said), 1)

    def check(self) -> None:
        """Raise InputError where the counts so far leave no doubt; else say nothing."""
        seen = int((self._of_class > 0).sum())
        if not self.crops or seen < min(_CLASSES, len(self._folders)):
            return
        self._check_orders()
        self._check_assignment(seen)
        if self.images >= _ENOUGH and self._near_chance():
            raise InputError(
                f"{self._said()}, no more than by chance; give a teacher of these classes, say "
                "which of its classes they are by --class-map FILE (class_map=), or give "
                "--no-targets if the folders are not its classes. If this teacher is meant, "
                "--no-agreement-check goes on; what is labelled is kept for --resume"
            )

    def warn(self) -> None:
        """Say in the log where few images agree no more than by chance."""
        if self.crops and self.images < _ENOUGH and self._near_chance():
            log.warning(
                "%s, no more than by chance: are the folders its classes, in its order?",
                self._said(),
            )

    def _said(self) -> str:
        return (
            f"{self._who} agrees with the class folders in {self.share:.1%} of {self.crops} crops "
            f"({self.images} images)"
        )

    def _excess(self, right: int, answer: NDArray[np.int64]) -> float:
        """How far a share of right answers lies above that of answers that ignore the image."""
        said = np.where(answer >= 0, self._of_answer[answer], 0)
        chance = float((self._of_class / self.crops) @ (said / self.crops))
        return right / self.crops - chance

    def _near_chance(self) -> bool:
        excess = self._excess(self._right["given"], np.arange(len(self._folders)))
        chance = self.share - excess
        return excess <= _SIGMAS * math.sqrt(max(chance * (1 - chance), 1e-9) / self.images)

    def _far_better(self, other: float) -> bool:
        given = self._excess(self._right["given"], np.arange(len(self._folders)))
        return (other - given) * math.sqrt(self.images) > _SIGMAS and other > 2 * max(given, 0.0)

    def _check_orders(self) -> None:
        for word, answer in self._others.items():
            if self._far_better(self._excess(self._right[word], answer)):
                raise InputError(
                    f"{self._said()}, but in {self._right[word] / self.crops:.1%} by "
                    f"{_WHO_ORDERS[word]}: its classes are in that order. Label with --class-map "
                    f"{word} (class_map={word!r}), and --overwrite where labels were begun"
                )

    def _check_assignment(self, seen: int) -> None:
        """Is there any other one-to-one matching of folders and answers that fits far better?"""
        if not self._counts.size:
            return
        from scipy.optimize import linear_sum_assignment  # takes a while to import

        rows, columns = linear_sum_assignment(self._counts, maximize=True)
        answer = np.full(len(self._folders), -1, np.int64)
        answer[rows] = columns
        right = int(self._counts[rows, columns].sum())
        excess = self._excess(right, answer)
        # The best of all matchings fits chance as well: an image more for each class seen.
        if excess - seen / self.images < 0.3 or not self._far_better(excess - seen / self.images):
            return
        wrong = [i for i in np.argsort(-self._counts.max(1)) if answer[i] != i][:3]
        pairs = ", ".join(
            f"{self._folders[i]!r} is answered as class {answer[i]}, {self._folders[answer[i]]!r}"
            for i in wrong
        )
        raise InputError(
            f"{self._said()}, but in {right / self.crops:.1%} if folders and answers were matched "
            f"otherwise ({pairs}): its classes are in another order. Say which class is which "
            "folder's by --class-map FILE (class_map=), and --overwrite where labels were begun"
        )


def agreement_to_keep(teacher: Committee, images: ImageSource) -> Agreement | None:
    """What counts a labelling pass's answers; None where there is nothing to compare them with."""
    if not images.class_names or any(m.untrained for m in teacher.members):
        return None
    return Agreement(teacher, images.class_names)


def probe(
    teacher: Teacher | Committee, images: ImageSource, *, exif: bool = True, count: int = PROBED
) -> Agreement | None:
    """The agreement on the central squares of ``count`` images spread over ``images``, checked.

    None where no image has a class or the teacher's weights are random by its spec. Images that
    cannot be read are passed over. Raises InputError as :meth:`Agreement.check` does.
    """
    committee = teacher if isinstance(teacher, Committee) else Committee([teacher])
    found = agreement_to_keep(committee, images)
    if found is None:
        return None
    places = np.unique(np.linspace(0, len(images) - 1, min(count, len(images))).astype(np.int64))
    for some in np.array_split(places, -(-len(places) // 16)):
        squares: dict[int, list[NDArray[np.uint8]]] = {size: [] for size in committee.sizes}
        targets = []
        for place in some.tolist():
            try:
                pixels = decode(images.read(place), exif=exif)
            except UnreadableImage:
                continue
            box = center_box(*pixels.shape[:2])
            for size, list_ in squares.items():
                list_.append(cut(pixels, box, False, size))
            targets.append(int(images.targets[place]))
        if targets:
            batch = {
                size: torch.from_numpy(np.stack(list_)).permute(0, 3, 1, 2)
                for size, list_ in squares.items()
            }
            answers = committee(batch).argmax(1).cpu().numpy()
            found.add(np.array(targets), answers, len(targets))
    found.check()
    return found


def agreement_of(store: LabelStore, seed: int = 0) -> float | None:
    """The share of a store's crops whose most probable class is the ground truth; of 20,000 random
    ones where there are more. None where no image has a class."""
    known = np.flatnonzero(store.targets >= 0)
    if not len(known):
        return None
    total = len(known) * store.crops_per_image
    if total <= _SAMPLED:
        chosen = np.arange(total)
    else:
        chosen = np.sort(np.random.default_rng(seed).choice(total, _SAMPLED, replace=False))
    places, crops = np.divmod(chosen, store.crops_per_image)
    answers = store.labels(known[places], crops).top1().numpy()
    return float((answers == store.targets[known[places]]).mean())
