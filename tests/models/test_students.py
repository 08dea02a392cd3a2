"""Students by name, with and without weights of their own, and read back from a run."""

from __future__ import annotations

import json
import logging

import pytest
import torch
import torchvision
from torch import nn

from ferkd.models.student import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    ModelConfig,
    Student,
    build_student,
    check_input,
    check_training,
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


def test_a_vision_transformer_is_built_for_the_image_size_and_takes_others():
    """Patches of 16 pixels: a size that 16 does not divide is refused by name."""
    student = Student(name="timm/test_vit3")
    model = build_student(student, 3, image_size=48)
    for size in (48, 64, 80):
        check_input(model, student.name, size, 3)
    with pytest.raises(InputError, match=r"does not take images of 50 pixels \(.*\); use another"):
        check_input(model, student.name, 50, 3, remedy="use another")


def test_a_transformer_of_any_size_is_the_plain_one_to_the_bit_at_its_own():
    """Position embeddings are resampled at other sizes alone."""
    models = []
    for args in ({}, {"dynamic_img_size": False}):
        torch.manual_seed(0)
        student = Student(name="timm/test_vit3", model_args=args)
        models.append(build_student(student, 3, image_size=48))
    x = torch.randn(2, 3, 48, 48)
    losses = [model(x).square().sum() for model in models]
    for loss in losses:
        loss.backward()
    assert same(*models) and torch.equal(*losses)
    ours, plain = (list(model.parameters()) for model in models)
    assert all(torch.equal(a.grad, b.grad) for a, b in zip(ours, plain, strict=True))


@pytest.mark.parametrize("name", ["timm/mixer_s32_224", "torchvision/vit_b_32"])
def test_a_student_of_one_size_is_refused_at_others(name):
    model = build_student(Student(name=name), 3, image_size=64)
    check_input(model, name, 64, 3)
    with pytest.raises(InputError, match="does not take images of 96 pixels"):
        check_input(model, name, 96, 3)


@pytest.mark.parametrize(("name", "size"), [("googlenet", 32), ("inception_v3", 75)])
def test_students_with_auxiliary_heads_are_trained_by_their_last(name, size):
    student = Student(name=f"torchvision/{name}")
    model = build_student(student, 3)
    check_training(model, student.name, size, 3, 2)
    assert model.train()(torch.zeros(2, 3, size, size)).shape == (2, 3)
    assert not [key for key in model.state_dict() if key.lower().startswith("aux")]
    assert model.transform_input  # what its published weights expect of ImageNet's mean and std


def test_weights_with_auxiliary_heads_are_loaded_without_them(tmp_path):
    with_all = torchvision.models.googlenet(num_classes=3, init_weights=False)
    save_weights(tmp_path / "w.safetensors", with_all)
    student = Student(name="torchvision/googlenet", weights=tmp_path / "w.safetensors")
    loaded = build_student(student, 3)
    theirs = with_all.state_dict()
    assert all(torch.equal(value, theirs[key]) for key, value in loaded.state_dict().items())


def test_a_student_that_answers_otherwise_in_training_is_refused():
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.head = nn.Linear(3, 2)

        def forward(self, images):
            logits = self.head(images.mean((2, 3)))
            return (logits, logits) if self.training else logits

    check_input(Two(), "two", 8, 2)
    with pytest.raises(InputError, match=r"student two answers with tuple in training mode"):
        check_training(Two(), "two", 8, 2, 4)


def test_one_crop_a_step_under_batch_norm_is_refused():
    model = build_student(TINY, 3)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    random = torch.random.get_rng_state()
    check_training(model, TINY.name, 64, 3, 2)
    check_training(model, TINY.name, 64, 3, 1)  # 2 x 2 values a channel are left
    with pytest.raises(InputError, match=r"cannot be trained on one crop a step \(Expected more"):
        check_training(model, TINY.name, 32, 3, 1)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert torch.equal(random, torch.random.get_rng_state())


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


def test_a_head_of_other_classes_starts_at_zero_and_says_so(tmp_path, caplog):
    trained = build_student(TINY, 7)
    save_weights(tmp_path / "w.safetensors", trained)
    student = Student(name=TINY.name, weights=tmp_path / "w.safetensors")
    with caplog.at_level(logging.INFO, "ferkd"):
        loaded = build_student(student, 3)
    assert loaded.classifier.out_features == 3
    assert same(loaded, trained, skip="classifier")
    said = "a head of 7 classes, 3 wanted; ['classifier.weight', 'classifier.bias'] start at zero"
    assert said in caplog.text
    logits = loaded(torch.randn(4, 3, 32, 32))
    assert not logits.any()  # so the first loss is that of chance, ln 3


@pytest.mark.parametrize(
    "name", ["timm/test_efficientnet", "timm/test_vit3", "torchvision/squeezenet1_1"]
)
def test_a_new_head_learns_from_its_first_step(tmp_path, name):
    """Also SqueezeNet's, where the ReLU after the head would stop all learning from zero."""
    torch.manual_seed(0)
    save_weights(tmp_path / "w.safetensors", build_student(Student(name=name), 7, image_size=64))
    model = build_student(Student(name=name, weights=tmp_path / "w.safetensors"), 3, image_size=64)
    logits = model.eval()(torch.randn(8, 3, 64, 64))
    nn.functional.cross_entropy(logits, torch.arange(8) % 3).backward()
    heads = [p.grad for p in model.parameters() if p.shape[:1] == (3,)]
    assert sum(float(grad.abs().sum()) for grad in heads) > 0


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


def test_own_weights_bring_the_normalisation_of_their_architecture(tmp_path, caplog):
    """timm records 0.5 for test_convnext; weights without a run beside them are taken to be so."""
    convnext = build_student(Student(name="timm/test_convnext"), 3)
    save_weights(tmp_path / "w.safetensors", convnext)
    own = {"name": "timm/test_convnext", "weights": tmp_path / "w.safetensors"}
    with caplog.at_level(logging.INFO, "ferkd"):
        assert normalisation(Student(**own), convnext) == ((0.5,) * 3, (0.5,) * 3)
    assert (
        "mean (0.5, 0.5, 0.5) and std (0.5, 0.5, 0.5), as for the published weights of timm/"
        in (caplog.text)
    )
    torchvision = Student(name="torchvision/squeezenet1_1", weights=tmp_path / "w.safetensors")
    assert normalisation(torchvision, convnext) == (IMAGENET_MEAN, IMAGENET_STD)


def test_the_normalisation_can_be_set(tmp_path):
    model = build_student(TINY, 3)
    stated = Student(name=TINY.name, mean=(0.1, 0.2, 0.3), std=(0.4, 0.5, 0.6))
    assert normalisation(stated, model) == ((0.1, 0.2, 0.3), (0.4, 0.5, 0.6))
    assert normalisation(Student(mean=(0.0, 0.0, 0.0)), model) == ((0, 0, 0), IMAGENET_STD)
    with pytest.raises(ValueError, match="greater than 0"):
        Student(std=(0.5, 0.0, 0.5))


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
