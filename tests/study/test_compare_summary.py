"""Statistics of a comparison, by hand: intervals, paired differences, time to an accuracy."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path

import pytest
import yaml

from ferkd.study.compare.cells import plain, tables
from ferkd.study.compare.runs import Run, group_runs, other_data, read_run
from ferkd.study.compare.summary import curve, paired, reach, remarks, summarise
from ferkd.system.errors import InputError
from ferkd.system.statistics import mean_interval, student_t_quantile
from ferkd.system.text import to_json


@pytest.mark.parametrize(
    ("degrees", "expected"),  # printed tables of t at 0.975
    [(1, 12.706), (2, 4.303), (3, 3.182), (4, 2.776), (9, 2.262), (10, 2.228), (30, 2.042)],
)
def test_quantiles_of_student(degrees, expected):
    assert student_t_quantile(0.975, degrees) == pytest.approx(expected, abs=5e-4)
    assert student_t_quantile(0.025, degrees) == pytest.approx(-student_t_quantile(0.975, degrees))


def test_quantiles_of_student_in_closed_form():
    # One degree: Cauchy, tan(pi (p - 1/2)). Two: (2p - 1) / sqrt(2 p (1 - p)).
    for p in (0.55, 0.8, 0.995):
        assert student_t_quantile(p, 1) == pytest.approx(math.tan(math.pi * (p - 0.5)), rel=1e-9)
        two = (2 * p - 1) / math.sqrt(2 * p * (1 - p))
        assert student_t_quantile(p, 2) == pytest.approx(two, rel=1e-9)
    assert student_t_quantile(0.5, 5) == pytest.approx(0, abs=1e-12)
    for p in (0, 1, 2):
        with pytest.raises(ValueError, match="between 0 and 1"):
            student_t_quantile(p, 3)
    with pytest.raises(ValueError, match="degrees of freedom"):
        student_t_quantile(0.5, 0)


def test_an_interval_by_hand():
    # Mean 2, deviation 1, n = 3: 2 ± 4.30265 / sqrt(3).
    low, high = mean_interval([1.0, 2.0, 3.0])
    assert (low, high) == (pytest.approx(2 - 2.484138, abs=1e-6), pytest.approx(4.484138, abs=1e-6))
    assert mean_interval([1.0]) is None


def test_paired_differences_by_hand():
    # Common seeds 0, 1, 2: differences 0.02, 0.04, 0.06; seeds 3 and 7 have no partner.
    ours = {0: 0.52, 1: 0.64, 2: 0.76, 3: 0.9}
    found = paired(ours, {0: 0.5, 1: 0.6, 2: 0.7, 7: 0.1})
    assert found["mean"] == pytest.approx(0.04) and found["std"] == pytest.approx(0.02)
    half = 4.302653 * 0.02 / math.sqrt(3)
    assert found["low"] == pytest.approx(0.04 - half, abs=1e-6)
    assert found["high"] == pytest.approx(0.04 + half, abs=1e-6)
    assert (found["seeds"], found["unpaired"]) == ([0, 1, 2], [3, 7])
    single = paired({0: 0.5}, {0: 0.4, 1: 0.4})
    assert (single["low"], single["high"], single["std"]) == (None, None, None)
    assert paired({0: 0.5}, {1: 0.5}) is None


def run(seed: int, top1: list[float], *, seconds: float = 1.0, m: int = 1, **result) -> Run:
    """A run of 10 steps an evaluation, 8 crops a step, ``seconds`` a step."""
    lines = {
        10 * (i + 1): {
            "step": 10 * (i + 1),
            "top1": a,
            "nll": 1 - a,
            "seconds": seconds * 10 * (i + 1),
        }
        for i, a in enumerate(top1)
    }
    steps = 10 * len(top1)
    figures = {"top1": top1[-1], "top5": 1.0, "nll": 1 - top1[-1], "ece": 0.1, "steps": steps}
    recipe = {"method": "x", "seed": seed, "data.batch_size": 8, "data.crops_per_image": m}
    whole = {**figures, "seconds": seconds * steps, **result}
    return Run(Path(f"r{seed}"), seed, recipe, whole, lines, alone=True)


def test_time_to_the_baselines_accuracy_by_hand():
    hard = [run(0, [0.2, 0.4, 0.5, 0.5]), run(1, [0.3, 0.5, 0.6, 0.7])]  # final mean 0.6
    # Mean curve 0.5, 0.6, 0.7, 0.8: the second evaluation is the first at 0.6, at step 20 of 40.
    # One run alone would be there at 10, the other at 30.
    fast = [
        run(0, [0.6, 0.6, 0.6, 0.7], seconds=3.0, m=4),
        run(1, [0.4, 0.6, 0.8, 0.9], seconds=5.0, m=4),
    ]
    found = reach(fast, 0.6, hard)
    assert (found["steps"], found["decodes"], found["seconds"]) == (20, 40, 80)
    assert found["steps_share"] == 0.5  # of hard's 40 steps
    assert found["decodes_share"] == 40 / 320  # 2 images a step against 8
    assert found["seconds_share"] == 2.0  # 80 s against 40 s
    # Seconds of a run that had company prove nothing, on either side; counts stay what they are.
    busy = [fast[0], dataclasses.replace(fast[1], alone=False)]
    for ours, base in ((busy, hard), (fast, [hard[0], dataclasses.replace(hard[1], alone=False)])):
        beside = reach(ours, 0.6, base)
        assert beside == {**found, "seconds_share": None}
    rows = summarise({"hard": hard, "fast": fast, "slow": [run(0, [0.1, 0.2])]}, "hard")
    assert rows["fast"]["reach"] == found and rows["slow"]["reach"] is None
    assert rows["hard"]["reach"]["steps"] == 40 and rows["hard"]["goal"] == pytest.approx(0.6)
    assert rows["fast"]["top1_mean"] == pytest.approx(0.8)
    assert rows["fast"]["top1_std"] == pytest.approx(math.sqrt(0.02))
    assert rows["fast"]["top1_difference"]["mean"] == pytest.approx(0.2)
    assert rows["fast"]["nll_difference"]["mean"] == pytest.approx(-0.2)
    assert "top1_difference" not in rows["hard"]
    assert (rows["fast"]["steps"], rows["fast"]["crops"], rows["fast"]["decodes"]) == (40, 320, 80)
    assert rows["slow"]["top1_std"] is None and rows["slow"]["top1_difference"]["unpaired"] == [1]
    to_json(rows)  # no nan, nothing that JSON does not hold


def test_the_mean_curve_holds_only_steps_of_all_runs():
    first, second = run(0, [0.1, 0.2, 0.3]), run(1, [0.3, 0.4])
    points = curve([first, second])
    assert [p["steps"] for p in points] == [10, 20]
    assert points[1]["top1"] == pytest.approx(0.3)
    assert points[1]["top1_std"] == pytest.approx(math.sqrt(0.02))
    assert curve([]) == []


def test_decodes_are_read_where_they_were_counted():
    counted = run(0, [0.5], decodes=33)
    counted.evaluations[10]["decodes"] = 32
    assert (counted.decodes, counted.decodes_at(10)) == (33, 32)
    assert run(0, [0.5], m=3).decodes == 30  # 8 crops of 3 an image: 3 images, 10 steps


def test_remarks_say_what_is_missing():
    rows = summarise({"hard": [run(0, [0.5])], "fkd": [run(0, [0.6]), run(1, [0.6])]}, "hard")
    lines = remarks(rows, "hard", ["hard-1"])
    assert lines[0] == "not finished: hard-1"
    assert lines[1].startswith("fkd against hard: only one of the two has") and lines[1].endswith(
        " 1"
    )
    lone = summarise({"hard": [run(0, [0.5])], "fkd": [run(1, [0.6])]}, "hard")
    assert "fkd shares no seed with hard: no difference can be paired" in remarks(lone, "hard", [])


def test_runs_without_evaluations_have_a_table_too():
    bare = run(0, [0.5])
    for key in ("top1", "top5", "nll", "ece"):
        del bare.result[key]
    rows = summarise({"hard": [bare]}, "hard")
    assert rows["hard"]["top1_mean"] is None and rows["hard"]["reach"] is None
    assert "-" in plain(tables(rows, "hard")[0])


def test_the_plain_tables_by_hand():
    hard = [run(0, [0.4, 0.5]), run(1, [0.4, 0.7])]
    fkd = [run(0, [0.6, 0.6]), run(1, [0.7, 0.8])]
    accuracy, cost = map(plain, tables(summarise({"hard": hard, "fkd": fkd}, "hard"), "hard"))
    head, first, second = accuracy.splitlines()
    assert head.split()[:3] == ["method", "seeds", "top-1,"]
    assert first.split()[:5] == ["hard", "2", "60.0", "±", "14.1"] and first.endswith("-")
    assert second.split()[:5] == ["fkd", "2", "70.0", "±", "14.1"]
    assert "+10.0 [+10.0, +10.0]" in second  # both seeds gain ten points: no spread
    steps, decodes, seconds = "10 50 %", "80 50 %", "10.0 50 %"
    reached = f"{steps} {decodes} {seconds}".split()
    assert cost.splitlines()[2].split() == ["fkd", "20", "160", "160", "20.0", "±", "0.0", *reached]


def write(folder: Path, *, finished: bool = True, **changes) -> Path:
    """A run's folder as ferkd train leaves it, with the recipe's keys by dotted name."""
    flat = {"method": "hard", "seed": 0, "schedule.steps": 10, "regions.epsilon": 0.1} | changes
    data = {"batch_size": 8, "crops_per_image": 1, "val": flat.pop("val", "v")}
    recipe = {
        "method": flat["method"],
        "seed": flat["seed"],
        "data": data,
        "schedule": {"steps": flat["schedule.steps"]},
        "regions": {"epsilon": flat["regions.epsilon"]},
    }
    folder.mkdir(parents=True)
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    line = {"kind": "eval", "step": 10, "top1": 0.5, "nll": 1.0, "seconds": 2.0}
    (folder / "metrics.jsonl").write_text(json.dumps(line) + "\n")
    result = {"steps": flat["schedule.steps"], "seconds": 2.0, "top1": 0.5, "nll": 1.0}
    if finished:
        (folder / "result.json").write_text(json.dumps(result))
    return folder


def test_runs_are_grouped_by_method_by_what_differs_and_by_steps(tmp_path):
    given = [
        write(tmp_path / "a", method="ferkd", seed=0),
        write(tmp_path / "b", method="ferkd", seed=1),
        write(tmp_path / "c", method="ferkd", **{"regions.epsilon": 0.2}),
        write(tmp_path / "d", seed=3),
        write(tmp_path / "e", seed=3, **{"schedule.steps": 30}),
        write(tmp_path / "f", seed=4, finished=False),
    ]
    found = group_runs(given)
    seeds = {
        b: {m: [r.seed for r in runs] for m, runs in g.items()} for b, g in found.budgets.items()
    }
    assert seeds == {
        "10 steps": {
            "ferkd regions.epsilon=0.1": [0, 1],
            "ferkd regions.epsilon=0.2": [0],
            "hard": [3],
        },
        "30 steps": {"hard": [3]},
    }
    assert found.notes == (f"{tmp_path / 'f'} has not finished and is left out",)


def test_runs_that_cannot_be_compared_are_refused(tmp_path):
    a, b = write(tmp_path / "a"), write(tmp_path / "b")
    with pytest.raises(InputError, match=r"are the same method \(hard\) with the same seed 0"):
        group_runs([a, b])
    with pytest.raises(InputError, match="is no run's folder"):
        group_runs([tmp_path])
    with pytest.raises(InputError, match="no finished run"):
        group_runs([write(tmp_path / "c", finished=False)])
    (a / "result.json").write_text("{")
    with pytest.raises(InputError, match="cannot be read"):
        read_run(a)
    other = write(tmp_path / "d", method="fkd", val="w")
    assert group_runs([b, other]).notes == ("the runs differ in data.val: v, w",)


def test_methods_on_unequal_terms_are_noted(tmp_path):
    """Made by hand from the keys: batch size and optimiser differ between the methods."""

    def one(name, method, seed, **leaves) -> Path:
        folder = write(tmp_path / name, method=method, seed=seed)
        recipe = yaml.safe_load((folder / "recipe.yaml").read_text())
        for key, value in leaves.items():
            part, _, leaf = key.partition("__")
            if leaf:
                recipe.setdefault(part, {})[leaf] = value
            else:
                recipe[part] = value
        (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
        return folder

    equal = {"optimizer__lr": 0.1, "ema": 0.9, "data__images": "i", "schedule__min_lr": 0}
    a, b = one("a", "hard", 0, **equal), one("b", "fkd", 0, **equal)
    assert group_runs([a, b]).notes == ()
    given = {
        "optimizer__lr": 0.2,
        "ema": None,
        "data__images": "j",
        "data__batch_size": 9,
        "data__crops_per_image": 3,
        "schedule__min_lr": 0.1,
        "schedule__warmup_epochs": 2,
        "schedule__image_size": None,
        "student__weights": "w",
        "precision": "bf16",
        "clip_grad": 1.0,
        "log_steps": 7,
    }
    notes = group_runs([a, one("c", "fkd", 0, **given)]).notes
    assert "the methods differ in optimizer.lr, too: hard 0.1; fkd 0.2" in notes
    assert "the methods differ in clip_grad, too: hard unset; fkd 1.0" in notes
    said = {note.split()[4].rstrip(",") for note in notes}
    assert said == {key.replace("__", ".") for key in given} - {"log_steps"}
    # What differs within a method is in its name.
    varied = one("d", "hard", 0, **{**equal, "ema": 0.5})
    assert group_runs([a, varied]).notes == ()


def test_seeds_of_one_method_on_other_data_are_noted():
    methods = {
        "fkd": [run(0, [0.5], data="x"), run(1, [0.5], data="y"), run(2, [0.5], data="x")],
        "hard": [run(0, [0.5], data="z"), run(1, [0.5], data="z"), run(2, [0.5])],
    }
    (line,) = other_data(methods)
    assert line.startswith("fkd: the images") and "(0, 2 / 1)" in line


def test_the_columns_of_differences_hold_each_its_own_figure():
    """NLL differs by what no accuracy could: 0.25, 0.35 less, mean -0.300."""
    hard = [run(0, [0.5], nll=1.0), run(1, [0.5], nll=2.0)]
    fkd = [run(0, [0.5], nll=0.75), run(1, [0.5], nll=1.65)]
    accuracy, _ = tables(summarise({"hard": hard, "fkd": fkd}, "hard"), "hard")
    assert accuracy.head[-2:] == ("top-1 against hard, points", "NLL against hard")
    top1, nll = accuracy.rows["fkd"][-2:]
    half = 12.7062 * 0.05  # t at 0.975 with 1 degree of freedom, deviation 0.0707 / sqrt 2
    assert (top1.text, top1.note) == ("equal", "")  # not +0.0 [+0.0, +0.0]
    assert nll.text == "-0.300"
    assert nll.note == f"[{-0.3 - half:+.3f}, {-0.3 + half:+.3f}]"
