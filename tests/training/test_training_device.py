"""Training on crops cut on the device, and steps that never wait for it."""

from __future__ import annotations

import pytest
import safetensors.torch
import torch
from runs import interrupt_at
from torch import nn

from ferkd.labelling.run import label
from ferkd.loading.batch import Batch
from ferkd.loading.mixing import Mix
from ferkd.methods.hard import HardLabels
from ferkd.methods.live import LiveTeacher
from ferkd.methods.meal_v2 import Adversary
from ferkd.methods.pskd import OwnPredictions
from ferkd.methods.stored import StoredLabels
from ferkd.models.teacher import Inputs, Teacher
from ferkd.objectives.jeffreys import Jeffreys
from ferkd.objectives.kl import Kl
from ferkd.objectives.soft_ce import SoftCrossEntropy
from ferkd.store import SoftLabels
from ferkd.system.compute import Normalise
from ferkd.training import train
from ferkd.training.mixing import mixer
from ferkd.training.optim import OptimizerConfig, build_optimizer
from ferkd.training.recipe import make_recipe
from ferkd.training.run import build_trainer
from ferkd.training.trainer import Trainer

CLASSES, CROPS, SIDE = 5, 6, 8
MEAN, STD = (0.5,) * 3, (0.25,) * 3


@pytest.fixture
def settings(tiny_images, tmp_path):
    photos = tiny_images({"a": 5, "b": 4, "c": 3})
    teacher = "timm/test_resnet?random=0&num_classes=3&image_size=32"
    label(photos, teacher, tmp_path / "labels", crops=5, workers=1)
    return {
        "method": "ferkd",
        "regions": {"thresholds": [0.1, 0.4, 0.9]},
        "data": {
            "images": str(photos),
            "store": str(tmp_path / "labels"),
            "image_size": 32,
            "batch_size": 4,
            "crops_per_image": 2,
            "workers": 0,
            "cut": "device",
        },
        "student": {"name": "timm/test_efficientnet"},
        "schedule": {"steps": 6, "image_size": [[0, 24], [0.5, 32]]},
        "mix": {"kind": "selfmix"},
        "log_steps": 1,
        "checkpoint_seconds": 1e-9,
    }


def weights(settings, out, *, resume=False, progress=None, **data):
    recipe = make_recipe({**settings, "data": {**settings["data"], **data}})
    train(recipe, out, resume=resume, progress=progress)
    return safetensors.torch.load_file(out / "weights.safetensors")


def identical(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def test_a_run_continues_to_the_bit_whatever_the_workers(settings, tmp_path):
    whole = weights(settings, tmp_path / "whole")
    assert identical(whole, weights(settings, tmp_path / "two", workers=2))
    with pytest.raises(KeyboardInterrupt):
        weights(settings, tmp_path / "stopped", progress=interrupt_at(4))
    assert identical(whole, weights(settings, tmp_path / "stopped", resume=True))


@pytest.mark.parametrize("cut", ["auto", "workers"])
def test_the_student_sees_what_it_sees_of_crops_that_workers_cut(settings, cut):
    """Mixed alike, and no pixel further off than the one level of rounding."""
    shown, losses = {"device": [], cut: []}, {}
    for name, images in shown.items():
        recipe = make_recipe({**settings, "data": {**settings["data"], "cut": name}})
        t, data, config = build_trainer(recipe)
        t.model.register_forward_pre_hook(
            lambda model, given, images=images: images.append(given[0])
        )
        t.objective = lambda logits, view: logits.sum() * 0 + view.labels.dense().square().sum()
        losses[name] = [t.mean_loss() for _ in t.run()]
        assert (data.loader.batch_size, t.crops) == (4, 24)
    level = 1.01 / 255 / min(config.std)
    for ours, theirs in zip(*shown.values(), strict=True):
        assert ours.shape == theirs.shape and (ours - theirs).abs().max() <= level
    assert losses["device"] == losses[cut]


class Repeated:
    """One batch again and again."""

    def __init__(self, batch):
        self.batch = batch

    def batches(self, start, stop):
        return (self.batch for _ in range(start, stop))


def network():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(144, CLASSES)
    )


def a_batch(pin=False):
    """Six crops of two images, uncut, with labels of the two best classes."""
    import numpy as np

    from ferkd.crops.device import Decoded, raw_images

    rng = np.random.default_rng(0)
    images = [Decoded(rng.integers(0, 256, (20, 30, 3), dtype=np.uint8)) for _ in range(2)]
    boxes = np.array([[[0, 0, 20, 30], [1, 2, 9, 8], [4, 4, 16, 16]]] * 2, np.int32)
    raw = raw_images(images, np.array([[20, 30]] * 2), boxes, np.zeros((2, 3), bool), SIDE)
    targets = torch.arange(CROPS) % CLASSES
    batch = Batch(
        images=torch.empty((CROPS, 3, 0, 0), dtype=torch.uint8),
        labels=SoftLabels.from_logits(torch.randn(CROPS, CLASSES), targets, 2).with_truth(targets),
        targets=targets,
        rows=torch.arange(CROPS) // 3,
        crops=torch.arange(CROPS) % 3,
        raw=raw,
    )
    return batch.pin_memory() if pin else batch


def teacher(device):
    inputs = Inputs(image_size=SIDE, mean=(0.4,) * 3, std=STD)
    if device.type != "meta":
        return Teacher(network(), inputs, device=device)
    opened = Teacher(network(), inputs, device="cpu")  # only real devices can be asked for
    opened.module.to(device)
    opened.device = device
    return opened


OBJECTIVES = {
    "hard": lambda device: HardLabels(0.1),
    "soft_ce": lambda device: StoredLabels(SoftCrossEntropy()),
    "soft_ce at 3": lambda device: StoredLabels(SoftCrossEntropy(temperature=3.0)),
    "hard kind": lambda device: StoredLabels(SoftCrossEntropy(), "hard"),
    "smoothing kind": lambda device: StoredLabels(SoftCrossEntropy(), "smoothing"),
    "renorm kind": lambda device: StoredLabels(SoftCrossEntropy(), "renorm"),
    "kl": lambda device: StoredLabels(Kl()),
    "jeffreys": lambda device: StoredLabels(Jeffreys()),
    "adversary": lambda device: Adversary(
        StoredLabels(SoftCrossEntropy()), CLASSES, weight=1.0, device=device
    ),
    "pskd": lambda device: OwnPredictions(2, CLASSES, epochs=3, batch_size=1, device=device),
    "kd": lambda device: LiveTeacher(
        teacher(device), Kl(temperature=0.5), HardLabels(), mean=MEAN, std=STD
    ),
}
MIXES = {"none": Mix(), "mixup": Mix(kind="mixup"), "cutmix": Mix(kind="cutmix")}


def steps_on(device, objective, mix, *, dtype=torch.float32):
    """Three steps on one batch, everything that a recipe can switch on switched on."""
    uncut = a_batch(pin=device.type == "cuda")
    without_labels = objective in ("hard", "pskd", "kd")
    batch = uncut if not without_labels else Batch(**{**vars(uncut), "labels": None})
    model = network().to(device)
    t = Trainer(
        model,
        Repeated(batch),
        OBJECTIVES[objective](device),
        optimizer=build_optimizer(OptimizerConfig(), model),
        learning_rate=lambda step: 0.01,
        steps=4,
        normalise=Normalise(MEAN, STD, device),
        dtype=dtype,
        mixer=mixer(
            MIXES[mix], crops_per_image=3, seed=0, num_classes=CLASSES, label_smoothing=0.1
        ),
        ema=0.9,
        clip_grad=1.0,
    )
    return t, batch


@pytest.mark.parametrize("mix", MIXES)
@pytest.mark.parametrize("objective", OBJECTIVES)
def test_a_step_asks_no_number_of_the_device(objective, mix):
    """On the meta device there are shapes and no numbers: .item(), .cpu(), truth values, boolean
    indexing and nonzero all fail there."""
    device = torch.device("meta")
    t, batch = steps_on(device, objective, mix)
    for _ in range(2):
        t._take(batch)
    assert t.step == 2 and all(loss.device == device for loss in t._losses)


def test_the_meta_device_would_notice():
    with pytest.raises((RuntimeError, NotImplementedError)):
        torch.ones(2, device="meta").sum().item()
    with pytest.raises((RuntimeError, NotImplementedError)):
        torch.ones(2, device="meta")[torch.ones(2, device="meta") > 0]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("mix", MIXES)
@pytest.mark.parametrize("objective", OBJECTIVES)
def test_a_step_does_not_wait_for_a_cuda_device(objective, mix, dtype):
    t, batch = steps_on(torch.device("cuda"), objective, mix, dtype=dtype)
    t._take(batch)  # the first makes the optimiser's state
    torch.cuda.set_sync_debug_mode("error")
    try:
        for _ in range(2):
            t._take(batch)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert t.mean_loss() > 0


@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_optimisers_are_fused_where_torch_can(name):
    config = OptimizerConfig(name=name)
    assert all(g["fused"] for g in build_optimizer(config, network()).param_groups)
    elsewhere = build_optimizer(config, network().to("meta"))
    assert not any(g["fused"] for g in elsewhere.param_groups)
