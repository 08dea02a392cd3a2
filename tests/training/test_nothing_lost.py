"""No work is lost in training: who may write, what is checked first, what is saved first."""

from __future__ import annotations

import errno
import json
import logging
import os
import shutil
import threading

import pytest
import torch
from PIL import Image
from runs import data_on

from ferkd.evaluating.run import evaluate
from ferkd.system.errors import InputError
from ferkd.system.files import Unwritable
from ferkd.training import course as courses
from ferkd.training import train
from ferkd.training.metrics import read_metrics
from ferkd.training.recipe import load_recipe, make_recipe
from ferkd.training.run import build_trainer

STEPS = 3


@pytest.fixture
def photos(tiny_images):
    return tiny_images({"a": 4, "b": 4})


@pytest.fixture
def settings(photos):
    return {
        "method": "hard",
        "data": data_on(photos),
        "student": {"name": "timm/test_efficientnet"},
        "schedule": {"steps": STEPS},
        "evaluation": {"every_epochs": None},
        "log_steps": 1,
    }


def run(settings, out, **options):
    return train(make_recipe(settings), out, **options)


@pytest.mark.parametrize("how", [{}, {"overwrite": True}, {"resume": True}])
def test_a_second_job_on_the_same_folder_is_refused(settings, tmp_path, how):
    out, refusals = tmp_path / "run", []

    def second(line):
        if line["kind"] == "train" and line["step"] == 1:
            other = {**settings, "seed": 0 if how.get("resume") else 5}
            with pytest.raises(InputError) as refused:
                run(other, out, **how)
            refusals.append(str(refused.value))

    result = run(settings, out, progress=second)
    # Without an option the folder is a run's already; with one it is the lock that refuses.
    wanted = "is being written by another ferkd process" if how else "already holds a run"
    assert [wanted in said for said in refusals] == [True]
    assert result["seed"] == make_recipe(load_recipe(out / "recipe.yaml").to_dict()).seed == 0
    assert [line["step"] for line in read_metrics(out / "metrics.jsonl")] == [1, 2, 3, 3]
    assert not (out / ".lock").exists()


def test_the_lock_of_a_killed_job_does_not_block_its_folder(settings, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / ".lock").touch()
    assert run(settings, tmp_path / "run")["steps"] == STEPS


def test_a_refused_job_leaves_no_folder(settings, tmp_path):
    settings["data"]["val"] = str(tmp_path / "nowhere")
    with pytest.raises(InputError, match="nowhere"):
        run(settings, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_an_unreadable_validation_image_is_found_before_the_first_step(settings, photos, tmp_path):
    val = tmp_path / "val"
    shutil.copytree(photos, val)
    next(iter(sorted((val / "a").iterdir()))).write_bytes(b"")
    settings["data"]["val"] = str(val)
    lines = []
    with pytest.raises(InputError, match=r"1 of 8 images \(12.5%\) are unreadable"):
        run(settings, tmp_path / "run", progress=lines.append)
    assert lines == [] and not (tmp_path / "run").exists()


def test_validation_images_that_are_not_kept_are_checked_by_a_spread_sample(photos, monkeypatch):
    from ferkd.evaluating import center_crops
    from ferkd.images import open_images

    monkeypatch.setattr(center_crops, "CHECKED", 4)
    images = open_images(photos)
    (photos / images.ids[1]).write_bytes(b"")  # the sample is of every second image
    center_crops.CenterCrops(images, image_size=32, cache_bytes=0).check()
    (photos / images.ids[2]).write_bytes(b"")
    with pytest.raises(InputError, match="1 of 4 images"):
        center_crops.CenterCrops(images, image_size=32, cache_bytes=0).check()


@pytest.mark.parametrize("when", [1, STEPS])
def test_an_evaluation_that_fails_costs_no_run(
    settings, photos, tmp_path, monkeypatch, caplog, when
):
    measure, made = courses.measure, []

    def broken(*arguments):
        made.append(True)
        if len(made) == when:
            raise OSError(errno.EIO, "the disk of the validation images is gone")
        return measure(*arguments)

    settings["evaluation"] = {"every_epochs": 0.5}  # 4 crops of 8 images: after each step
    monkeypatch.setattr(courses, "measure", broken)
    with caplog.at_level(logging.WARNING):
        result = run(settings, tmp_path / "run")
    assert "the evaluation at step" in caplog.text and "is gone" in caplog.text
    assert len(made) == STEPS and ("top1" in result) == (when != STEPS)
    assert evaluate(tmp_path / "run", photos, workers=0)["images"] == 8


def test_the_weights_are_there_before_the_last_evaluation_and_state(
    settings, tmp_path, monkeypatch
):
    out, seen = tmp_path / "run", []
    save, measure = courses.save_checkpoint, courses.measure

    def saving(path, state):
        seen.append(("state", (out / "weights.safetensors").is_file()))
        save(path, state)

    def measuring(*arguments):
        seen.append(("evaluation", (out / "weights.safetensors").is_file()))
        return measure(*arguments)

    monkeypatch.setattr(courses, "save_checkpoint", saving)
    monkeypatch.setattr(courses, "measure", measuring)
    run(settings, out)
    assert seen == [("state", True), ("evaluation", True)]


class Killed(BaseException):
    pass


def test_a_job_killed_in_its_last_evaluation_makes_it_again(settings, tmp_path, monkeypatch):
    whole = run(settings, tmp_path / "whole")

    def killed(*_):
        raise Killed

    monkeypatch.setattr(courses, "measure", killed)
    with pytest.raises(Killed):
        run(settings, tmp_path / "run")
    weights = (tmp_path / "run/weights.safetensors").read_bytes()
    monkeypatch.undo()
    result = run(settings, tmp_path / "run", resume=True)
    assert result["top1"] == whole["top1"] and result["nll"] == whole["nll"]
    assert (tmp_path / "run/weights.safetensors").read_bytes() == weights
    lines = [(x["kind"], x["step"]) for x in read_metrics(tmp_path / "run/metrics.jsonl")]
    assert lines == [("train", 1), ("train", 2), ("train", 3), ("eval", 3)]


def refusing(name, error=errno.ENOSPC):
    """An opener of whole files to which the disk is full for one name."""
    from ferkd.system import files

    class Full(files._Noting):
        def write(self, data):
            if f".{name}." in str(self.name):
                self.failure = OSError(error, os.strerror(error))
                raise self.failure
            return super().write(data)

    return Full


def test_a_disk_full_for_the_state_keeps_weights_and_result(
    settings, photos, tmp_path, monkeypatch, caplog
):
    monkeypatch.setattr("ferkd.system.files._Noting", refusing("checkpoint.pt"))
    with caplog.at_level(logging.WARNING):
        result = run(settings, tmp_path / "run")
    assert "the state at step 3 is not saved" in caplog.text
    assert "checkpoint.pt cannot be written: the disk is full" in caplog.text
    assert json.loads((tmp_path / "run/result.json").read_text())["top1"] == result["top1"]
    assert evaluate(tmp_path / "run", photos, workers=0)["top1"] == result["top1"]


def test_weights_that_the_run_cannot_take_are_put_elsewhere(
    settings, photos, tmp_path, monkeypatch
):
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    full = refusing("weights.safetensors")

    class OnlyThere(full):
        def write(self, data):
            if elsewhere in type(tmp_path)(str(self.name)).parents:
                return super(full, self).write(data)
            return super().write(data)

    monkeypatch.setattr("ferkd.system.files._Noting", OnlyThere)
    monkeypatch.setattr("tempfile.tempdir", str(elsewhere))
    with pytest.raises(Unwritable, match=r"the disk is full.*The trained weights are in") as said:
        run(settings, tmp_path / "run")
    (place,) = elsewhere.iterdir()
    assert str(place) in str(said.value)
    assert evaluate(place, photos, workers=0)["images"] == 8


def test_a_record_or_a_display_that_fails_costs_no_run(settings, tmp_path, monkeypatch, caplog):
    def gone(line):
        raise BrokenPipeError(errno.EPIPE, "Broken pipe")

    monkeypatch.setattr("ferkd.training.metrics._dump", gone)
    with caplog.at_level(logging.WARNING):
        result = run(settings, tmp_path / "run", progress=gone)
    assert result["steps"] == STEPS and "top1" in result
    assert caplog.text.count("progress is no longer shown") == 1
    assert caplog.text.count("metrics.jsonl lacks lines") == 1


@pytest.mark.skipif(not hasattr(os, "posix_fallocate"), reason="asks for the space beforehand")
def test_room_is_asked_for_before_the_first_step(settings, tmp_path):
    resource = pytest.importorskip("resource")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    lines = []
    resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, hard))
    try:
        with pytest.raises(Unwritable, match=r"run cannot take the .* too large .*ulimit -f"):
            run(settings, tmp_path / "run", progress=lines.append)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert lines == [] and not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("name", "damage", "said"),
    [
        ("checkpoint.pt", b"PK\x03\x04 nothing", "checkpoint.pt: not a readable checkpoint"),
        ("checkpoint.pt", {"version": 2}, "belongs to another recipe"),
        ("checkpoint.pt", {"model": {}}, "is damaged: it is no state of this run"),
        ("recipe.yaml", b"# The resolved recipe of a run, written by ferkd train\n{", "not valid"),
        ("result.json", b"{", "result.json is damaged or no result of a run"),
    ],
)
def test_a_damaged_file_of_a_run_is_one_clear_message(settings, tmp_path, name, damage, said):
    out = tmp_path / "run"

    def stop(line):
        if line["kind"] == "train" and line["step"] == 2:
            raise Killed

    with pytest.raises(Killed):
        run({**settings, "checkpoint_seconds": 1e-9}, out, progress=stop)
    if isinstance(damage, bytes):
        (out / name).write_bytes(damage)
    else:
        state = torch.load(out / name, weights_only=True)
        torch.save({**state, **damage} if "model" in damage else damage, out / name)
    with pytest.raises(InputError, match=said):
        run({**settings, "checkpoint_seconds": 1e-9}, out, resume=True)


def test_a_damaged_line_of_the_record_ends_it(settings, tmp_path):
    (tmp_path / "m.jsonl").write_text('{"kind": "train", "step": 1}\n[1]\n{"kind": "eval"}\n')
    assert read_metrics(tmp_path / "m.jsonl") == [{"kind": "train", "step": 1}]


def test_other_pictures_under_the_same_names_are_other_data(settings, photos):
    def identity():
        return build_trainer(make_recipe(settings))[1].identity

    before = identity()
    assert identity() == before
    path = next(iter(sorted((photos / "a").iterdir())))
    size = path.stat()
    data = bytearray(path.read_bytes())
    data[-20] ^= 1  # neither the size nor the time tells
    path.write_bytes(data)
    os.utime(path, ns=(size.st_atime_ns, size.st_mtime_ns))
    assert identity() != before


def test_of_a_large_set_a_spread_sample_is_read(photos):
    from ferkd.images import open_images
    from ferkd.images.content import content

    class Counting:
        def __init__(self, source):
            self.source, self.read_at, self.lock = source, [], threading.Lock()

        def __len__(self):
            return 300

        def read(self, place):
            with self.lock:
                self.read_at.append(place)
            return self.source.read(place % len(self.source)) + bytes([place % 256])

    whole, part = Counting(open_images(photos)), Counting(open_images(photos))
    assert content(whole) != content(part, limit=1)
    assert sorted(whole.read_at) == list(range(300))
    assert len(part.read_at) == 64 and max(part.read_at) > 200 and min(part.read_at) < 100


def test_evaluation_turns_images_as_the_labels_did(settings, tmp_path, monkeypatch):
    """An image of 32 x 48 whose EXIF says to turn it: as stored its left half is white."""
    from ferkd.labelling.run import label

    root = tmp_path / "turned"
    for number, name in enumerate(("a", "b")):
        (root / name).mkdir(parents=True)
        picture = Image.new("RGB", (48, 32))
        picture.paste((255, 255, 255), (0, 0, 24, 32))
        exif = Image.Exif()
        exif[0x0112] = 6
        for i in range(2):
            picture.putpixel((47, 31), (number, i, 0))
            picture.save(root / name / f"{i}.png", exif=exif)
    teacher = "timm/test_resnet?random=0&num_classes=2&image_size=32"
    label(root, teacher, tmp_path / "l", crops=2, workers=1, exif=False)
    settings |= {"method": "fkd"}
    settings["data"] |= {"images": str(root), "val": str(root), "store": str(tmp_path / "l")}
    shown = []
    real = courses.predict

    def predict(model, crops, **rest):
        shown.extend(pixels for pixels, _ in crops.batches(4))
        return real(model, crops, **rest)

    monkeypatch.setattr(courses, "predict", predict)
    result = run(settings, tmp_path / "run")
    assert json.loads((tmp_path / "run/config.json").read_text())["exif"] is False
    left, right = shown[0][0, 0, :, :14].float().mean(), shown[0][0, 0, :, 18:].float().mean()
    assert left > 200 and right < 60  # not turned; turned, the upper half is white
    found = evaluate(tmp_path / "run", root, workers=0)
    assert found["nll"] == pytest.approx(result["nll"], abs=1e-6)


@pytest.mark.parametrize("key", ["data.images", "data.val"])
def test_paths_are_taken_as_they_are_and_tilde_is_home(
    settings, photos, tmp_path, monkeypatch, key
):
    home = tmp_path / "home"
    odd = home / "a=b, c@d & e#f: g"
    odd.parent.mkdir()
    odd.symlink_to(photos)
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "r.yaml").write_text(json.dumps(settings))
    recipe = load_recipe("~/../r.yaml", [f"{key}=~/{odd.name}"])
    result = train(recipe, "~/run")
    assert (home / "run/result.json").is_file() and not (tmp_path / "~").exists()
    assert result["run"] == str(home / "run")


def test_a_folder_whose_name_is_no_utf8_is_refused_before_any_step(settings, tmp_path):
    with pytest.raises(InputError, match=r"'.*caf\\udce9' is no valid UTF-8.*rename"):
        run(settings, tmp_path / "caf\udce9")


def test_a_url_is_no_folder_for_a_run(settings, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match="URL"):
        run(settings, "memory://bucket/run")
    assert not (tmp_path / "memory:").exists()
