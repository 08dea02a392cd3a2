"""Verification: every damage is found, and the figures of a replay are the true ones."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import pickle
import shutil
from functools import reduce
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from stores import IDS, resigned, write_store

from ferkd.images import open_images
from ferkd.labelling import replay
from ferkd.labelling.run import label
from ferkd.labelling.verify import Problem, Verification, verify_store
from ferkd.models.teacher import Inputs, Teacher
from ferkd.store import LabelStore, SoftLabels, arrays
from ferkd.store.records import RecordFormat
from ferkd.system.errors import InputError


def teacher(seed: int = 0, scale: float = 30.0, size: int = 16, classes: int = 5) -> Teacher:
    torch.manual_seed(seed)
    head = torch.nn.Linear(4, classes)
    head.weight.data.mul_(scale)
    network = (torch.nn.Conv2d(3, 4, 5), torch.nn.ReLU(), torch.nn.AdaptiveAvgPool2d(1))
    module = torch.nn.Sequential(*network, torch.nn.Flatten(), head)
    return Teacher(module, Inputs(image_size=size), spec="test", device="cpu")


@pytest.fixture
def images(tmp_path) -> Path:
    for i in range(5):
        path = tmp_path / "images" / f"class {i}" / f"é.{i}.png"
        path.parent.mkdir(parents=True)
        pixels = np.random.default_rng(i).integers(0, 256, (20 + i, 33, 3), dtype=np.uint8)
        cv2.imwrite(str(path), pixels)
    return tmp_path / "images"


def labelled(images: Path, out: Path, **options) -> Path:
    label(images, teacher(), out, **{"crops": 6, "top_k": 2, "batch_size": 7} | options)
    return out


def places(verification: Verification) -> list[str]:
    return [problem.where for problem in verification.problems]


def test_a_whole_store_is_whole(images, tmp_path):
    found = verify_store(labelled(images, tmp_path / "s"), images=images, teacher=teacher())
    assert found.ok and found.problems == ()
    figures = found.figures
    assert (figures["images"], figures["crops_per_image"], figures["files"]) == (5, 6, 6)
    assert figures["bytes"] == sum(p.stat().st_size for p in (tmp_path / "s").iterdir())
    assert (figures["images_compared"], figures["images_without_labels"]) == (5, 0)
    assert figures["replayed_crops"] == 30 and figures["argmax_agreement"] == 1.0
    assert figures["sum_error_max"] < 1e-6
    assert 0 < figures["log_prob_error_mean"] < figures["log_prob_error_max"]
    json.dumps(figures)


@pytest.mark.parametrize("top_k", [2, None])
@pytest.mark.parametrize(("values", "largest"), [("u8", 0.2), ("f16", 0.01), ("f32", 1e-4)])
def test_the_replays_error_is_that_of_the_encoding(images, tmp_path, values, top_k, largest):
    path = labelled(images, tmp_path / "s", values=values, top_k=top_k)
    found = verify_store(path, images=images, teacher=teacher(), sample=1000)
    assert found.ok and found.figures["replayed_crops"] == 30
    assert found.figures["log_prob_error_max"] < largest
    assert found.figures["beyond_encoding_max"] < 1e-4


def test_every_changed_byte_is_found(tmp_path, monkeypatch):
    """One random bit of each byte of each file is flipped in turn."""
    monkeypatch.setattr(arrays, "FILE_BYTES", 1)  # several files of records
    path = write_store(tmp_path / "s", k=2, crops=3, ids=IDS[:3]).path
    rng = np.random.default_rng(0)
    tried: dict[str, int] = {}
    for file in sorted(path.iterdir()):
        whole = bytearray(file.read_bytes())
        for place in range(len(whole)):
            flipped = whole.copy()
            flipped[place] ^= 1 << int(rng.integers(8))
            file.write_bytes(flipped)
            found = verify_store(path)
            assert places(found) == [file.name], (file.name, place)
            tried[file.name] = tried.get(file.name, 0) + 1
        file.write_bytes(whole)
    assert verify_store(path).ok
    assert set(tried) == {
        *("manifest.json", "images.npy", "ids.npy"),
        *(f"{name}-{number:05d}.npy" for name in ("boxes", "labels") for number in range(2)),
        "flips.npy",
    }
    assert sum(tried.values()) > 2000 and min(tried.values()) > 128


def test_other_damage_is_found_in_every_file(tmp_path, monkeypatch):
    monkeypatch.setattr(arrays, "FILE_BYTES", 100)
    path = write_store(tmp_path / "s").path
    other = write_store(tmp_path / "other", seed=1).path
    for name in sorted(p.name for p in path.iterdir()):
        file, whole = path / name, (path / name).read_bytes()
        for damaged in (b"", whole[:-1], whole[: len(whole) // 2], whole + b"\0", whole * 2):
            file.write_bytes(damaged)
            assert places(verify_store(path)) == [name]
        shutil.copy(other / name, file)
        swapped = places(verify_store(path))
        # Another store's manifest is whole; then the other files are not those that it names.
        if name == "manifest.json":
            assert swapped[0] == "images.npy" and len(swapped) > 1
        elif (path / name).read_bytes() == whole:  # the same ids, the same flips of so few
            assert swapped == []
        else:
            assert swapped == [name]
        file.unlink()
        assert places(verify_store(path)) == [name]
        file.symlink_to(other / name)
        (problem,) = verify_store(path).problems
        assert problem.where == name and "not followed" in problem.what
        file.unlink()
        os.mkfifo(file)  # reading it would wait for ever
        assert places(verify_store(path)) == [name]
        file.unlink()
        file.write_bytes(whole)
    (path / "notes.txt").write_text("x")
    (path / "labels-00009.npy").touch()
    assert places(verify_store(path)) == ["labels-00009.npy", "notes.txt"]


def set_at(name, index, field, value):
    def change(arrays, body):
        (arrays[name][field] if field else arrays[name])[index] = value

    return change


RECORDS, BOXES = "labels-00000.npy", "boxes-00000.npy"


@pytest.mark.parametrize(
    ("change", "where", "what"),
    [
        (set_at("images.npy", 1, "target", 6), IDS[1], "target 6 of 6 classes"),
        (set_at("images.npy", 1, "target", -2), IDS[1], "target -2"),
        (set_at("images.npy", 2, "width", 0), IDS[2], "no pixels"),
        (set_at("images.npy", 1, "id_end", 1), "images.npy", "id_end"),
        (set_at("images.npy", 4, "id_end", 99), "images.npy", "id_end"),
        (set_at("ids.npy", 9, None, 0xFF), "ids.npy", "not UTF-8"),
        (set_at("ids.npy", 0, None, ord("z")), "ids.npy", "does not come after"),
        (set_at(BOXES, (3, 1), None, (1, 0, 0, 9)), f"{IDS[3]}, crop 1", "inside the image"),
        (set_at(BOXES, (3, 1), None, (0, 0, 9, 0)), f"{IDS[3]}, crop 1", "inside the image"),
        # The images are 300 by 65,535 pixels: one more than is left of either side.
        (set_at(BOXES, (3, 1), None, (1, 0, 300, 9)), f"{IDS[3]}, crop 1", "inside the image"),
        (
            set_at(BOXES, (3, 1), None, (0, 1, 9, 65_535)),
            f"{IDS[3]}, crop 1",
            "inside the image",
        ),
        (set_at(RECORDS, (4, 3), "classes", (0, 1, 6)), f"{IDS[4]}, crop 3", "not below 6"),
        (set_at(RECORDS, (4, 3), "classes", (0, 1, 0)), f"{IDS[4]}, crop 3", "twice"),
        (set_at(RECORDS, (0, 2), "gaps", (9.0, 1.0)), f"{IDS[0]}, crop 2", "not in order"),
        (set_at(RECORDS, (0, 2), "gaps", (1.0, math.nan)), f"{IDS[0]}, crop 2", "no possible"),
        (set_at(RECORDS, (0, 2), "tail", (math.inf, 1, 1)), f"{IDS[0]}, crop 2", "tail's mass"),
        (set_at("flips.npy", 0, None, 16), IDS[0], "beyond its crops"),  # of four
        (
            lambda arrays, body: body["signals"]["labels"]["files"][0].update(rows=4),
            "manifest.json",
            "5 images, but labels of 4",
        ),
        (
            lambda arrays, body: body["geometry"]["images"].update(name="ids.npy"),
            "manifest.json",
            "does not name the files",
        ),
        (
            lambda arrays, body: body["geometry"]["skipped"].append({"id": IDS[1], "reason": "x"}),
            IDS[1],
            "in the list of images left out",
        ),
        (
            lambda arrays, body: body["geometry"]["settings"]["class_names"].pop(),
            "manifest.json",
            "names 5 classes, but has 6",
        ),
        (
            lambda arrays, body: body["geometry"]["settings"].update(targets=False),
            IDS[1],
            "of 0 classes",
        ),
        (
            lambda arrays, body: body["geometry"]["settings"]["crops"].update(count=10**14),
            "manifest.json",
            "less than or equal to 1000000",
        ),
        (
            lambda arrays, body: body["signals"]["labels"]["settings"].update(
                teacher=reduce(lambda inner, _: {"teacher": inner}, range(100), {})
            ),
            "manifest.json",
            "signals.labels.settings.teacher: nested deeper than 100 levels",
        ),
        (
            lambda arrays, body: arrays.update({RECORDS: arrays[RECORDS][:, :3]}),
            "manifest.json",
            "but the manifest says",
        ),
    ],
)
def test_impossible_content_with_right_checksums_is_found(tmp_path, change, where, what):
    path = write_store(tmp_path / "s", values="f32").path
    assert verify_store(path).ok
    resigned(path, change)
    first = verify_store(path).problems[0]
    assert first.where == where and what in first.what


def test_many_problems_are_counted_not_listed(tmp_path):
    path = write_store(tmp_path / "s", crops=9).path

    def outside(arrays, body):
        arrays[BOXES][..., 2] = 60_000

    resigned(path, outside)
    found = verify_store(path)
    assert len(found.problems) == 21 and found.problems[0].where == f"{IDS[0]}, crop 0"
    assert found.problems[-1] == Problem("25 more", "not listed")


def test_nothing_pickled_is_run_and_hostile_manifests_are_named(tmp_path):
    path, marker = write_store(tmp_path / "s").path, tmp_path / "ran"

    class Evil:
        def __reduce__(self):
            return Path.touch, (marker,)

    def evil(arrays, body):
        arrays[RECORDS] = np.array([Evil()], object)

    whole = (path / RECORDS).read_bytes()
    resigned(path, evil)  # np.save pickles it
    assert places(verify_store(path)) == ["manifest.json"]
    (path / RECORDS).write_bytes(whole)
    for text in (pickle.dumps(Evil()), b"[" * 100_000, b'{"digest": "\\ud800", "\\ud800": 1}'):
        (path / "manifest.json").write_bytes(text)
        (problem,) = verify_store(path).problems
        assert problem.where == "manifest.json" and "not a label store's manifest" in problem.what
    assert not marker.exists()


def test_where_there_is_no_store(images, tmp_path):
    with pytest.raises(InputError, match="is no folder"):
        verify_store(tmp_path / "nowhere")
    with pytest.raises(InputError, match="no label store"):
        verify_store(images)
    (tmp_path / "begun").mkdir()
    (tmp_path / "begun/settings.json").write_text("{}")
    with pytest.raises(InputError, match=r"unfinished.*--resume"):
        verify_store(tmp_path / "begun")
    store = labelled(images, tmp_path / "s")
    with pytest.raises(InputError, match="needs the images"):
        verify_store(store, teacher=teacher())
    with pytest.raises(InputError, match="sample is 0"):
        verify_store(store, images=images, teacher=teacher(), sample=0)


def test_images_that_changed_are_named(images, tmp_path):
    store = labelled(images, tmp_path / "s")
    (images / "class 0/new.png").write_bytes((images / "class 0/é.0.png").read_bytes())
    found = verify_store(store, images=images)
    assert found.ok and found.figures["images_without_labels"] == 1
    shutil.copy(images / "class 0/é.0.png", images / "class 1/é.1.png")
    (images / "class 3/é.3.png").rename(images / "class 3/other.png")
    found = verify_store(store, images=images, teacher=teacher())
    assert places(found) == ["class 1/é.1.png", "class 3/é.3.png"]
    assert "content is not what was labelled" in found.problems[0].what
    assert "is not in" in found.problems[1].what
    assert "replayed_crops" not in found.figures
    (images / "class 4").rename(images / "class 5")
    found = verify_store(store, images=images)
    assert places(found) == [str(images)] and "classes are not those" in found.problems[0].what


def test_another_class_of_an_image_is_named(images, tmp_path):
    store = labelled(images, tmp_path / "s")
    resigned(store, set_at("images.npy", 3, "target", 1))
    assert verify_store(store).ok  # a possible class, so only the images tell
    (problem,) = verify_store(store, images=images).problems
    assert problem == Problem("class 3/é.3.png", "is of class 3, labelled as 1")


def test_another_decoded_size_is_named(images, tmp_path):
    store = labelled(images, tmp_path / "s")
    resigned(store, set_at("images.npy", 2, "height", 65_535))
    (problem,) = verify_store(store, images=images).problems
    assert problem == Problem("class 2/é.2.png", "decodes to 22x33 pixels, labelled at 65535x33")


@pytest.mark.parametrize(
    ("other", "key"),
    [
        (lambda: teacher(seed=1), "fingerprint"),
        (lambda: teacher(classes=6), "fingerprint"),
        (lambda: teacher(size=24), "image_size"),
    ],
)
def test_another_teacher_is_refused(images, tmp_path, other, key):
    store = labelled(images, tmp_path / "s")
    with pytest.raises(InputError, match=key):
        verify_store(store, images=images, teacher=other())


def test_labels_without_a_teacher_or_of_another_crop_rule_are_not_replayed(images, tmp_path):
    store = labelled(images, tmp_path / "s")
    resigned(
        store, lambda arrays, body: body["geometry"]["settings"]["crops"].update(rule="nearest")
    )
    with pytest.raises(InputError, match="crop rule 'nearest'"):
        verify_store(store, images=images, teacher=teacher())
    resigned(
        store,
        lambda arrays, body: body["signals"]["labels"]["settings"]["teacher"].pop("fingerprint"),
    )
    with pytest.raises(InputError, match="record no single teacher"):
        verify_store(store, images=images, teacher=teacher())


@pytest.mark.parametrize("what", ["flip", "box", "class", "probability"])
def test_labels_that_the_teacher_did_not_give_are_named(images, tmp_path, what):
    """The checksums are right, the content possible, but one crop's label is not its own."""
    store = labelled(images, tmp_path / "s", values="f16")

    def change(arrays, body):
        record = arrays[RECORDS][3, 2:3]
        if what == "flip":
            arrays["flips.npy"][3] ^= 1 << 2
        elif what == "box":
            arrays[BOXES][3, 2] = (0, 0, 5, 5)
        elif what == "class":
            record["classes"] = record["classes"][:, ::-1]
        else:
            record["gaps"] += 0.5

    resigned(store, change)
    found = verify_store(store, images=images, teacher=teacher())
    assert places(found) == ["class 3/é.3.png, crop 2"]
    assert "nats from what is stored" in found.problems[0].what
    assert found.figures["argmax_agreement"] >= 29 / 30


def test_an_answer_that_trails_one_that_is_not_stored_is_named(images, tmp_path):
    """The second and third classes with their own probabilities, the first left to the tail.

    Every number of the record is what the teacher says, to the rounding; only the answer is not.
    """
    store = labelled(images, tmp_path / "s", values="f16")
    source, known = open_images(images), LabelStore(store)
    rows, crops = np.repeat(3, 6), np.arange(6)
    told = replay._answers(known, source, teacher(), rows, crops)
    log_probs, classes = told.log_softmax(1).sort(1, descending=True)
    left = torch.cat([log_probs[:, :1], log_probs[:, 3:]], 1)
    clear = log_probs[:, 0] - log_probs[:, 1] > 0.05
    # The mean of the tail does not exceed the largest stored, so that a record can hold it.
    crop = int(torch.nonzero(clear & (left.logsumexp(1) < math.log(3) + log_probs[:, 1]))[0])
    tail = torch.stack([(left / t).logsumexp(1) for t in (1.0, 2.0, 4.0)], 1)
    truth = told.log_softmax(1)[:, 3]
    shifted = SoftLabels(classes[:, 1:3], log_probs[:, 1:3], tail, 5, truth)
    changed = known.record.encode(shifted)
    resigned(store, lambda arrays, body: arrays[RECORDS].__setitem__((3, crop), changed[crop]))
    found = verify_store(store, images=images, teacher=teacher())
    assert places(found) == [f"class 3/é.3.png, crop {crop}"]
    assert found.figures["beyond_encoding_max"] < found.figures["rounding_allowed"]
    assert found.figures["argmax_agreement"] == pytest.approx(29 / 30)


def test_a_sample_is_drawn_by_its_seed(images, tmp_path):
    store = labelled(images, tmp_path / "s")
    a, b, c = (
        verify_store(store, images=images, teacher=teacher(), sample=4, seed=seed).figures
        for seed in (1, 1, 2)
    )
    assert a["replayed_crops"] == 4
    assert a["log_prob_error_mean"] == b["log_prob_error_mean"] != c["log_prob_error_mean"]


def test_the_range_of_a_code_by_hand():
    """k = 2 of 3 classes, u8: code 48 of the second class, code 96 of the one in the tail."""
    form = RecordFormat.choose(2, 3, "u8")
    record = np.zeros(1, form.dtype)
    record["gaps"], record["tail"] = 48, 96
    low, high = replay.encoded_range(form, record)
    # The gaps lie in (47.5/48)^2 .. (48.5/48)^2 and (95.5/48)^2 .. (96.5/48)^2.
    most = 1 + math.exp(-0.9792752) + math.exp(-3.9583984)
    least = 1 + math.exp(-1.0209418) + math.exp(-4.0417318)
    np.testing.assert_allclose(low[0], [-math.log(most), -math.log(most) - 1.0209418], atol=1e-6)
    np.testing.assert_allclose(high[0], [-math.log(least), -math.log(least) - 0.9792752], atol=1e-6)
    record["gaps"] = 255
    low, high = replay.encoded_range(form, record)
    assert low[0, 1] == -math.inf and high[0, 1] < -28


@given(
    st.lists(st.floats(-40, 40, width=32), min_size=7, max_size=7),
    st.sampled_from([1, 3, None]),
    st.sampled_from(["u8", "f16", "f32"]),
)
def test_what_was_encoded_lies_in_its_range(logits, k, values):
    form = RecordFormat.choose(k, 7, values)
    given_logits = torch.tensor([logits])
    labels = SoftLabels.from_logits(given_logits, None, k)
    record = form.encode(labels)
    low, high = replay.encoded_range(form, record)
    classes = form.decode(record).classes.numpy()[0]
    exact = SoftLabels.from_logits(given_logits).log_probs.double().numpy()[0, classes]
    # The encoder's own arithmetic is float32, on numbers up to 80.
    assert (low[0] - 2e-5 <= exact).all() and (exact <= high[0] + 2e-5).all()


def test_a_verification_is_plain_data():
    found = Verification((Problem("ids.npy", "is missing"),))
    assert not found.ok and str(found.problems[0]) == "ids.npy: is missing"
    assert dataclasses.asdict(found)["figures"] == {}
