"""Rates by batch size, and the default batch that they speak for."""

from __future__ import annotations

import pytest
from typer.testing import CliRunner

from ferkd.cli import app
from ferkd.labelling.settings import default_batch
from ferkd.study.bench.batch import bench_batch, markdown
from ferkd.system.errors import InputError


@pytest.mark.parametrize(
    ("device", "size", "batch"),
    # 16 crops of 112 px have 200,704 pixels: 196 of 32, 49 of 64, 16 of 112, 4 of 224, 1 of 448.
    [
        ("cpu", 32, 128),
        ("cpu", 64, 32),
        ("cpu", 112, 16),
        ("cpu", 224, 4),
        ("cpu", 448, 1),
        ("cpu", 4000, 1),
        ("cuda", 224, 128),
        ("mps", 224, 128),
    ],
)
def test_the_default_batch(device: str, size: int, batch: int) -> None:
    assert default_batch(device, size) == batch


def test_rates_of_labelling_and_training_by_batch_size() -> None:
    options = {"model": "timm/test_resnet?random=0", "image_size": 64, "device": "cpu"}
    result = bench_batch(batches=(1, 2), repeats=1, **options)
    names = {f"{what}, {batch}" for what in ("labelling", "training") for batch in (1, 2, 32)}
    assert set(result["baselines"]) == names == set(result["details"]["crops_per_cpu_second"])
    assert all(rate > 0 for rate in result["baselines"].values())
    assert result["value"] == result["baselines"]["labelling, 32"]
    assert "32 (default) | " in markdown(result)
    with pytest.raises(InputError, match="must be at least 1"):
        bench_batch(batches=(0,), **options)
    done = CliRunner().invoke(app, ["bench", "batch", "--batches", "many"])
    assert "give whole numbers with commas" in str(done.exception)
