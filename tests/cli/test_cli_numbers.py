"""Numbers that cannot be meant are refused by every command that takes them, with exit 2."""

from __future__ import annotations

import pytest

from ferkd.cli.commands import app
from ferkd.system.errors import InputError

LABEL = ["label", "images", "--teacher", "timm/test_resnet?random=0", "--out", "labels"]


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ([*LABEL, "--max-unreadable", "nan"], "max_unreadable is nan; it is a share and must be 0"),
        ([*LABEL, "--max-unreadable", "inf"], "max_unreadable is inf; it is a share"),
        ([*LABEL, "--max-unreadable", "-1"], "max_unreadable is -1; it is a share"),
        ([*LABEL, "--crops", "99999999999"], "crops is 99999999999; label at least 1 crop per "),
        ([*LABEL, "--crops", "0"], "crops is 0; label at least 1 crop per image, at most 1,000,0"),
        ([*LABEL, "--seed", "-1"], "seed is -1; it must be at least 0 and below 2"),
        ([*LABEL, "--scale", "nan", "1"], "--scale nan 1.0: give 0 < low"),
        (["evaluate", "run", "images", "--image-size", "100000"], "image_size is 100000; it must"),
        (["evaluate", "run", "images", "--crop-fraction", "nan"], "crop_fraction is nan; it must"),
        (["verify", "labels", "--seed", "-1"], "seed is -1; it must be at least 0"),
        (["scenes", "--out", "scenes", "--seed", "-1"], "--seed -1: give a number of at least 0"),
        (["plan", "--teacher-rate", "nan"], "--teacher-rate nan: a rate is a number above 0"),
        (["bench", "loss", "--temperature", "inf"], "temperature is inf; it must be above 0 and f"),
        (["inspect", "labels", "--thresholds", "0,nan,1"], "thresholds 0, nan, 1 are out of order"),
    ],
    ids=lambda value: " ".join(value[:1] + value[-2:]) if isinstance(value, list) else "",
)
def test_a_number_that_cannot_be_is_refused(command, message, tmp_path, monkeypatch, tiny_images):
    monkeypatch.chdir(tmp_path)
    tiny_images({"a": 1, "b": 1})
    with pytest.raises(InputError) as caught:
        app(command, standalone_mode=False)
    assert message in str(caught.value)
