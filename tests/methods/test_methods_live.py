"""Live teachers: the loss by hand, what the teacher is shown, and what is refused."""

from __future__ import annotations

import pytest
import torch
from runs import TEACHER, changed, interrupt_at
from torch.nn import functional
from views import view

from ferkd.methods.hard import HardLabels
from ferkd.methods.live import LiveTeacher, all_classes
from ferkd.models.student import Student, build_student
from ferkd.models.teacher import Inputs, Teacher
from ferkd.objectives import build as objective
from ferkd.system.compute import Normalise
from ferkd.system.errors import InputError
from ferkd.training import train
from ferkd.training.recipe import make_recipe
from ferkd.training.run import build_trainer
from ferkd.training.trainer import NonFiniteLoss


class Colours(torch.nn.Module):
    """A teacher without weights: three times the mean of each channel."""

    def forward(self, images):
        return 3 * images.mean((2, 3))


def by_hand(recipe, weigh):
    """The loss of a run's first step, by ``weigh(student, teacher, view, pixels)``.

    ``pixels`` are the mixed view as a picture in 0 .. 1.
    """
    trainer, data, config = build_trainer(recipe)
    seen = []
    ours = trainer.objective

    def watched(logits, shown):
        seen.append((logits.detach(), shown, float(ours(logits, shown).detach())))
        return ours(logits, shown)

    trainer.objective = watched
    next(trainer.run())
    logits, shown, loss = seen[0]
    mean, std = (torch.tensor(v)[:, None, None] for v in (config.mean, config.std))
    pixels = shown.images * std + mean
    teacher = data.teacher.module((pixels - 0.4) / 0.3).detach()
    return loss, float(weigh(logits, teacher, shown))


@pytest.mark.parametrize("mix", ["none", "mixup", "cutmix"])
def test_the_loss_of_kd_by_hand_from_the_same_view(settings, store, mix):
    recipe = changed(
        settings,
        "kd",
        store,
        mix={"kind": mix},
        loss={"options": {"temperature": 4, "ce_weight": 0.1, "kd_weight": 0.9}},
    )

    def weigh(student, teacher, shown):
        log_q, log_p = (functional.log_softmax(z / 4, 1) for z in (student, teacher))
        if mix == "none":
            assert shown.labels is None
            hard = functional.cross_entropy(student, shown.targets)
        else:
            truth = shown.labels.dense()
            assert truth.amax(1).min() < 0.99  # mixed
            hard = -(truth * student.log_softmax(1)).sum(1).mean()
        soft = functional.kl_div(log_q, log_p, reduction="batchmean", log_target=True)
        return 0.1 * hard + 0.9 * 16 * soft

    found, expected = by_hand(recipe, weigh)
    assert found == pytest.approx(expected, rel=1e-4)


def test_the_loss_of_funmatch_by_hand_from_the_same_mixed_view(settings, store):
    """KL alone, whatever the weights of another method's recipe say."""
    recipe = changed(
        settings, "funmatch", store, loss={"options": {"temperature": 2, "ce_weight": 3.0}}
    )

    def weigh(student, teacher, shown):
        assert shown.labels.share.min() < 0.99  # the default is mixup
        log_q, log_p = (functional.log_softmax(z / 2, 1) for z in (student, teacher))
        return 4 * functional.kl_div(log_q, log_p, reduction="batchmean", log_target=True)

    found, expected = by_hand(recipe, weigh)
    assert found == pytest.approx(expected, rel=1e-4)


def test_a_live_teacher_sees_the_students_picture_in_its_own_normalisation():
    inputs = Inputs(image_size=8, mean=(0.4,) * 3, std=(0.1, 0.2, 0.3))
    teacher = Teacher(Colours(), inputs, device="cpu")
    mean, std = (0.5, 0.4, 0.3), (0.2, 0.25, 0.3)
    live = LiveTeacher(teacher, objective("soft_ce"), HardLabels(), mean=mean, std=std)
    picture = torch.randint(0, 256, (5, 3, 8, 8), dtype=torch.uint8)
    shown = Normalise(mean, std, torch.device("cpu"))(picture)
    assert torch.allclose(live.answers(shown), teacher(picture), atol=1e-4)
    # Renormalising commutes with mixing.
    mixed = 0.3 * shown[:1] + 0.7 * shown[1:2]
    expected = 0.3 * teacher(picture[:1]) + 0.7 * teacher(picture[1:2])
    assert torch.allclose(live.answers(mixed), expected, atol=1e-4)


def test_a_live_teacher_stays_in_evaluation_mode_without_gradient():
    network = torch.nn.Sequential(
        torch.nn.BatchNorm2d(3), torch.nn.Flatten(), torch.nn.Linear(12, 3)
    )
    teacher = Teacher(network, Inputs(image_size=2), device="cpu")
    live = LiveTeacher(teacher, objective("kl"), HardLabels(), mean=teacher.mean, std=teacher.std)
    network.train()
    before = network[0].running_mean.clone()
    images, logits = torch.randn(4, 3, 2, 2), torch.randn(4, 3, requires_grad=True)
    live(logits, view(images, targets=(0, 1, 2, 0))).backward()
    assert not network.training and torch.equal(network[0].running_mean, before)
    assert logits.grad is not None and all(p.grad is None for p in network.parameters())


def test_labels_of_all_classes_are_the_teachers_softmax():
    logits = torch.randn(3, 7) * 4
    for temperature in (1.0, 3.0, 20.0):
        expected = (logits / temperature).softmax(1)
        assert torch.allclose(all_classes(logits).dense(temperature), expected, atol=1e-6)


def test_the_precision_of_a_live_teacher_is_its_own(settings, store):
    for given, found in (({"teacher_precision": "bf16"}, "bf16"), ({}, "fp32")):
        recipe = changed(settings, "kd", store, precision="fp32", **given)
        trainer, data, _ = build_trainer(recipe)
        assert data.teacher.precision == found and trainer.dtype == torch.float32


def test_a_live_teacher_follows_the_size_of_the_images(settings):
    schedule = {"steps": 2, "image_size": [[0, 24], [0.5, 32]]}
    recipe = make_recipe({**settings, "method": "kd", "schedule": schedule})
    trainer, data, _ = build_trainer(recipe)
    seen = []
    answer = data.teacher.logits
    data.teacher.logits = lambda pixels: seen.append(pixels.shape[-1]) or answer(pixels)
    list(trainer.run())
    assert seen == [24, 32]


# What is said when something is wrong


@pytest.mark.parametrize(
    ("teacher", "message"),
    [
        ("timm/test_resnet?random=0&num_classes=4", "has 4 classes, but the images have 3"),
        ("gone", "is no directory of a run"),
        (f"{TEACHER},{TEACHER}", "names several teachers"),
    ],
)
def test_a_teacher_that_cannot_be_used_is_refused_at_once(settings, tmp_path, teacher, message):
    recipe = make_recipe({**settings, "method": "kd", "teacher": teacher})
    with pytest.raises(InputError, match=message):
        train(recipe, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_teacher_that_does_not_take_a_size_of_the_schedule_is_refused(settings):
    recipe = make_recipe(
        {
            **settings,
            "method": "kd",
            "teacher": "timm/test_vit?random=0&num_classes=3",  # of patches of 16 pixels
            "schedule": {"steps": 2, "image_size": [[0, 24], [0.5, 32]]},
        }
    )
    with pytest.raises(
        InputError, match=r"does not take images of 24 pixels \(.*schedule\.image_s"
    ):
        build_trainer(recipe)


def test_a_live_teachers_own_size_is_refused_where_the_student_sees_another(settings, store):
    other = changed(settings, "kd", store, teacher=f"{TEACHER}&image_size=64")
    with pytest.raises(InputError, match=r"states image_size=64, but method kd .*image_size 32"):
        build_trainer(other)
    same = changed(settings, "kd", store, teacher=f"{TEACHER}&image_size=32")
    assert build_trainer(same)[1].teacher.image_size == 32


def test_another_teacher_is_noticed_on_resuming(settings, tmp_path):
    weights = tmp_path / "teacher.pt"
    for seed in (0, 1):
        torch.manual_seed(seed)
        torch.save(build_student(Student(name="timm/test_resnet"), 3).state_dict(), weights)
        recipe = make_recipe(
            {**settings, "method": "kd", "teacher": f"timm/test_resnet?checkpoint={weights}"}
        )
        if seed == 0:
            with pytest.raises(KeyboardInterrupt):
                train(recipe, tmp_path / "run", progress=interrupt_at(2))
        else:
            with pytest.raises(InputError, match="are not those that"):
                train(recipe, tmp_path / "run", resume=True)


def test_another_class_map_in_the_same_file_is_noticed_on_resuming(settings, tmp_path):
    mapped = tmp_path / "map.txt"
    recipe = make_recipe({**settings, "method": "kd", "class_map": str(mapped)})
    for text in ("a 0\nb 2\nc 1\n", "a 1\nb 2\nc 0\n"):
        mapped.write_text(text)
        if text.startswith("a 0"):
            with pytest.raises(KeyboardInterrupt):
                train(recipe, tmp_path / "run", progress=interrupt_at(2))
        else:
            with pytest.raises(InputError, match="are not those that"):
                train(recipe, tmp_path / "run", resume=True)
    mapped.write_text("a 0\nb 2\nc 1\n")
    assert train(recipe, tmp_path / "run", resume=True).steps == 5


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_teacher_that_is_not_finite_is_named(settings, store, precision):
    recipe = changed(settings, "kd", store, teacher_precision=precision)
    trainer, data, _ = build_trainer(recipe)
    answer, calls = data.teacher.logits, []

    def overflows(pixels):
        calls.append(1)
        return answer(pixels) / (0.0 if len(calls) == 2 else 1.0)

    data.teacher.logits = overflows
    list(trainer.run())
    with pytest.raises(NonFiniteLoss) as caught:
        trainer.mean_loss()
    said = str(caught.value)
    assert "at step 2 of 5: teacher timm/test_resnet answered" in said and "diverged" not in said
    assert ("set teacher_precision fp32" in said) == (precision == "bf16")


def test_a_student_that_diverges_beside_a_sound_teacher_is_named(settings, store):
    trainer, _, _ = build_trainer(changed(settings, "kd", store, optimizer={"lr": 1e30}))
    list(trainer.run())
    with pytest.raises(NonFiniteLoss, match="training has diverged"):
        trainer.mean_loss()
