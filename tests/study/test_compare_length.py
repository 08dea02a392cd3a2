"""The rate that a budget in seconds is turned into steps by."""

from __future__ import annotations

import json

import pytest

from ferkd.study.compare.folder import WantedRun
from ferkd.study.compare.length import measure_rate, steps_of
from ferkd.study.compare.suite import Budget, make_suite
from ferkd.training.recipe import Recipe, load_recipe


@pytest.mark.parametrize(("cache", "unmeasured"), [("none", 8), ("ram", 16), ("disk", 16)])
def test_the_first_pass_over_a_cache_is_not_measured(tiny_images, tmp_path, cache, unmeasured):
    """9 images, 2 of them a step: a pass takes 5 steps, which with the first 8 are 13; the clock
    is next read at 16. Until then a step takes 10 s, afterwards 0.25 s."""
    data = {"images": str(tiny_images({"a": 5, "b": 4})), "val": "-", "batch_size": 4}
    base = {"method": "hard", "data": {**data, "crops_per_image": 2, "cache": cache}}
    suite = make_suite(
        {"base": base, "seeds": [0], "budgets": {"t": {"seconds": 5}}, "methods": {"hard": {}}}
    )

    def trained(recipe, out, *, log, steps):
        total = load_recipe(recipe).schedule.steps
        lines = [
            {"kind": "train", "step": s, "seconds": 10 * min(s, 16) + 0.25 * max(0, s - 16)}
            for s in range(8, total + 1, 8)
        ]
        (out / "metrics.jsonl").write_text("".join(json.dumps(x) + "\n" for x in lines))
        return {}

    run = WantedRun("t", "hard", 0, tmp_path / "t" / "hard-0")
    run.folder.mkdir(parents=True)
    found = measure_rate(suite, run, trained)
    assert (found["unmeasured_steps"], found["steps"]) == (unmeasured, 32)
    seconds = 8.0 if unmeasured == 16 else 80 + 24 * 0.25
    assert found["seconds"] == seconds and found["steps_per_second"] == 32 / seconds


@pytest.mark.parametrize(
    ("seconds", "rate", "steps"),
    [(10, 0.99, 9), (10, 1.0, 10), (2.5, 3.0, 7), (0.1, 1.0, 1)],
)
def test_a_budget_of_seconds_is_not_overrun(seconds, rate, steps):
    """9.9 steps fit into 10 seconds at 0.99 a second: 9 whole ones. One step is the least."""
    recipe = Recipe(method="hard", data={"images": "-"}, schedule={"steps": 1})
    assert steps_of(Budget(seconds=seconds), recipe, rate) == steps
