"""Students by name, with and without weights of their own, and read back from a run."""

from __future__ import annotations

import json
import logging

import pytest
import torch
from torch import nn

from ferkd.models.student import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    ModelConfig,
    Student,
    build_student,
    check_input,
    load_run,
    normalisation,
)
from ferkd.system.errors import InputError
from ferkd.system.files import write_json
from ferkd.training.checkpoint import save_weights

TINY = Student(name="timm/test_efficientnet")


def save_run(folder, model, **config):
    folder.mkdir(exist_ok=True)
    save_weights(folder / "weights.safetensors", model)
    described = ModelConfig(
        **{"architecture": TINY.name, "num_classes": 3, "image_size": 32, **config}
    )
    write_json(folder / "config.json", described.model_dump(mode="json"))
    return folder


def same(a: nn.Module, b: nn.Module, skip: str = "-") -> bool:
    other = b.state_dict()
    return all(torch.equal(v, other[k]) for k, v in a.state_dict().items() if skip not in k)


@pytest.mark.parametrize("name", ["timm/test_efficientnet", "torchvision/squeezenet1_1"])
def test_a_student_has_the_wanted_classes_and_depends_on_the_seed_alone(name):
    models = []
    for _ in range(2):
        torch.manual_seed(0)
        models.append(build_student(Student(name=name), 3))
    assert models[0].eval()(torch.zeros(2, 3, 64, 64)).shape == (2, 3)
    assert same(*models)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("timm/test_eficientnet", "timm has no model 'test_eficientnet'; nearest: test_efficient"),
        ("torchvision/resnet19", "torchvision has no classifier 'resnet19'; nearest: resnet18"),
        ("resnet18", "student 'resnet18' is not known; write timm/NAME or torchvision/NAME"),
        ("hf/google/vit", "is not known; write timm/NAME or torchvision/NAME"),
    ],
)
def test_an_unknown_name_is_refused_with_the_nearest(name, message):
    with pytest.raises(InputError, match=message):
        build_student(Student(name=name), 3)


def test_arguments_the_model_does_not_take_are_named():
    student = Student(name="timm/test_resnet", model_args={"drop_pth_rate": 0.1})
    with pytest.raises(InputError, match=r"does not take student.model_args.*drop_pth_rate"):
        build_student(student, 3)


def test_arguments_reach_the_model():
    student = Student(name="timm/test_efficientnet", model_args={"drop_rate": 0.3})
    assert build_student(student, 3).drop_rate == 0.3


def test_a_model_of_fixed_size_is_built_for_the_image_size():
    student = Student(name="timm/test_vit3")
    model = build_student(student, 3, image_size=48)
    check_input(model, student.name, 48, 3)
    with pytest.raises(InputError, match="does not take images of 64 pixels"):
        check_input(model, student.name, 64, 3)


def test_checking_leaves_the_model_as_it_was():
    model = build_student(TINY, 3).train()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    check_input(model, TINY.name, 32, 3)
    assert model.training
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


def test_a_model_that_gives_no_logits_is_refused():
    class Features(nn.Conv2d):
        pass

    with pytest.raises(InputError, match=r"gives an output of shape \(1, 2, 8, 8\)"):
        check_input(Features(3, 2, 1), "features", 8, 2)


@pytest.mark.parametrize("wrap", [lambda s: s, lambda s: {"state_dict": s, "epoch": 3}])
def test_own_weights_are_loaded_whatever_they_are_wrapped_in(tmp_path, wrap):
    trained = build_student(TINY, 3)
    prefixed = {f"module.{name}": value for name, value in trained.state_dict().items()}
    torch.save(wrap(prefixed), tmp_path / "w.pt")
    loaded = build_student(Student(name=TINY.name, weights=tmp_path / "w.pt"), 3)
    assert same(trained, loaded)


def test_a_head_of_other_classes_starts_anew_and_says_so(tmp_path, caplog):
    trained = build_student(TINY, 7)
    save_weights(tmp_path / "w.safetensors", trained)
    student = Student(name=TINY.name, weights=tmp_path / "w.safetensors")
    with caplog.at_level(logging.INFO, "ferkd"):
        loaded = build_student(student, 3)
    assert loaded.classifier.out_features == 3
    assert same(loaded, trained, skip="classifier")
    assert "a head of 7 classes, 3 wanted; ['classifier.weight', 'classifier.bias']" in caplog.text


def test_weights_of_another_architecture_are_refused(tmp_path):
    save_weights(tmp_path / "w.safetensors", nn.Linear(2, 2))
    with pytest.raises(InputError, match=r"w\.safetensors does not fit EfficientNet: .* missing"):
        build_student(Student(name=TINY.name, weights=tmp_path / "w.safetensors"), 3)


def test_pretrained_and_own_weights_exclude_each_other(tmp_path):
    student = Student(name=TINY.name, pretrained=True, weights=tmp_path / "w.pt")
    with pytest.raises(InputError, match=r"student\.pretrained and student\.weights are both set"):
        build_student(student, 3)


def test_normalisation_is_that_of_the_weights(tmp_path):
    model = build_student(TINY, 3)
    assert normalisation(TINY, model) == (IMAGENET_MEAN, IMAGENET_STD)
    scratch = Student(name="timm/test_convnext")  # of which timm records 0.5 for all
    convnext = build_student(scratch, 3)
    assert normalisation(scratch, convnext) == (IMAGENET_MEAN, IMAGENET_STD)
    pretrained = Student(name="timm/test_convnext", pretrained=True)
    assert normalisation(pretrained, convnext) == ((0.5,) * 3, (0.5,) * 3)
    run = save_run(tmp_path / "run", model, mean=(0.1, 0.2, 0.3))
    continued = Student(name=TINY.name, weights=run / "weights.safetensors")
    assert normalisation(continued, model) == ((0.1, 0.2, 0.3), IMAGENET_STD)


@pytest.mark.parametrize("file", ["", "weights.safetensors"])
def test_a_run_reads_back(tmp_path, file):
    model = build_student(TINY, 3)
    save_run(tmp_path / "run", model, class_names=("a", "b", "c"), crop_fraction=0.9)
    loaded, config = load_run(tmp_path / "run" / file)
    assert same(model, loaded) and not loaded.training
    assert config.class_names == ("a", "b", "c") and config.crop_fraction == 0.9


def test_folders_that_are_no_finished_run(tmp_path):
    with pytest.raises(InputError, match="does not exist; give a run's folder"):
        load_run(tmp_path / "gone")
    with pytest.raises(InputError, match=r"no weights\.safetensors: the run is not finished"):
        load_run(tmp_path)
    save_weights(tmp_path / "weights.safetensors", nn.Linear(2, 2))
    with pytest.raises(InputError, match=r"holds no config\.json"):
        load_run(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"architecture": 3}))
    with pytest.raises(InputError, match=r"is not the config\.json of a ferkd run"):
        load_run(tmp_path)
