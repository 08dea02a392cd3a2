"""The choices that options offer are those of the rooms that they are passed to."""

from __future__ import annotations

from typing import Any, get_args, get_type_hints

import pytest

from ferkd.calibration import regions
from ferkd.cli import options
from ferkd.labelling.settings import Labelling
from ferkd.store import features, merge, records
from ferkd.store.fkd import convert
from ferkd.study.scenes import planted
from ferkd.system import compute

OF_LABELLING = get_type_hints(Labelling, localns={"CropDistribution": Any, "LabelStore": Any})


@pytest.mark.parametrize(
    ("shown", "taken"),
    [
        (get_args(options.Precision)[0], get_args(compute.Precision)),
        (options.Calibration, get_args(regions.Calibration)),
        (options.Score, get_args(regions.Score)),
        (options.MergeRule, get_args(merge.Rule)),
        (options.FkdKind, ("auto", *get_args(convert.Kind))),
        (options.StoredValues, get_args(records.Values)),
        (
            get_args(options.Values)[0],
            ("auto", *get_args(records.Values), *get_args(features.Codec)),
        ),
        (options.ObjectScale, get_args(planted.ObjectScale)),
        (OF_LABELLING["precision"], get_args(compute.Precision)),
        (
            OF_LABELLING["values"],
            ("auto", *get_args(records.Values), *get_args(features.Codec)),
        ),
    ],
)
def test_an_option_offers_what_is_taken(shown: Any, taken: tuple[str, ...]) -> None:
    assert set(get_args(shown)) == set(taken)


def test_another_value_is_answered_by_the_choices(command_line) -> None:
    status, out, said = command_line("merge", "a", "b", "--out", "new", "--rule", "votes")
    assert (status, out) == (2, "") and "'votes' is not one of 'probs', 'logits'" in said
