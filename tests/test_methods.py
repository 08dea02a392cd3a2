"""Every method: trains, continues to the bit, and minimises what its card says."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
import safetensors.torch
import torch
from torch.nn import functional
from views import view

from ferkd import map_crops, objectives
from ferkd.compute import Normalise
from ferkd.config import make_recipe
from ferkd.errors import InputError
from ferkd.labelling import label
from ferkd.labels import LabelStore, SoftLabels
from ferkd.methods import METHODS
from ferkd.methods.adversary import Adversary
from ferkd.methods.live import LiveTeacher, all_classes
from ferkd.methods.plain import HardLabels
from ferkd.methods.stored import StoredLabels, as_kind
from ferkd.objectives import build as objective
from ferkd.teachers import Inputs, Teacher
from ferkd.training import train
from ferkd.training.metrics import read_metrics
from ferkd.training.run import build_trainer
from ferkd.training.trainer import NonFiniteLoss

TEACHER = "timm/test_resnet?random=0&num_classes=3&mean=0.4&std=0.3"
STEPS = 5


@pytest.fixture
def photos(tiny_images):
    return tiny_images({"a": 4, "b": 3, "c": 3})


@pytest.fixture
def settings(photos):
    """Dropout and EMA: the most that can go wrong when a run continues."""
    return {
        "teacher": TEACHER,
        "data": {
            "images": str(photos),
            "val": str(photos),
            "image_size": 32,
            "batch_size": 4,
            "workers": 0,
        },
        "student": {
            "name": "timm/test_efficientnet",
            "pretrained": False,
            "model_args": {"drop_rate": 0.5},
        },
        "schedule": {"steps": STEPS},
        "evaluation": {"every_epochs": None},
        "ema": 0.9,
        "log_steps": 1,
    }


@pytest.fixture
def store(photos, tmp_path):
    """The labels that a method trains on, made as its card says."""

    def made(method):
        if METHODS[method].labels == "none":
            return None
        teacher, options = f"{TEACHER}&image_size=32", {"crops": 5, "top_k": 2}
        if method == "meal_v2":
            other = "timm/test_efficientnet?random=1&num_classes=3&image_size=32"
            teacher = f"{teacher},{other}"
        if method == "ssld":
            options["targets"] = False
        if METHODS[method].labels == "map":
            options = {"kind": "map", "top_k": 2}
        label(photos, teacher, tmp_path / "labels", workers=1, **options)
        return str(tmp_path / "labels")

    return made


def changed(settings, method, store, **changes):
    data = {**settings["data"], "store": store(method), **changes.pop("data", {})}
    return make_recipe({**settings, "method": method, "data": data, **changes})


def interrupt_at(step):
    def progress(line):
        if line["kind"] == "train" and line["step"] == step:
            os.kill(os.getpid(), signal.SIGINT)

    return progress


CASES = [
    ("hard", {}),
    ("kd", {}),
    ("kd", {"mix": {"kind": "cutmix"}, "loss": {"objective": "jeffreys"}}),
    ("funmatch", {}),
    ("relabel", {}),
    ("fkd", {"loss": {"label_kind": "smoothing"}, "mix": {"kind": "mixup"}}),
    ("fkd", {"loss": {"objective": "kl", "options": {"temperature": 2}, "label_kind": "renorm"}}),
    ("meal_v2", {"loss": {"discriminator": 0.5}}),
    ("ssld", {}),
    ("ferkd", {"regions": {"thresholds": [0.1, 0.4, 0.9]}}),
    ("ferkd-paper", {"regions": {"thresholds": [0.1, 0.4, 0.9]}}),
    ("pskd", {}),
    ("pskd", {"mix": {"kind": "selfmix"}, "data": {"crops_per_image": 2}}),
]


def test_every_method_is_tried():
    assert {method for method, _ in CASES} == set(METHODS)


@pytest.mark.parametrize(
    ("method", "changes"), CASES, ids=[f"{i}-{case[0]}" for i, case in enumerate(CASES)]
)
def test_a_method_trains_and_continues_to_the_bit(settings, store, tmp_path, method, changes):
    recipe = changed(settings, method, store, **changes)
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    result = train(recipe, whole)
    assert result["method"] == method and 0 <= result["top1"] <= 1
    per_batch = -(-4 // recipe.data.crops_per_image)
    assert result["decodes"] == STEPS * per_batch
    lines = read_metrics(whole / "metrics.jsonl")
    assert [line["decodes"] for line in lines if line["kind"] == "train"] == [
        per_batch * step for step in range(1, STEPS + 1)
    ]
    with pytest.raises(KeyboardInterrupt):
        train(recipe, stopped, progress=interrupt_at(3))
    torch.manual_seed(77)
    train(recipe, stopped, resume=True)
    first, second = (
        safetensors.torch.load_file(out / "weights.safetensors") for out in (whole, stopped)
    )
    assert all(torch.equal(first[name], second[name]) for name in first)
    losses = [[line.get("loss") for line in read_metrics(out / "metrics.jsonl")]
              for out in (whole, stopped)]  # fmt: skip
    assert losses[0] == losses[1]


DOCS = Path(__file__).parents[1] / "docs" / "methods"


def test_every_method_has_its_card_and_its_line():
    lines = (DOCS / "README.md").read_text().splitlines()
    for method in METHODS:
        assert (DOCS / f"{method}.md").read_text().startswith(f"# {method}: ")
        assert sum(line.startswith(f"| [{method}]({method}.md) |") for line in lines) == 1


def test_the_page_of_the_objectives_lists_each_option_with_its_default():
    lines = (DOCS / "objectives.md").read_text().splitlines()
    for name, card in objectives.CARDS.items():
        (line,) = (line for line in lines if line.startswith(f"| `{name}` |"))
        for option, field in card.model_fields.items():
            value = {None: "none", False: "false"}.get(field.default, field.default)
            if not isinstance(field.default, bool | str) and field.default is not None:
                value = f"{field.default:g}"
            assert f"`{option}` {value}" in line, (name, option)
        assert card() == objectives.build(name)


# Live teachers


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


@pytest.mark.parametrize(
    ("teacher", "message"),
    [
        ("timm/test_resnet?random=0&num_classes=4", "has 4 classes, but the 10 images have 3"),
        ("gone", "is no directory of a run"),
        (f"{TEACHER},{TEACHER}", "names several teachers"),
    ],
)
def test_a_teacher_that_cannot_be_used_is_refused_at_once(settings, tmp_path, teacher, message):
    recipe = make_recipe({**settings, "method": "kd", "teacher": teacher})
    with pytest.raises(InputError, match=message):
        train(recipe, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_live_teacher_follows_the_size_of_the_images(settings):
    schedule = {"steps": 2, "image_size": [[0, 24], [0.5, 32]]}
    recipe = make_recipe({**settings, "method": "kd", "schedule": schedule})
    trainer, data, _ = build_trainer(recipe)
    seen = []
    answer = data.teacher.logits
    data.teacher.logits = lambda pixels: seen.append(pixels.shape[-1]) or answer(pixels)
    list(trainer.run())
    assert seen == [24, 32]


def test_a_teacher_that_does_not_take_a_size_of_the_schedule_is_refused(settings):
    recipe = make_recipe(
        {
            **settings,
            "method": "kd",
            "teacher": "timm/test_vit?random=0&num_classes=3",
            "schedule": {"steps": 2, "image_size": [[0, 24], [0.5, 32]]},
        }
    )
    with pytest.raises(
        InputError, match=r"does not take images of 24 pixels \(.*schedule\.image_s"
    ):
        build_trainer(recipe)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("method", METHODS)
def test_no_loss_waits_for_the_device(settings, store, method):
    loss = {"discriminator": 0.5} if method == "meal_v2" else {}
    trainer, _, _ = build_trainer(changed(settings, method, store, mix={"kind": "none"}, loss=loss))
    ours = trainer.objective

    def watched(logits, shown):
        torch.cuda.set_sync_debug_mode("error")
        try:
            return ours(logits, shown)
        finally:
            torch.cuda.set_sync_debug_mode("default")

    trainer.objective = watched
    assert list(trainer.run()) == [1, 2, 3, 4, 5]


def test_another_teacher_is_noticed_on_resuming(settings, tmp_path):
    weights = tmp_path / "teacher.pt"
    for seed in (0, 1):
        torch.manual_seed(seed)
        from ferkd.students import Student, build_student

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


# Stored labels


def test_label_kinds_by_hand():
    """Probabilities .5 .3 .1 .06 .04; three are stored, so the tail holds .1 for two classes."""
    p = torch.tensor([[0.3, 0.5, 0.04, 0.1, 0.06]])
    labels = SoftLabels.from_logits(p.log(), k=3)
    expected = {
        "soft": [0.3, 0.5, 0.05, 0.1, 0.05],
        "hard": [0.0, 1.0, 0.0, 0.0, 0.0],
        "smoothing": [0.125, 0.5, 0.125, 0.125, 0.125],
        "renorm": [0.3 / 0.9, 0.5 / 0.9, 0.0, 0.1 / 0.9, 0.0],
    }
    for kind, values in expected.items():
        assert torch.allclose(as_kind(labels, kind).dense(), torch.tensor([values]), atol=1e-6)


def test_the_slot_of_the_truth_is_not_part_of_a_renormalised_label():
    p = torch.tensor([[0.3, 0.5, 0.04, 0.1, 0.06]])
    labels = SoftLabels.from_logits(p.log(), torch.tensor([2]), k=2).with_truth(torch.tensor([2]))
    expected = torch.tensor([[0.375, 0.625, 0.0, 0.0, 0.0]])
    assert torch.allclose(as_kind(labels, "renorm").dense(), expected, atol=1e-6)


@pytest.mark.parametrize("kind", ["soft", "hard", "smoothing", "renorm"])
def test_mixed_labels_are_turned_half_by_half(kind):
    a, b = (SoftLabels.from_logits(torch.randn(4, 6) * 3, k=3) for _ in range(2))
    share = torch.tensor([0.2, 0.5, 0.9, 1.0])
    expected = (
        share[:, None] * as_kind(a, kind).dense() + (1 - share)[:, None] * as_kind(b, kind).dense()
    )
    assert torch.allclose(as_kind(a.mixed(b, share), kind).dense(), expected, atol=1e-6)


def test_a_method_and_the_kind_of_its_store_must_fit(settings, store):
    with pytest.raises(InputError, match="holds the labels of crops, but method relabel needs"):
        build_trainer(changed(settings, "relabel", lambda method: store("fkd")))


def test_label_maps_are_no_labels_of_crops(settings, store):
    with pytest.raises(InputError, match="holds label maps, but method fkd needs"):
        build_trainer(changed(settings, "fkd", lambda method: store("relabel")))


def test_an_objective_that_cannot_use_the_labels_is_refused_before_anything_is_written(
    settings, store, tmp_path
):
    """A top-k label does not tell its tail at temperatures below 1."""
    options = {"objective": "kl", "options": {"temperature": 0.5}}
    recipe = changed(settings, "fkd", store, loss=options)
    with pytest.raises(InputError, match="use a temperature of 1 or more, or store all classes"):
        train(recipe, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_objectives_that_need_the_truth_are_refused_where_images_have_none(settings, store):
    recipe = changed(settings, "ssld", store, loss={"objective": "dkd"})
    with pytest.raises(InputError, match="dkd needs the true class of every image, which 10 of 10"):
        build_trainer(recipe)
    assert build_trainer(changed(settings, "ssld", lambda _: recipe.data.store))


@pytest.mark.parametrize("method", ["kd", "fkd"])
@pytest.mark.parametrize("name", ["soft_ce", "dkd", "nkd", "dist", "bce", "pld", "lskd", "ofa"])
def test_any_objective_trains_from_a_live_teacher_and_from_a_store(
    settings, photos, tmp_path, method, name
):
    label(photos, f"{TEACHER}&image_size=32", tmp_path / "labels", crops=2, workers=1)
    data = {**settings["data"], "store": str(tmp_path / "labels")}
    loss = {"objective": name}
    recipe = make_recipe({**settings, "method": method, "data": data, "loss": loss,
                          "mix": {"kind": "mixup"}})  # fmt: skip
    trainer, _, _ = build_trainer(recipe)
    for step in trainer.run():
        assert torch.isfinite(torch.tensor(trainer.mean_loss()))
        if step == 2:
            break


def test_labels_of_an_ensemble_are_the_mean_of_their_probabilities(store):
    members = LabelStore.open(store("meal_v2")).settings.teacher["members"]
    assert [member["weight"] for member in members] == [0.5, 0.5]


# PS-KD


def test_pskd_counts_epochs_in_the_crops_of_its_run(settings, store):
    """10 images, 4 crops a step, 5 steps: 2 epochs, of which step 3 (crop 12) begins the second."""
    own = build_trainer(changed(settings, "pskd", store))[0].objective
    assert own.epochs == 2.0
    assert [own.share(step) for step in range(STEPS)] == pytest.approx([0.4, 0.4, 0.4, 0.8, 0.8])
    half = {"crops_per_image": 2, "batch_size": 3}  # whole images: 4 crops a step
    own = build_trainer(changed(settings, "pskd", store, data=half))[0].objective
    assert own.epochs == 2.0 and own.share(3) == pytest.approx(0.8)


# Options of loss


def first_view(recipe):
    """What the objective of a run is shown at the first step."""
    trainer, _, _ = build_trainer(recipe)
    seen, ours = [], trainer.objective
    trainer.objective = lambda logits, shown: seen.append(shown) or ours(logits, shown)
    next(trainer.run())
    return seen[0]


@pytest.mark.parametrize("method", ["hard", "kd"])
def test_label_smoothing_is_part_of_mixed_hard_labels(settings, store, method):
    """Smoothing 0.3 over 3 classes: at least 0.1 on every class, whatever is mixed."""
    for smoothing, least in ((0.3, 0.1), (0.0, 0.0)):
        recipe = changed(
            settings, method, store, mix={"kind": "mixup"}, loss={"label_smoothing": smoothing}
        )
        p = first_view(recipe).labels.dense()
        assert float(p.min()) == pytest.approx(least, abs=1e-6) and float(p.max()) > 0.5


def test_the_last_share_of_pskd_is_read(settings, store):
    own = build_trainer(changed(settings, "pskd", store, loss={"own_share": 0.3}))[0].objective
    assert own.share(STEPS - 1) == pytest.approx(0.3)


def test_the_weight_of_the_discriminator_is_read(settings, store):
    recipe = changed(settings, "meal_v2", store, loss={"discriminator": 0.25})
    found = build_trainer(recipe)[0].objective
    assert isinstance(found, Adversary) and found.weight == 0.25
    plain = recipe.model_copy(update={"loss": recipe.loss.model_copy(update={"discriminator": 0})})
    assert isinstance(build_trainer(plain)[0].objective, StoredLabels)


@pytest.mark.parametrize("kind", ["hard", "smoothing", "renorm"])
def test_the_label_kind_is_read_by_fkd_alone(settings, store, kind):
    path = store("fkd")
    for method in ("fkd", "meal_v2", "ssld", "ferkd"):
        recipe = changed(settings, method, lambda _: path, loss={"label_kind": kind})
        found = build_trainer(recipe)[0].objective
        assert found.kind == (kind if method == "fkd" else "soft"), method


def test_the_precision_of_a_live_teacher_is_its_own(settings, store):
    for given, found in (({"teacher_precision": "bf16"}, "bf16"), ({}, "fp32")):
        recipe = changed(settings, "kd", store, precision="fp32", **given)
        trainer, data, _ = build_trainer(recipe)
        assert data.teacher.precision == found and trainer.dtype == torch.float32


# What is said when something is wrong


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


def test_a_live_teachers_own_size_is_refused_where_the_student_sees_another(settings, store):
    other = changed(settings, "kd", store, teacher=f"{TEACHER}&image_size=64")
    with pytest.raises(InputError, match=r"states image_size=64, but method kd .*image_size 32"):
        build_trainer(other)
    same = changed(settings, "kd", store, teacher=f"{TEACHER}&image_size=32")
    assert build_trainer(same)[1].teacher.image_size == 32


@pytest.mark.parametrize(
    "loss",
    [{"objective": "lskd"}, {"objective": "kl", "options": {"temperature": 0.5}}],
    ids=["lskd", "kl"],
)
def test_pooled_labels_are_tried_before_the_run(settings, tiny_images, tmp_path, monkeypatch, loss):
    """2 of 5 classes kept stand for the 16 of more than 32."""
    photos = str(tiny_images({name: 2 for name in "abcde"}))
    teacher = TEACHER.replace("num_classes=3", "num_classes=5")
    label(photos, f"{teacher}&image_size=32", tmp_path / "maps", kind="map", top_k=5, workers=1)
    data = {**settings["data"], "images": photos, "val": photos, "store": str(tmp_path / "maps")}
    recipe = make_recipe({**settings, "method": "relabel", "data": data, "loss": loss})
    assert build_trainer(recipe)
    monkeypatch.setattr(map_crops, "_ALL_UP_TO", 2)
    monkeypatch.setattr(map_crops, "_KEPT", 2)
    said = rf"(?s){loss['objective']} cannot use .* keeps the 2 most probable of 5 .*method kd"
    with pytest.raises(InputError, match=said):
        train(recipe, tmp_path / "run")
    assert not (tmp_path / "run").exists()
