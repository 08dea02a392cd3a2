"""What a suite checks before it runs: what it reads, and the runs that are there already."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from ferkd.labelling.run import label
from ferkd.study.compare import compare_suite, make_suite
from ferkd.study.compare.checks import check_data, check_finished, other_settings
from ferkd.study.compare.folder import wanted_runs, write_suite
from ferkd.system.errors import InputError
from ferkd.training import folder as folders

TEACHER = "timm/test_resnet?random=0&num_classes=2"


def suite(photos="images", **changes):
    data = {"images": str(photos), "val": str(photos), "batch_size": 4, "image_size": 32}
    given = {
        "base": {"method": "hard", "data": {**data, "store": "labels"}},
        "seeds": [0, 1],
        "budgets": {"short": {"steps": 5}},
        "methods": {"hard": {}, "ferkd": {"method": "ferkd"}},
    }
    return make_suite({**given, **changes})


def finish(of, out: Path, length=None, **changes) -> None:
    """Leave all runs of a suite as if they were finished, with ``changes`` to their recipes."""
    for run in wanted_runs(of, out):
        tree = of.recipe(run.method, run.seed, length or {"steps": 5}).to_dict()
        for key, value in changes.items():
            *parts, last = key.split("__")
            node = tree
            for part in parts:
                node = node[part]
            if value is ...:
                del node[last]
            else:
                node[last] = value
        run.folder.mkdir(parents=True)
        folders.write_recipe(run.folder, tree)
        result = {"steps": 5, "seconds": 1.0, "top1": 0.5, "nll": 1.0, "data": run.name}
        (run.folder / "result.json").write_text(json.dumps(result))
        (run.folder / "metrics.jsonl").write_text("")


def test_finished_runs_of_the_same_settings_pass(tmp_path):
    finish(suite(), tmp_path, data__workers=7, checkpoint_seconds=1.0)
    assert other_settings(suite(), wanted_runs(suite(), tmp_path)) == {}
    assert check_finished(suite(), wanted_runs(suite(), tmp_path)) is None


def test_finished_runs_of_other_settings_are_refused_by_name_and_key(tmp_path):
    """As when a default changed between two versions."""
    finish(suite(seeds=[0]), tmp_path, regions__thresholds="auto")
    finish(suite(seeds=[1]), tmp_path)
    assert suite().recipe("ferkd", 0, {"steps": 1}).regions.thresholds == "reliable"
    line = 'recipe.regions.thresholds: "auto" in the run, "reliable" now'
    found = other_settings(suite(), wanted_runs(suite(), tmp_path))
    assert found == {"short/ferkd-0": [line]}  # hard reads no thresholds
    with pytest.raises(InputError, match=r"(?s)short/ferkd-0: recipe.regions.thresholds.*--report"):
        check_finished(suite(), wanted_runs(suite(), tmp_path))


def test_a_key_that_an_older_run_lacks_stands_for_its_default(tmp_path):
    finish(suite(), tmp_path, teacher_precision=..., data__scaled_decoding=...)
    assert other_settings(suite(), wanted_runs(suite(), tmp_path)) == {}
    other = suite(set={"data.scaled_decoding": False})
    found = other_settings(other, wanted_runs(other, tmp_path))
    line = "recipe.data.scaled_decoding: true in the run, false now"
    assert len(found) == 4 and found["short/hard-0"] == [line]


def test_keys_that_a_method_does_not_read_decide_nothing(tmp_path):
    methods = {"hard": {}, "fkd": {"method": "fkd"}, "pskd": {"method": "pskd"}}
    finish(
        suite(methods=methods),
        tmp_path,
        teacher="other",
        data__store="other",
        data__crops__flip=0.0,
        loss__label_kind="hard",
        loss__own_share=0.1,
        loss__objective="kl",
        loss__label_smoothing=0.2,
    )
    found = other_settings(suite(methods=methods), wanted_runs(suite(methods=methods), tmp_path))
    keys = {name: {line.split(":")[0] for line in lines} for name, lines in found.items()}
    assert keys["short/hard-1"] == {"recipe.loss.label_smoothing", "recipe.data.crops.flip"}
    assert keys["short/pskd-0"] == {"recipe.data.crops.flip", "recipe.loss.own_share"}
    stored = {f"recipe.{key}" for key in ("data.store", "loss.label_kind", "loss.objective")}
    assert keys["short/fkd-1"] == stored


@pytest.mark.parametrize(
    ("kind", "differ"),
    [
        ("none", set()),
        ("mixup", {"alpha", "probability"}),
        ("cutmix", {"alpha", "probability"}),
        ("selfmix", {"operator", "alpha", "probability"}),
    ],
)
def test_mixing_that_is_not_done_decides_nothing(tmp_path, kind, differ):
    mixed = {"method": "ferkd", "mix.kind": kind, "data.crops_per_image": 2}
    of = suite(seeds=[0], methods={"ferkd": mixed})
    finish(of, tmp_path, mix__operator="mixup", mix__alpha=0.3, mix__probability=0.4)
    found = other_settings(of, wanted_runs(of, tmp_path))
    lines = found.get("short/ferkd-0", [])
    assert {line.split(":")[0].removeprefix("recipe.mix.") for line in lines} == differ


@pytest.mark.parametrize(
    ("budget", "length", "same"),
    [
        ({"steps": 5}, {"steps": 5}, True),
        ({"steps": 6}, {"steps": 5}, False),
        ({"decodes": 20}, {"steps": 5}, True),  # hard shows 4 images a step
        ({"decodes": 24}, {"steps": 5}, False),
        ({"epochs": 3}, {"epochs": 3}, True),
        ({"epochs": 2}, {"epochs": 3}, False),
        ({"seconds": 60}, {"steps": 5}, True),  # as many as the clock found
    ],
)
def test_the_length_counts_unless_the_clock_found_it(tmp_path, budget, length, same):
    of = suite(budgets={"short": budget}, methods={"hard": {}})
    finish(of, tmp_path, length)
    assert (other_settings(of, wanted_runs(of, tmp_path)) == {}) == same


def test_other_settings_and_other_data_are_remarks_of_a_report(tmp_path):
    finish(suite(seeds=[0]), tmp_path, regions__epsilon=0.3)
    finish(suite(seeds=[1]), tmp_path)
    write_suite(suite(), tmp_path)
    with pytest.raises(InputError, match="were made with other settings"):
        compare_suite(suite(), tmp_path, name="x")
    found = compare_suite(suite(), tmp_path, name="x", report_only=True).result
    remarks = found["budgets"]["short"]["remarks"]
    said = "short/ferkd-0 was made with other settings: recipe.regions.epsilon: 0.3 in the run"
    assert sum(line.startswith(said) for line in remarks) == 1
    assert sum("are not the same for all seeds (0 / 1)" in line for line in remarks) == 2


def test_a_recipe_that_cannot_be_read_is_named(tmp_path):
    finish(suite(), tmp_path)
    (tmp_path / "short" / "hard-0" / "recipe.yaml").write_text("- no\n- mapping\n")
    with pytest.raises(InputError, match=r"hard-0.recipe.yaml cannot be read"):
        check_finished(suite(), wanted_runs(suite(), tmp_path))


def test_all_that_is_missing_is_named_with_its_methods(tiny_images, tmp_path):
    photos = tiny_images({"a": 2, "b": 2})
    crops, gone = str(tmp_path / "crops"), str(tmp_path / "gone")
    label(photos, f"{TEACHER}&image_size=32", crops, crops=2, workers=1)
    of = suite(
        photos,
        set={"data.store": crops},
        methods={
            "hard": {"data.store": gone},  # which it does not read
            "fkd": {"method": "fkd"},
            "relabel": {"method": "relabel"},
            "kd": {"method": "kd", "teacher": gone},
            "funmatch": {"method": "funmatch", "teacher": gone},
            "kd-64": {"method": "kd", "teacher": f"{TEACHER}&image_size=64"},
            "kd-file": {"method": "kd", "teacher": f"timm/test_resnet?checkpoint={gone}"},
            "kd-name": {"method": "kd", "teacher": "timm/test_resent"},
            "kd-run": {"method": "kd", "teacher": str(photos)},
            "warm": {"student.weights": gone},
        },
    )
    with pytest.raises(InputError) as caught:
        check_data(of, wanted_runs(of, tmp_path / "out"))
    lines = str(caught.value).splitlines()
    for start, said in (
        ("relabel: ", "holds the labels of crops, but method relabel needs label maps"),
        ("kd, funmatch: ", "is no directory of a run"),
        ("kd-64: ", "states image_size=64"),
        ("kd-file: ", "is not a file"),
        ("kd-name: ", "timm has no model 'test_resent'"),
        ("kd-run: ", "holds no weights.safetensors"),
        ("warm: ", "is not a file"),
    ):
        assert sum(line.startswith(start) and said in line for line in lines) == 1, (start, lines)
    assert len(lines) == 8 and "--only" in lines[-1]  # nothing of hard and fkd
    fine = suite(photos, set={"data.store": gone}, methods={"hard": {}})
    assert check_data(fine, wanted_runs(fine, tmp_path / "out")) is None


def test_what_is_missing_for_a_later_seed_is_named(tiny_images, tmp_path):
    photos = tiny_images({"a": 2, "b": 2})
    label(photos, f"{TEACHER}&image_size=32", tmp_path / "labels-0", crops=2, workers=1)
    of = suite(
        photos,
        seeds=[0, 1],
        methods={"fkd": {"method": "fkd", "data.store": f"{tmp_path}/labels-{{seed}}"}},
    )
    with pytest.raises(InputError) as caught:
        check_data(of, wanted_runs(of, tmp_path / "out"))
    said = str(caught.value)
    assert "labels-1 holds no label store" in said
    assert "labels-0" not in said
