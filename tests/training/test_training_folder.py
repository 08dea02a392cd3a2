"""A run's folder: when a run may start, continue or be replaced there."""

from __future__ import annotations

import pytest

from ferkd.system.errors import InputError
from ferkd.system.files import temporary
from ferkd.training import folder as folders

RECIPE = {"method": "hard", "optimizer": {"lr": 0.1, "betas": [0.9, 0.99]}, "data": {"workers": 2}}


def recipe(**optimizer):
    return {**RECIPE, "optimizer": {**RECIPE["optimizer"], **optimizer}}


@pytest.fixture
def run(tmp_path):
    out = tmp_path / "run"
    out.mkdir()
    folders.write_recipe(out, RECIPE)
    return out


def prepare(out, settings=RECIPE, *, resume=False, overwrite=False):
    folders.prepare(out, settings, resume=resume, overwrite=overwrite)


@pytest.mark.parametrize("how", [{}, {"resume": True}, {"overwrite": True}])
def test_a_new_or_empty_folder_is_free(tmp_path, how):
    prepare(tmp_path / "new", **how)
    prepare(tmp_path, **how)
    assert list(tmp_path.iterdir()) == []


def test_what_a_kill_left_of_a_first_write_does_not_block_the_folder(tmp_path):
    (temporary(tmp_path / "recipe.yaml")).write_text("half")
    prepare(tmp_path)
    (tmp_path / "mine").write_text("x")
    with pytest.raises(InputError, match="not a run of ferkd"):
        prepare(tmp_path)


def test_an_existing_run_names_both_remedies(run):
    with pytest.raises(InputError, match=r"already holds a run.*--resume.*--overwrite"):
        prepare(run)


def test_a_run_may_be_resumed_or_replaced(run):
    prepare(run, resume=True)
    prepare(run, recipe(lr=0.2), overwrite=True)


@pytest.mark.parametrize("how", [{}, {"resume": True}, {"overwrite": True}])
@pytest.mark.parametrize("name", ["photo.jpg", "recipe.yaml"])
def test_a_folder_of_something_else_is_never_touched(tmp_path, name, how):
    """Also not one that holds a recipe of the user's own."""
    (tmp_path / name).write_text("method: hard\n")
    with pytest.raises(InputError, match="is not empty and not a run of ferkd"):
        prepare(tmp_path, **how)


def test_clearing_deletes_the_runs_files_alone(run):
    for name in (folders.CHECKPOINT, folders.RESULT, "notes.txt"):
        (run / name).write_text("")
    (run / folders.TENSORBOARD).mkdir()
    (run / folders.TENSORBOARD / "events").write_text("")
    folders.clear(run)
    assert [path.name for path in run.iterdir()] == ["notes.txt"]


def test_a_file_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="is a file; give a folder"):
        prepare(tmp_path / "file")


def test_resume_and_overwrite_exclude_each_other(run):
    with pytest.raises(InputError, match="exclude each other"):
        prepare(run, resume=True, overwrite=True)


def test_resuming_with_another_recipe_names_the_keys(run):
    with pytest.raises(InputError) as caught:
        prepare(run, {**recipe(lr=0.2), "ema": 0.9}, resume=True)
    message = str(caught.value)
    assert "recipe.optimizer.lr: 0.1 in the run, 0.2 now" in message
    assert "recipe.ema: unset in the run, 0.9 now" in message
    assert "betas" not in message and "--overwrite" in message


def test_settings_that_do_not_change_the_result_may_differ(run):
    other = {**RECIPE, "data": {"workers": 7}}
    prepare(run, other, resume=True)
    assert folders.recipe_hash(other) == folders.recipe_hash(RECIPE)
    assert folders.recipe_hash(recipe(lr=0.2)) != folders.recipe_hash(RECIPE)


def test_a_damaged_recipe_is_named(run):
    with (run / folders.RECIPE).open("a") as file:
        file.write("a: [1")
    with pytest.raises(InputError, match=r"not valid YAML: .*; the file was changed: restore it"):
        prepare(run, resume=True)
