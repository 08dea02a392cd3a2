"""From a folder to a small model: every phase, resumed to the same result; what is refused."""

from __future__ import annotations

import itertools
import json
import os
import re
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
from typer.testing import CliRunner

from ferkd.cli import app
from ferkd.models.student import Student, load_run
from ferkd.product import distill as product
from ferkd.product.claim import _settle_aside, claimed
from ferkd.product.distill import distill, dry_run
from ferkd.product.phases import _commonest
from ferkd.product.planning import Rates, spoken
from ferkd.product.rule import Facts, choose
from ferkd.product.settings import Settings, parse_budget, parse_student
from ferkd.store import LabelStore
from ferkd.system.errors import InputError
from ferkd.system.files import is_temporary
from ferkd.system.interrupt import NotBegun
from ferkd.system.locks import LOCK, held
from ferkd.training.finetune import FineTuning, fine_tune

TEACHER = "timm/test_resnet?random=0"
STUDENT = "timm/test_efficientnet?pretrained=false"


def patches(root: Path, each: int, seed: int, names: str = "abc") -> Path:
    rng = np.random.default_rng(seed)
    for number, name in enumerate(names):
        (root / name).mkdir(parents=True)
        for i in range(each):
            pixels = rng.integers(0, 120, (40, 40, 3))
            pixels[..., number % 3] += 60
            assert cv2.imwrite(str(root / name / f"{i}.png"), pixels.astype(np.uint8))
    return root


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("photos")
    patches(root / "train", 24, 0)
    patches(root / "val", 6, 1)
    return root


def settings(images: Path, **more: object) -> Settings:
    common: dict[str, object] = {
        "images": str(images),
        "teacher": TEACHER,
        "student": STUDENT,
        "image_size": 32,
        "teacher_image_size": 32,
        "budget": "10",
        "workers": 1,
        "device": "cpu",
    }
    return Settings(**{**common, **more})  # type: ignore[arg-type]


def test_five_phases_a_report_and_the_promised_keys(images: Path, tmp_path: Path) -> None:
    out, said, shown = tmp_path / "out", [], []
    result = distill(
        settings(images, baseline=True),
        out,
        say=said.append,
        progress=lambda done, total, note: shown.append((done, total, note)),
    )
    assert {"spec", "top1", "probe_top1", "seconds"} <= set(result["teacher"])
    assert {"crops_per_image", "agreement", "seconds"} <= set(result["labels"])
    keys = {"name", "top1", "nll", "ece", "parameters", "ms_per_image", "seconds"}
    assert keys <= set(result["student"]) and "top1" in result["baseline"]
    ahead = 100 * (result["student"]["top1"] - result["baseline"]["top1"])
    assert result["difference"]["points"] == pytest.approx(ahead)
    assert result["teacher"]["top1"] >= result["teacher"]["probe_top1"]
    assert json.loads((out / "result.json").read_text())["student"] == result["student"]
    assert load_run(out / "student")[1].class_names == ("a", "b", "c")
    # Every phase's command is said, and names the folder of its phase.
    text = "\n".join(said)
    for phase, words in {
        "teacher": "ferkd finetune",
        "labels": "ferkd label",
        "student": "ferkd train",
        "baseline": "ferkd train",
    }.items():
        assert f"{words} " in result["commands"][phase] and result["commands"][phase] in text
    planned = [(done, total) for done, total, note in shown if "as planned" in note]
    assert all(done <= total * 1.0001 for done, total in planned)
    assert planned == sorted(planned)  # the time goes on, never back
    page = (out / "report.html").read_text()
    assert "<script" not in page and "http" not in page.replace("http://www.w3.org", "")
    assert f"{result['student']['top1']:.1%}" in page
    assert result["commands"]["labels"].split()[0] in page


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"teacher": "timm/test_resnte"}, "timm has no model 'test_resnte'; nearest: test_resnet"),
        ({"student": "timm/test_resnte"}, "timm has no model 'test_resnte'; nearest: test_resnet"),
        ({"teacher": "timm/test_resnet?checkpoint=gone.pt"}, "gone.pt is not a file"),
        ({"student": "timm/test_resnet?checkpoint=gone.pt"}, "gone.pt is not a file"),
    ],
)
def test_misspelt_networks_are_known_before_the_images_are_read(
    tmp_path: Path, changed: dict[str, str], said: str
) -> None:
    nowhere = settings(tmp_path / "no-images", **changed)
    with pytest.raises(InputError, match=re.escape(said)):
        distill(nowhere, tmp_path / "out")


def test_the_printed_commands_give_the_same_labels_and_student(
    images: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    result = distill(settings(images), out, say=lambda line: None)
    runner = CliRunner()
    for phase in ("labels", "student"):
        words = result["commands"][phase].split()[1:]
        words[words.index("--out") + 1] = str(tmp_path / phase)
        done = runner.invoke(app, words, catch_exceptions=False)
        assert done.exit_code == 0, done.output
    manifests = [(p / "labels" / "manifest.json").read_bytes() for p in (out, tmp_path)]
    assert manifests[0] == manifests[1]
    weights = [(p / "student" / "weights.safetensors").read_bytes() for p in (out, tmp_path)]
    assert weights[0] == weights[1]


def test_killed_in_each_phase_and_resumed_to_the_same_result(images: Path, tmp_path: Path) -> None:
    wanted = settings(images)
    whole = distill(wanted, tmp_path / "whole", say=lambda line: None)
    out = tmp_path / "cut"

    class Killed(BaseException):
        pass

    def kill_in(phase: str):
        def progress(done: float, total: float, note: str) -> None:
            if f"; {phase}:" in note:
                raise Killed

        return progress

    for phase in ("teacher", "labels", "student"):
        with pytest.raises(Killed):
            distill(
                wanted,
                out,
                resume=out.exists(),
                progress=kill_in(phase),
                say=lambda line: None,
            )
        if phase == "teacher":  # the plan hangs on measured rates: both take the same
            assert json.loads((out / "distill.json").read_text())["plan"]["epochs"] == 10
    again = distill(wanted, out, resume=True, say=lambda line: None)
    for part, keys in {
        "teacher": ("top1", "probe_top1"),
        "labels": ("crops_per_image", "agreement"),
        "student": ("top1", "nll", "ece", "parameters"),
    }.items():
        assert [again[part][k] for k in keys] == [whole[part][k] for k in keys]
    for folder in ("teacher", "student"):
        ours, theirs = (
            (tmp_path / n / folder / "weights.safetensors").read_bytes() for n in ("whole", "cut")
        )
        assert ours == theirs
    (out / "model" / "notes.txt").write_text("precious")
    with pytest.raises(InputError, match=r"model holds other files.* go on with --resume$"):
        distill(wanted, out, resume=True, say=lambda line: None)
    assert (out / "model" / "notes.txt").read_text() == "precious"


def test_the_commonest_class_by_hand() -> None:
    images = SimpleNamespace(class_names=("a", "b"), targets=np.array([0, 1, 1, -1]))
    assert _commonest(images) == ("b", pytest.approx(2 / 3))


def test_unlabelled_images_are_labelled_and_learnt_from(images: Path, tmp_path: Path) -> None:
    more = tmp_path / "more"
    patches(more, 10, 5)
    out = tmp_path / "out"
    said: list[str] = []
    distill(settings(images, unlabelled=str(more)), out, say=said.append)
    store = LabelStore.open(out / "labels")
    assert len(store) == 72 + 30 and int((store.targets < 0).sum()) == 30
    assert store.class_names == ("a", "b", "c")
    assert "72 images and 30 without a class of 3 classes" in "\n".join(said)


def test_class_folders_alone_are_split_and_the_plan_is_printed(tmp_path: Path) -> None:
    root = patches(tmp_path / "photos", 20, 0)
    plan = dry_run(settings(root, held_out=0.25, budget="20"), tmp_path / "out")
    assert not (tmp_path / "out").exists()
    text = "\n".join([*plan["look"], *plan["lines"]])
    assert "45 images of 3 classes" in text and "15 images" in text
    assert "20 epochs of the student: as asked for" in text and "labels of" in text
    assert str(tmp_path / "out" / "data" / "split" / "train") in plan["commands"]["teacher"]


def test_a_teacher_of_these_classes_is_taken_as_it_is(images: Path, tmp_path: Path) -> None:
    first = distill(settings(images), tmp_path / "a", say=lambda line: None)
    teacher = str(tmp_path / "a" / "student")
    wanted = settings(images, teacher=teacher, fine_tune=False)
    second = distill(wanted, tmp_path / "b", say=lambda line: None)
    assert second["teacher"]["probe_top1"] is None
    assert second["teacher"]["top1"] == pytest.approx(first["student"]["top1"])
    assert not (tmp_path / "b" / "teacher").exists()


def test_the_command_prints_its_plan_and_how_to_continue(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ["distill", str(images), "--out", str(tmp_path / "out"), "--teacher", TEACHER]
    words += ["--student", STUDENT, "--image-size", "32", "--teacher-image-size", "32"]
    words += ["--budget", "10", "--device", "cpu"]
    runner = CliRunner()
    done = runner.invoke(app, [*words, "--dry-run", "--json"], catch_exceptions=False)
    plan = json.loads(done.stdout)["plan"]
    assert (plan["crops"], plan["epochs"], plan["fine_tune"]) == (10, 10, True)

    def stop(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(product, "distill", stop)
    monkeypatch.setattr("sys.argv", ["ferkd", *words])
    done = runner.invoke(app, words)
    assert "to continue: ferkd distill " in done.stderr
    assert "--budget 10 --device cpu --resume" in done.stderr
    assert done.exit_code != 0


# What cannot work


def test_one_class_is_refused(tmp_path: Path) -> None:
    root = patches(tmp_path / "photos", 4, 0, names="a")
    with pytest.raises(InputError, match=r"has 1 class folder \(a\); a classifier needs"):
        distill(settings(root), tmp_path / "out")


def test_a_class_that_labels_txt_cannot_hold_is_refused_before_anything_is_trained(
    tmp_path: Path,
) -> None:
    for part in ("train", "val"):
        patches(tmp_path / "photos" / part, 2, 0)
        (tmp_path / "photos" / part / "a").rename(tmp_path / "photos" / part / "a\nb")
    with pytest.raises(InputError, match=r"class 'a\\nb' does not fit on a line of labels\.txt"):
        distill(settings(tmp_path / "photos"), tmp_path / "out")
    assert not (tmp_path / "out" / "distill.json").exists()


def test_a_validation_folder_lacking_a_class_is_refused(images: Path, tmp_path: Path) -> None:
    val = patches(tmp_path / "val", 3, 0, names="ab")
    with pytest.raises(InputError, match=r"lack the class 'c' \(3 classes in"):
        distill(settings(images, val=str(val)), tmp_path / "out")
    shutil.copytree(val / "a", val / "c")
    shutil.copytree(val / "a", val / "d")
    with pytest.raises(InputError, match="have a class 'd' more"):
        distill(settings(images, val=str(val)), tmp_path / "out2")


def test_other_classes_without_fine_tuning_are_refused(images: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"1000 classes, but the images have 3.*--no-fine-tune"):
        distill(settings(images, fine_tune=False), tmp_path / "out")


@pytest.mark.parametrize(
    ("budget", "message"),
    [
        ("0.001", "too small for anything: 72 images make .* give at least"),
        ("1s", "a budget of 1s is too small: these 72 images need about"),
        ("soon", "'soon' is not understood; give a time such as 30m"),
        ("0m", "no time at all"),
        ("-3", "must be above 0"),
        ("nan", "must be above 0"),
    ],
)
def test_budgets_too_small_or_strange(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, budget: str, message: str
) -> None:
    slow = Rates(student=0.1, teacher=0.1, answer=0.1, read=0.1)
    monkeypatch.setattr(product, "measure_rates", lambda *_: slow)  # of a slow machine
    with pytest.raises(InputError, match=message):
        distill(settings(images, budget=budget), tmp_path / "out")


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--val", "lacking"], "lack the class 'c'"),
        (["--no-fine-tune"], "leave out --no-fine-tune"),
        (["--budget", "0.001"], "too small for anything"),
        (["--student", "resnet18"], "write timm/NAME"),
        (["--teacher", "timm/no_such_network"], "no_such_network"),
        (["--image-size", "8"], "give 16 to 4096 pixels"),
    ],
)
def test_the_command_refuses_in_one_message(
    images: Path, tmp_path: Path, command_line, more: list[str], message: str
) -> None:
    patches(tmp_path / "lacking", 3, 0, names="ab")
    more = [str(tmp_path / "lacking") if word == "lacking" else word for word in more]
    words = ["--out", tmp_path / "out", "--teacher", TEACHER, "--student", STUDENT]
    words += ["--image-size", "32", "--budget", "10", "--device", "cpu"]
    status, out, err = command_line("distill", images, *words, *more)
    assert (status, out) == (2, "") and message in err and "Traceback" not in err
    assert not (tmp_path / "out" / "teacher").exists()


def test_an_image_that_is_none_is_left_out_and_many_are_refused(tmp_path: Path) -> None:
    root = patches(tmp_path / "photos", 60, 0)
    (root / "a" / "0.png").write_bytes(b"no image")
    plan = dry_run(settings(root), tmp_path / "out")
    assert any("1 images cannot be read, such as a/0.png" in line for line in plan["look"])
    for i in range(20):
        (root / "b" / f"{i}.png").write_bytes(b"no image")
    with pytest.raises(InputError, match=r"cannot be read|unreadable"):
        dry_run(settings(root), tmp_path / "out")


def test_folders_in_use_and_changed_settings_are_refused(images: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "mine.txt").write_text("precious")
    with pytest.raises(InputError, match="not empty and not a distillation's folder"):
        distill(settings(images), out)
    (out / "mine.txt").unlink()
    with pytest.raises(InputError, match="too small"):
        distill(settings(images, budget="0.001"), out)
    assert not any(out.iterdir())  # what was refused is no distillation begun

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        distill(settings(images, budget="20"), out, progress=stop)
    with pytest.raises(InputError, match="already; continue it with --resume"):
        distill(settings(images), out)
    with pytest.raises(InputError, match="budget was '20', now '10'"):
        distill(settings(images), out, resume=True)


def test_two_distillations_into_one_folder_are_refused(images: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    refused = []

    def begun(done: float, total: float, note: str) -> None:
        if not refused:
            for more in ({}, {"resume": True}, {"overwrite": True}):
                with pytest.raises(InputError, match="being written by another ferkd distill"):
                    distill(settings(images), out, **more)
                refused.append(more)
            raise KeyboardInterrupt  # the rest is tested elsewhere

    with pytest.raises(KeyboardInterrupt):
        distill(settings(images), out, progress=begun)
    assert len(refused) == 3
    assert not (out / ".lock").exists() and json.loads((out / "distill.json").read_text())


def test_two_fine_tunings_into_one_folder_are_refused(images: Path, tmp_path: Path) -> None:
    wanted = FineTuning(
        network=Student(name="timm/test_resnet"),
        images=str(images / "train"),
        val=str(images / "val"),
        image_size=32,
    )
    with held(tmp_path / "out", "mine"), pytest.raises(InputError, match="another ferkd process"):
        fine_tune(wanted, tmp_path / "out")


def old_distillation(out: Path) -> dict[str, str]:
    """A folder that holds a finished distillation and two files of the user's; its files."""
    (out / "student").mkdir(parents=True)
    (out / "data-mine").mkdir()
    (out / "distill.json").write_text('{"settings": {}, "plan": {}}')
    for name in ("student-1.yaml", "result.json", "mine.yaml", "student/a", "data-mine/b"):
        (out / name).write_text(name)
    return files(out)


def files(out: Path) -> dict[str, str]:
    return {
        str(path.relative_to(out)): path.read_text()
        for path in out.rglob("*")
        if path.is_file() and path.name != LOCK and not is_temporary(path.name)
    }


def test_a_refused_overwriting_loses_nothing(images: Path, tmp_path: Path) -> None:
    before = old_distillation(tmp_path / "out")
    with pytest.raises(InputError, match="too small"):
        distill(settings(images, budget="0.001"), tmp_path / "out", overwrite=True)
    assert files(tmp_path / "out") == before

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    with pytest.raises(NotBegun):  # before it has a plan
        distill(settings(images), tmp_path / "out", overwrite=True, progress=stop)
    assert files(tmp_path / "out") == before


def test_overwriting_removes_what_is_ours_alone(images: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    old_distillation(out)
    with claimed(out, settings(images), resume=False, overwrite=True) as state:
        state.plan(plan={"new": 1})
    left = files(out)
    assert json.loads(left.pop("distill.json"))["plan"] == {"new": 1}
    assert left == {"mine.yaml": "mine.yaml", "data-mine/b": "data-mine/b"}


@pytest.mark.skipif(not hasattr(os, "fork"), reason="kills a forked process")
def test_a_kill_at_any_change_of_files_loses_no_distillation(images: Path, tmp_path: Path) -> None:
    """The old one is whole again until the new one has a plan; from then on it is gone."""
    wanted, outcomes = settings(images), set()
    for instant in range(60):
        out = tmp_path / str(instant)
        before = old_distillation(out)
        child = os.fork()
        if not child:
            killed_at(instant)
            with claimed(out, wanted, resume=False, overwrite=True) as state:
                (out / "student").mkdir()
                (out / "student" / "new").write_text("new")
                state.plan(plan={"new": 1})
            os._exit(0)
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        _settle_aside(out)  # the first act of the next call
        found = files(out)
        if json.loads(found["distill.json"])["plan"]:  # the old one's is empty
            outcomes.add("new")
            assert set(found) == {"distill.json", "student/new", "mine.yaml", "data-mine/b"}
        else:
            outcomes.add("old")
            assert found == before
        if code == 0:
            break
    assert code == 0 and outcomes == {"old", "new"}


def killed_at(instant: int) -> None:
    """From now on this process dies before its ``instant``-th rename or removal."""
    left = itertools.count()

    def watch(where: object, name: str) -> None:
        original = getattr(where, name)

        def counted(*args: object, **kwargs: object) -> object:
            if next(left) == instant:
                os._exit(9)
            return original(*args, **kwargs)

        setattr(where, name, counted)

    for name in ("rename", "replace", "unlink", "rmdir"):
        watch(os, name)
        watch(Path, name)


def test_the_rule_of_the_student() -> None:
    common = Facts(classes=5, images=3000, unlabelled=0, agreement=0.9, pretrained=False, epochs=24)
    assert choose(common).method == "ferkd"
    unsure = choose(replace(common, agreement=0.49))
    assert (unsure.method, unsure.loss) == ("hard", {"label_smoothing": 0.0})
    assert "right on less than 60%" in unsure.reason
    few = choose(replace(common, agreement=0.49, unlabelled=100))
    assert few.method == "ferkd" and "without a class" in few.reason


def test_budgets_and_students_are_read() -> None:
    assert parse_budget("1h30m").seconds == 5400 and parse_budget("90s").seconds == 90
    assert parse_budget("40").epochs == 40 and parse_budget(None).epochs is None
    assert parse_student("timm/resnet18").pretrained
    assert not parse_student("timm/resnet18?pretrained=false").pretrained
    assert spoken(40) == "40 s" and spoken(600) == "10 min" and spoken(9000) == "2.5 h"
    for spec, message in {
        "resnet18": "timm/NAME",
        "timm/resnet18?pretrained=maybe": "pretrained is true or false",
        "timm/resnet18?num_classes=3": "num_classes does not go into",
    }.items():
        with pytest.raises(InputError, match=message):
            parse_student(spec)
