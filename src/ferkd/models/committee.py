"""Several teachers that label together: the mean of their probabilities (MEAL V2)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ferkd.models.specs import names_teacher
from ferkd.models.teacher import Teacher, load_teacher
from ferkd.system.errors import InputError


class Committee:
    """One or more teachers with weights; each is shown the crops at its own size.

    ``weights`` are above 0 and need not sum to 1; None are equal. Raises InputError for members
    that differ in their number of classes. Names are not compared, for model zoos call the same
    classes by different words.
    """

    def __init__(self, members: Sequence[Teacher], weights: Sequence[float] | None = None) -> None:
        given = [1.0] * len(members) if weights is None else list(weights)
        if not members or len(given) != len(members) or not all(0 < w < math.inf for w in given):
            raise InputError(
                f"{len(members)} teachers with weights {given}; give each a weight above 0"
            )
        self.members = tuple(members)
        self.weights = tuple(w / sum(given) for w in given)
        first = members[0]
        self.num_classes = first.num_classes
        self.class_names = next((m.class_names for m in members if m.class_names), ())
        for member in members[1:]:
            if member.num_classes != self.num_classes:
                raise InputError(
                    f"teacher {member.spec} has {member.num_classes} classes, but {first.spec} has "
                    f"{self.num_classes}; teachers that label together need the same classes"
                )

    @property
    def sizes(self) -> tuple[int, ...]:
        """The sides in pixels at which crops are needed, each once."""
        return tuple(dict.fromkeys(member.image_size for member in self.members))

    def __call__(self, images: Mapping[int, Tensor]) -> Tensor:
        """Logits [B, C] for crops uint8 [B, 3, S, S] of each of :attr:`sizes` S.

        Those of a single teacher are its own; of several, the logarithm of the mean probability.
        """
        if len(self.members) == 1:
            return self.members[0](images[self.members[0].image_size])
        logs = [m(images[m.image_size]).cpu().double().log_softmax(1) for m in self.members]
        shares = torch.tensor(self.weights, dtype=torch.float64).log()
        return torch.stack([log + s for log, s in zip(logs, shares, strict=True)]).logsumexp(0)

    def describe(self) -> dict[str, Any]:
        """What a label store records: a single teacher's own words, or those of each member."""
        if len(self.members) == 1:
            return self.members[0].describe()
        return {
            "spec": ",".join(
                f"{m.spec}@{w:g}" for m, w in zip(self.members, self.weights, strict=True)
            ),
            "rule": "probs",
            "num_classes": self.num_classes,
            "members": [
                {"weight": weight, "teacher": member.describe()}
                for member, weight in zip(self.members, self.weights, strict=True)
            ],
        }


def load_committee(
    spec: str | Path | nn.Module | Teacher | Committee,
    *,
    image_size: int | None = None,
    device: str = "auto",
    precision: str = "auto",
    folders: Sequence[str] = (),
    class_map: str | Path | Mapping[str, Any] | None = None,
) -> Committee:
    """The teachers that ``spec`` names: one as :func:`load_teacher` takes it, or ``A,B@0.5``.

    ``@WEIGHT`` ends a member's spec and is 1 where it is not given. ``image_size`` is for a
    single teacher; give each of several its own as ``?image_size=N``. With ``folders`` (class
    folders) each member answers with these classes, found by its names or ``class_map``, see
    :meth:`Teacher.for_folders`.
    """
    if isinstance(spec, Committee):
        if not folders and class_map is None:
            return spec
        members = [member.for_folders(folders, class_map) for member in spec.members]
        return Committee(members, spec.weights)
    named = split_spec(str(spec)) if isinstance(spec, str | Path) else [(spec, 1.0)]
    if len(named) > 1 and image_size is not None:
        raise InputError(
            f"image_size {image_size} for {len(named)} teachers; give each its own behind its "
            "name, as in timm/NAME?image_size=224"
        )
    members = [
        load_teacher(one, image_size=image_size, device=device, precision=precision).for_folders(
            folders, class_map
        )
        for one, _ in named
    ]
    return Committee(members, [weight for _, weight in named])


def split_spec(spec: str) -> list[tuple[str, float]]:
    """The members of ``A,B@0.5`` with their weights; a spec of one teacher is one member.

    A comma begins a new member where what follows names a teacher (``timm/…``, ``module:name``, a
    folder); other commas belong to a member's options, as in ``?mean=0.5,0.5,0.5``. A folder or a
    checkpoint that exists with its "@" is taken with it; ``%40`` and ``%2C`` stand for "@" and ","
    in a checkpoint's path.
    """
    if Path(spec).expanduser().is_dir():
        return [(spec, 1.0)]
    first, *rest = spec.split(",")
    members = [first]
    for piece in rest:
        if names_teacher(piece):
            members.append(piece)
        else:
            members[-1] += f",{piece}"
    return [_weighted(member) for member in members]


def _weighted(member: str) -> tuple[str, float]:
    path = member.partition("checkpoint=")[2] or member
    if Path(path).expanduser().exists():
        return member, 1.0
    target, at, weight = member.rpartition("@")
    try:
        return (target, float(weight)) if at else (member, 1.0)
    except ValueError:
        return member, 1.0
