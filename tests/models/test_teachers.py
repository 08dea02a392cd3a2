"""Teachers: what they are fed, what they give back, whose classes they answer in."""

from __future__ import annotations

import json

import pytest
import timm
import torch
from nets import SMALL, Pixel, batch_norm_net, crops
from torch import Tensor, nn

from ferkd.models.architectures import Inputs
from ferkd.models.teacher import Teacher, load_teacher
from ferkd.system.errors import InputError

# What a teacher is fed and gives back


def test_pixels_are_normalised_by_the_teachers_own_mean_and_std() -> None:
    inputs = Inputs(image_size=2, mean=(0.5, 0.4, 0.2), std=(0.25, 0.2, 0.1))
    teacher = Teacher(Pixel(), inputs, device="cpu")
    image = torch.zeros(1, 3, 2, 2, dtype=torch.uint8)
    image[0, :, 0, 0] = torch.tensor([255, 102, 51])
    # (1 - 0.5) / 0.25, (0.4 - 0.4) / 0.2, (0.2 - 0.2) / 0.1
    expected = torch.tensor([[2.0, 0.0, 0.0]])
    torch.testing.assert_close(teacher(image), expected, atol=1e-5, rtol=0)
    # (0 - 0.5) / 0.25, (0 - 0.4) / 0.2, (0 - 0.2) / 0.1
    expected = torch.tensor([[-2.0, -2.0, -2.0]])
    torch.testing.assert_close(teacher(image * 0), expected, atol=1e-5, rtol=0)


def test_eval_mode_holds_even_if_the_module_was_switched_to_training_between() -> None:
    net = batch_norm_net()
    teacher = Teacher(net, Inputs(image_size=16), device="cpu")
    images = crops(6)
    before = teacher(images)
    net.train()
    statistics = net[1].running_mean.clone()  # type: ignore[index, union-attr, operator]
    assert torch.equal(teacher(images), before)
    assert torch.equal(net[1].running_mean, statistics)  # type: ignore[index]
    net.train()
    in_training = net(images.float() / 255)
    assert not torch.allclose(in_training, net(images.float() / 255))  # the net can tell


def test_a_crop_has_the_same_logits_alone_and_among_neighbours() -> None:
    teacher = Teacher(batch_norm_net(), Inputs(image_size=16), device="cpu")
    images = crops(8)
    together = teacher(images)
    alone = torch.cat([teacher(images[i : i + 1]) for i in range(8)])
    torch.testing.assert_close(alone, together, atol=1e-5, rtol=1e-5)


def test_memory_layout_of_the_images_does_not_matter() -> None:
    teacher = Teacher(batch_norm_net(), Inputs(image_size=16), device="cpu")
    images = crops(3)
    interleaved = images.contiguous(memory_format=torch.channels_last)
    assert torch.equal(teacher(images), teacher(interleaved))


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_logits_are_float32_and_may_enter_a_differentiated_loss(precision: str) -> None:
    teacher = Teacher(batch_norm_net(), Inputs(image_size=16), device="cpu", precision=precision)
    logits = teacher(crops(2))
    assert logits.dtype == torch.float32
    assert not logits.requires_grad
    student = torch.zeros(2, 4, requires_grad=True)
    (student * logits).sum().backward()
    assert student.grad is not None
    torch.testing.assert_close(student.grad, logits)


def test_bf16_is_used_where_asked_and_auto_is_fp32_on_the_cpu() -> None:
    net, inputs = batch_norm_net(), Inputs(image_size=16)
    exact = Teacher(net, inputs, device="cpu")
    rough = Teacher(net, inputs, device="cpu", precision="bf16")
    assert (exact.precision, rough.precision) == ("fp32", "bf16")
    difference = (exact(crops(4)) - rough(crops(4))).abs().max()
    assert 0 < difference < 0.1


@pytest.mark.parametrize(
    "wrap",
    [
        lambda logits: (logits, None),
        lambda logits: [logits],
        lambda logits: {"logits": logits, "loss": None},
        lambda logits: type("Output", (), {"logits": logits})(),
    ],
)
def test_logits_are_found_in_tuples_mappings_and_objects(wrap: object) -> None:
    class Wrapped(Pixel):
        def forward(self, images: Tensor) -> Tensor:
            return wrap(super().forward(images))  # type: ignore[no-any-return, operator]

    inputs = Inputs(image_size=4)
    images = crops(2, 4)
    plain, wrapped = (Teacher(net, inputs, device="cpu") for net in (Pixel(), Wrapped()))
    assert torch.equal(plain(images), wrapped(images))


def test_output_that_is_not_finite_logits_is_refused() -> None:
    inputs = Inputs(image_size=4)
    broken = Pixel()
    broken.gain.data[1] = float("nan")
    with pytest.raises(InputError, match=r"module Pixel returned logits that are not finite"):
        Teacher(broken, inputs, device="cpu")
    with pytest.raises(InputError, match=r"returned \[2, 3, 4, 4\] for 2 images"):
        Teacher(nn.Identity(), inputs, device="cpu")
    with pytest.raises(InputError, match=r"returned NoneType"):
        Teacher(type("Nothing", (nn.Module,), {"forward": lambda *_: None})(), inputs)


def test_crops_of_another_size_or_type_are_refused() -> None:
    teacher = Teacher(Pixel(), Inputs(image_size=4), device="cpu")
    with pytest.raises(ValueError, match=r"takes uint8 \[B,3,4,4\], got uint8 \[1, 3, 8, 8\]"):
        teacher(crops(1, 8))
    with pytest.raises(ValueError, match="got float32"):
        teacher(crops(1, 4).float())


def test_a_size_that_the_network_cannot_take_is_named() -> None:
    with pytest.raises(InputError, match=r"cannot take .*\[1,3,40,40\].*give its own size"):
        load_teacher(timm.create_model("test_vit"), image_size=40, device="cpu")


def test_describe_is_json_and_says_what_a_store_needs() -> None:
    teacher = load_teacher(f"{SMALL}?random=3&num_classes=5&image_size=64", device="cpu")
    description = teacher.describe()
    assert json.loads(json.dumps(description)) == description
    assert description == {
        "spec": SMALL,
        "weights": "random weights, seed 3",
        "fingerprint": teacher.fingerprint,
        "num_classes": 5,
        "image_size": 64,
        "mean": list(teacher.mean),
        "std": list(teacher.std),
        "interpolation": "bilinear",
        "precision": "fp32",
        "eval_mode": True,
    }


# Classes


def named(*class_names: str) -> Teacher:
    inputs = Inputs(image_size=4)
    return Teacher(Pixel(), inputs, spec="mine", class_names=class_names, device="cpu")


def test_another_number_of_classes_is_refused_with_both_numbers_and_the_remedies() -> None:
    with pytest.raises(
        InputError, match=r"mine has 3 classes, but the images have 2; .*--class-map.*--no-targets"
    ):
        named().for_folders(["cat", "dog"])
    with pytest.raises(InputError, match=r"mine has 3 classes, but class names: 2"):
        named("cat", "dog")
    with pytest.raises(InputError, match=r"has 3 classes, but num_classes: 4"):
        Teacher(Pixel(), Inputs(image_size=4), num_classes=4, device="cpu")


def test_the_first_differing_class_name_is_refused() -> None:
    teacher = named("cat", "dog", "eel")
    for same in (["cat", "dog", "eel"], ["Cat", "DOG", "eel"], []):
        assert teacher.for_folders(same) is teacher
    with pytest.raises(InputError, match=r"class 1 is 'dog' for teacher mine, but 'cow'"):
        teacher.for_folders(["cat", "cow", "eel"])


def test_names_are_compared_only_where_both_are_words() -> None:
    for teacher, folders in (
        (named(), ["x", "y", "z"]),
        (named("tench", "goldfish", "shark"), ["n01440764", "n01443537", "n01484850"]),
        (named("great white shark", "b-c", "d"), ["great_white_shark", "b_c", "d"]),
    ):
        assert teacher.for_folders(folders) is teacher
