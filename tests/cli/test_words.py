"""What the command line says of a full disk, an interruption, a result; three wrong inputs each."""

from __future__ import annotations

import errno
import os
import sys
from pathlib import Path

import pytest
from pictures import write_noise

from ferkd.cli.console import continuing, expanded
from ferkd.system.files import require_room, unwritable, whole_file
from ferkd.system.interrupt import NotBegun
from ferkd.system.troubles import in_plain_words


def test_tilde_is_home_where_a_shell_leaves_it(monkeypatch):
    monkeypatch.setenv("HOME", "/home/x")
    assert expanded("~/a") == "/home/x/a" and expanded("--out=~/a=b") == "--out=/home/x/a=b"
    same = ("a~", "./~/a", "--set", "data.val=~", "--out", "")
    assert tuple(map(expanded, same)) == same


def test_ctrl_c_names_the_command_that_goes_on(monkeypatch, capsys):
    words = ["ferkd", "train", "my recipe.yaml", "--out", "run", "--overwrite"]
    monkeypatch.setattr(sys, "argv", words)
    with pytest.raises(KeyboardInterrupt), continuing():
        raise KeyboardInterrupt
    said = "to continue: ferkd train 'my recipe.yaml' --out run --resume\n"
    assert capsys.readouterr().err.endswith(said)
    with pytest.raises(KeyboardInterrupt), continuing():
        raise NotBegun
    said = "to begin again: ferkd train 'my recipe.yaml' --out run --overwrite\n"
    assert capsys.readouterr().err.endswith(said)


@pytest.mark.parametrize(
    ("number", "cause"),
    [
        (errno.ENOSPC, "the disk is full"),
        (errno.EDQUOT, "your share of this disk is used up"),
        (errno.EROFS, "read-only"),
        (errno.EACCES, "permission denied"),
        (errno.EFBIG, "too large"),
    ],
)
def test_a_disk_that_takes_no_more_is_path_cause_and_remedy(number, cause):
    error = OSError(number, os.strerror(number), "/data/x")
    said = str(unwritable("/data/x", error))
    assert said.startswith("/data/x cannot be written: ") and cause in said and ";" in said


def test_other_errors_keep_their_own_words():
    assert in_plain_words(RuntimeError("a fault of ours")) is None
    assert in_plain_words(FileNotFoundError(errno.ENOENT, "no such file", "x")) is None


def test_small_shared_memory_names_threads_and_docker():
    error = RuntimeError("unable to write to file </torch_1_2>: No space left on device (28)")
    words = in_plain_words(error)
    assert words and "worker_kind=threads" in words and "--shm-size" in words


def test_a_library_that_hides_why_a_write_failed_does_not_hide_it(tmp_path, monkeypatch):
    from ferkd.system import files

    class Full(files._Noting):
        def write(self, data):
            self.failure = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            raise self.failure

    monkeypatch.setattr(files, "_Noting", Full)
    said = r"x\.pt cannot be written: the disk is full"
    with pytest.raises(files.Unwritable, match=said), whole_file(tmp_path / "x.pt") as file:
        try:
            file.write(b"1" * 100_000)
        except OSError:
            raise RuntimeError("unexpected pos 1 vs 0") from None
    assert list(tmp_path.iterdir()) == []


def test_asking_for_room_leaves_nothing(tmp_path):
    require_room(tmp_path, 1000, 2000, what="a test")
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def ferkd(command_line):
    return command_line


@pytest.fixture
def folder(tmp_path) -> Path:
    names = [f"{name}/{i}.jpg" for name in ("cat", "dog") for i in range(4)]
    return write_noise(tmp_path / "images", dict.fromkeys(names, (40, 36)))


RECIPE = """
method: hard
data: {images: IMAGES, image_size: 32, batch_size: 4, workers: 0}
student: {name: timm/test_resnet}
schedule: {steps: 2}
"""


@pytest.fixture
def recipe(folder, tmp_path) -> Path:
    (tmp_path / "recipe.yaml").write_text(RECIPE.replace("IMAGES", str(folder)))
    return tmp_path / "recipe.yaml"


def test_a_run_ends_with_its_result_in_words_and_the_next_step(ferkd, recipe, folder, tmp_path):
    out = tmp_path / "run"
    status, said, _ = ferkd("train", recipe, "--out", out, "--set", f"data.val={folder}")
    first, *rest = said.splitlines()
    assert status == 0
    assert first.startswith("timm/test_resnet trained by hard for 1 epochs (2 steps, ")
    assert "top-1 " in first and "NLL " in first
    assert rest[-2:] == [f"the run is in {out}", f"next: ferkd evaluate {out} {folder}"]
    status, said, _ = ferkd("train", recipe, "--out", tmp_path / "b")
    assert (
        status == 0
        and ", not evaluated" in said
        and said.endswith("evaluate {} IMAGES\n".format(tmp_path / "b"))
    )


def test_three_wrong_inputs_for_train(ferkd, recipe, tmp_path):
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "mine.txt").touch()
    for arguments, said in (
        (("--set", "data.images=/nowhere"), "/nowhere: there is no such folder"),
        (("--set", "optimizer.lr=fast"), "recipe.optimizer.lr: got 'fast'"),
        (("--out", tmp_path / "other"), "is not empty and not a run of ferkd"),
    ):
        out = () if "--out" in arguments else ("--out", tmp_path / "run")
        status, shown, err = ferkd("train", recipe, *out, *arguments)
        assert (status, shown) == (2, "") and said in err and "Traceback" not in err
    assert not (tmp_path / "run").exists()


def test_three_wrong_inputs_for_evaluate(ferkd, recipe, folder, tmp_path):
    run = tmp_path / "run"
    assert ferkd("train", recipe, "--out", run)[0] == 0
    others = write_noise(tmp_path / "others", {"cat/1.jpg": (40, 36), "cow/1.jpg": (40, 36)})
    for arguments, said in (
        ((tmp_path / "nowhere", folder), "nowhere does not exist; give a run's folder"),
        ((run, others), "the classes do not match"),
        ((run, folder, "--crop-fraction", 2), "crop_fraction is 2; it must be above 0"),
    ):
        status, shown, err = ferkd("evaluate", *arguments)
        assert (status, shown) == (2, "") and said in err and "Traceback" not in err


def test_three_wrong_inputs_for_compare(ferkd, recipe, tmp_path):
    for arguments, said in (
        (("no-such-suite", "--out", tmp_path / "c"), "nor a suite file, nor a shipped suite"),
        ((recipe, "--out", tmp_path / "c"), "suite.budgets: got None"),
        ((tmp_path,), "no finished run among those given"),
    ):
        status, shown, err = ferkd("compare", *arguments)
        assert (status, shown) == (2, "") and said in err and "Traceback" not in err
    assert not (tmp_path / "c").exists()


def test_a_process_of_compare_runs_no_module_of_the_working_directory(tmp_path, monkeypatch):
    from ferkd.study.compare.execute import RunFailed, _Processes

    (tmp_path / "timm.py").write_text("open('stranger', 'w')\nraise SystemExit(1)\n")
    (tmp_path / "r.yaml").write_text(RECIPE.replace("IMAGES", "/nowhere"))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(RunFailed, match="/nowhere: there is no such folder"):
        _Processes(2)(
            *(tmp_path / "r.yaml", tmp_path / "out"), log=tmp_path / "log", steps=lambda share: None
        )
    assert not (tmp_path / "stranger").exists()
