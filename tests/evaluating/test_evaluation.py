"""Evaluation: central crops in order, skipped images listed, class names compared."""

from __future__ import annotations

import json
from functools import partial

import numpy as np
import pytest
import torch
from torch import nn

from ferkd.crops import center_box, cut
from ferkd.evaluating.center_crops import CenterCrops
from ferkd.evaluating.predictions import match_classes, predict
from ferkd.evaluating.run import evaluate, store_agreement
from ferkd.images import decode, open_images
from ferkd.labelling.run import label
from ferkd.models.student import ModelConfig
from ferkd.models.teacher import Teacher
from ferkd.system.compute import Normalise
from ferkd.system.errors import InputError
from ferkd.system.files import write_json
from ferkd.training.checkpoint import save_weights

PLAIN = Normalise((0.0,) * 3, (1.0,) * 3, torch.device("cpu"))  # pixels in 0 .. 1


class MeanColour(nn.Module):
    """Logits are the mean red, green and blue of the image: a classifier by hand."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, images):
        return images.mean((2, 3)) * self.scale


@pytest.fixture
def folder(tiny_images):
    return tiny_images({"a": 3, "b": 4, "c": 2})


def centre(images, row, size=16, fraction=0.8):
    image = decode(images.read(row))
    return cut(image, center_box(*image.shape[:2], fraction), False, size)


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("cache_bytes", [0, 1 << 20])
def test_central_crops_come_in_order_at_every_pass(folder, workers, cache_bytes):
    images = open_images(folder)
    crops = CenterCrops(
        images, image_size=16, crop_fraction=0.8, workers=workers, cache_bytes=cache_bytes
    )
    for _ in range(2):
        batches = list(crops.batches(4))
        assert [len(rows) for _, rows in batches] == [4, 4, 1]
        assert torch.cat([rows for _, rows in batches]).tolist() == list(range(9))
        pixels = torch.cat([pixels for pixels, _ in batches]).permute(0, 2, 3, 1).numpy()
        assert all(np.array_equal(pixels[row], centre(images, row)) for row in range(9))


@pytest.mark.parametrize(
    ("cache_bytes", "reads"), [(9 * 3 * 16 * 16, 9), (9 * 3 * 16 * 16 - 1, 18)]
)
def test_small_sets_are_kept_and_large_ones_read_again(folder, monkeypatch, cache_bytes, reads):
    images = open_images(folder)
    count = 0
    read = images.read

    def counted(row):
        nonlocal count
        count += 1
        return read(row)

    monkeypatch.setattr(images, "read", counted)
    crops = CenterCrops(images, image_size=16, cache_bytes=cache_bytes)
    for _ in range(2):
        assert sum(len(rows) for _, rows in crops.batches(4)) == 9
    assert count == reads


def test_one_unreadable_image_is_listed_and_many_are_refused(tiny_images):
    folder = tiny_images({"a": 60, "b": 60}, size=(8, 8))
    (folder / "a" / "0003.jpg").write_bytes(b"no picture")
    images = open_images(folder)
    crops = CenterCrops(images, image_size=8)
    found = predict(MeanColour(), crops, normalise=PLAIN)
    assert [skipped.id for skipped in crops.unreadable] == ["a/0003.jpg"]
    assert len(found.rows) == 119 and 3 not in found.rows
    assert found.targets.tolist() == [0] * 59 + [1] * 60
    (folder / "b" / "0000.jpg").write_bytes(b"no picture")
    with pytest.raises(InputError, match="2 of 120 images"):
        predict(MeanColour(), CenterCrops(images, image_size=8), normalise=PLAIN)


def test_predictions_are_the_models_and_its_mode_is_kept(folder):
    images = open_images(folder)
    model = MeanColour().train()
    found = predict(model, CenterCrops(images, image_size=16), normalise=PLAIN, batch_size=4)
    by_hand = np.stack([centre(images, row, fraction=1.0).mean((0, 1)) / 255 for row in range(9)])
    assert np.allclose(found.logits.numpy(), by_hand, atol=1e-5)
    assert model.training


def test_predictions_are_in_eval_mode_whatever_the_model_was_in(folder):
    crops = CenterCrops(open_images(folder), image_size=16)
    model = nn.Sequential(MeanColour(), nn.Dropout(0.5)).train()
    plain = predict(MeanColour(), crops, normalise=PLAIN)
    assert torch.equal(predict(model, crops, normalise=PLAIN).logits, plain.logits)


def test_outputs_that_are_not_finite_are_an_error(folder):
    model = MeanColour()
    nn.init.constant_(model.scale, float("nan"))
    with pytest.raises(RuntimeError, match=r"outputs for 9 of 9 images .* are not finite"):
        predict(model, CenterCrops(open_images(folder), image_size=8), normalise=PLAIN)


def test_classes_are_matched_by_name():
    targets = torch.tensor([0, 1, 2, -1])
    same = match_classes(targets, ["a", "b", "c"], ["a", "b", "c"], source="val")
    assert same.tolist() == [0, 1, 2, -1]
    other = match_classes(targets, ["a", "b", "c"], ["c", "a", "b"], source="val")
    assert other.tolist() == [1, 2, 0, -1]


def test_differing_classes_are_named():
    with pytest.raises(InputError) as caught:
        match_classes(torch.tensor([0]), ["a", "d"], ["a", "b", "c"], source="val")
    message = str(caught.value)
    assert "val lacks 'b', 'c'; val has 'd', unknown to the model" in message


@pytest.fixture
def run(tmp_path):
    import timm

    torch.manual_seed(0)
    model = timm.create_model("test_efficientnet", num_classes=3)
    out = tmp_path / "run"
    out.mkdir()
    save_weights(out / "weights.safetensors", model)
    config = ModelConfig(
        architecture="timm/test_efficientnet",
        num_classes=3,
        class_names=("a", "b", "c"),
        image_size=32,
    )
    write_json(out / "config.json", config.model_dump(mode="json"))
    return out, model.eval()


def test_evaluating_a_run(run, folder):
    out, model = run
    found = evaluate(out, folder, workers=0)
    images = open_images(folder)
    normalise = Normalise((0.485, 0.456, 0.406), (0.229, 0.224, 0.225), torch.device("cpu"))
    pixels = np.stack([centre(images, row, 32, 1.0) for row in range(9)])
    with torch.no_grad():
        logits = model(normalise(torch.from_numpy(pixels).permute(0, 3, 1, 2)))
    correct = logits.argmax(1).numpy() == images.targets
    assert found["top1"] == pytest.approx(correct.mean())
    assert found["per_class"]["b"] == pytest.approx(correct[3:7].mean())
    assert list(found["per_class"]) == ["a", "b", "c"]
    assert found["images"] == 9 and found["epochs"] is None and found["run"] == str(out)
    write_json(out / "result.json", {"epochs": 2.5})
    assert evaluate(out / "weights.safetensors", folder, workers=0)["epochs"] == 2.5


def test_classes_without_names_are_told_by_a_map_and_go_by_their_numbers(run, folder):
    """Its classes are the folders in another order: c is class 0, a class 1, b class 2."""
    out, _ = run
    named = evaluate(out, folder, workers=0, class_map={"a": "b", "b": "c", "c": "a"})
    config = json.loads((out / "config.json").read_text())
    write_json(out / "config.json", {**config, "class_names": []})
    with pytest.raises(InputError, match=r"names of its 3 classes; .* \(--class-map sorted"):
        evaluate(out, folder, workers=0)
    found = evaluate(out, folder, workers=0, class_map={"a": 1, "b": 2, "c": 0})
    assert found["top1"] == named["top1"]
    assert list(found["per_class"]) == ["0", "1", "2"]
    assert list(found["per_class"].values()) == list(named["per_class"].values())


def test_evaluating_on_other_classes_is_refused_before_any_image_is_read(
    run, tiny_images, monkeypatch
):
    out, _ = run
    monkeypatch.setattr(CenterCrops, "batches", None)
    with pytest.raises(InputError, match="lacks 'c'"):
        evaluate(out, tiny_images({"a": 1, "b": 1}))


def test_a_student_agrees_with_the_labels_that_it_made_itself(run, folder, tmp_path):
    out, model = run
    nn.init.normal_(model.classifier.weight, std=10.0)  # its answers tell crops apart, and flips
    teacher = Teacher(model)
    teacher_inputs = Normalise(teacher.mean, teacher.std, torch.device("cpu"))
    store = label(folder, teacher, tmp_path / "store", crops=3, top_k=None, values="f32", workers=1)
    agreement = partial(
        store_agreement,
        model,
        open_images(folder),
        store,
        num_classes=3,
        image_size=teacher.image_size,
        normalise=teacher_inputs,
    )
    flips = store.flips(np.arange(9)[:, None], np.arange(3))
    assert 0 < flips.mean() < 1
    own = agreement(batch_size=4)
    assert own["agreement"] == 1.0 and own["kl"] == pytest.approx(0.0, abs=1e-5)
    nn.init.normal_(model.classifier.weight, std=10.0)
    assert agreement()["kl"] > 0.01
    result = evaluate(out, folder, store=store, workers=0)
    assert {"agreement", "kl"} <= result.keys()


def test_labels_of_other_images_are_refused(run, folder, tmp_path):
    out, model = run
    store = label(folder, Teacher(model), tmp_path / "store", crops=1, top_k=None, workers=1)
    (folder / "a" / "0000.jpg").rename(folder / "a" / "other.jpg")
    with pytest.raises(InputError, match="labels belong to another image set"):
        evaluate(out, folder, store=store, workers=0)
