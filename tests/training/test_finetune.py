"""Fine-tuning with care: the probe by hand, never below it, continued to the same bytes."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from nets import SMALL
from torch import nn

from ferkd.models.student import Student, load_run
from ferkd.system.errors import InputError
from ferkd.training import finetune
from ferkd.training import probe as probe_module
from ferkd.training.finetune import FineTuning, fine_tune
from ferkd.training.optim import OptimizerConfig, build_optimizer
from ferkd.training.probe import PENALTIES, choose_penalty, fit, head_of


def patches(root: Path, each: int, seed: int, names: str = "abc") -> Path:
    """Pictures of noise around a colour that is the class's: red, green or blue is brighter."""
    rng = np.random.default_rng(seed)
    for number, name in enumerate(names):
        (root / name).mkdir(parents=True)
        for i in range(each):
            pixels = rng.integers(0, 120, (40, 40, 3))
            pixels[..., number] += 60
            assert cv2.imwrite(str(root / name / f"{i}.png"), pixels.astype(np.uint8))
    return root


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    root = tmp_path_factory.mktemp("patches")
    return patches(root / "train", 16, 0), patches(root / "val", 6, 1)


def settings(folders: tuple[Path, Path], **more: object) -> FineTuning:
    common: dict[str, object] = {
        "network": Student(name=SMALL),
        "images": str(folders[0]),
        "val": str(folders[1]),
        "image_size": 32,
        "epochs": 9,
        "batch_size": 16,
        "workers": 1,
        "device": "cpu",
    }
    return FineTuning(**{**common, **more})  # type: ignore[arg-type]


def test_the_probe_is_the_minimum_of_its_loss() -> None:
    """At the minimum the gradient of the mean loss and of the penalty cancel: derived by hand."""
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(60, 4, generator=generator) * torch.tensor([1.0, 5.0, 0.1, 2.0]) + 3
    targets = (values[:, 0] > 3).long() + (values[:, 1] > 3).long()
    weight, bias, penalty = fit(values, targets, 3)
    mean, std = values.mean(0), values.std(0, correction=0)
    scaled, on_scaled = (values - mean) / std, weight * std
    error = (values @ weight.T + bias).softmax(1) - nn.functional.one_hot(targets, 3)
    gradient = error.T @ scaled / len(values) + penalty * on_scaled
    assert gradient.abs().max() < 1e-3
    assert (error.mean(0).abs() < 1e-3).all()  # the biases are not penalised


def test_the_penalty_is_chosen_on_every_image_once() -> None:
    """Against scikit-learn's regression, whose C is 1 / (N penalty), and the rule by hand."""
    from sklearn.linear_model import LogisticRegression

    generator = torch.Generator().manual_seed(3)
    values = torch.randn(45, 12, generator=generator)
    targets = torch.arange(45) % 3
    values[:, 0] += 3 * targets
    values = (values - values.mean(0)) / values.std(0, correction=0)
    fold = torch.arange(45) // 3 % 5  # an image's place in its class
    losses = torch.zeros(len(PENALTIES), 45)
    for row, penalty in enumerate(PENALTIES):
        for turn in range(5):
            out = fold == turn
            model = LogisticRegression(C=1 / (36 * penalty), tol=1e-8, max_iter=10_000)
            model.fit(values[~out].numpy(), targets[~out].numpy())
            sure = torch.from_numpy(model.predict_log_proba(values[out].numpy())).float()
            losses[row, out] = -sure.gather(1, targets[out, None])[:, 0]
    excess = losses - losses[losses.mean(1).argmin()]
    fits = excess.mean(1) <= excess.std(1, correction=0) / 45**0.5
    expected = max(p for p, fit_ in zip(PENALTIES, fits.tolist(), strict=True) if fit_)
    assert PENALTIES[0] < expected < PENALTIES[-1]  # else the case tells nothing
    assert choose_penalty(values, targets, 3) == expected


def test_of_penalties_that_cannot_be_told_apart_the_largest_is_taken() -> None:
    """Features without information: every probe answers with the shares of the classes."""
    assert choose_penalty(torch.zeros(40, 3), torch.arange(40) % 4, 4) == PENALTIES[-1]


def test_the_only_image_of_a_class_judges_no_penalty() -> None:
    """With it or without it the others choose the same."""
    generator = torch.Generator().manual_seed(4)
    values, targets = torch.randn(30, 6, generator=generator), torch.arange(30) % 2
    values[:, 0] += 3 * targets
    alone = torch.cat([targets, torch.tensor([2])])
    held = []

    def loss(values, targets, classes, penalty, out):
        held.append(out)
        return torch.zeros(int(out.sum()))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(probe_module, "_loss_on", loss)
        choose_penalty(torch.cat([values, torch.full((1, 6), 9.0)]), alone, 3)
    assert held and not any(bool(out[-1]) for out in held)
    assert torch.stack(held[:5]).sum(0)[:-1].tolist() == [1] * 30


def test_a_class_of_one_image_is_no_obstacle() -> None:
    values = torch.tensor([[0.0, 1.0], [1.0, 0.0], [0.0, -1.0]])
    assert choose_penalty(values, torch.arange(3), 3) == PENALTIES[-2]
    weight, bias, _ = fit(values, torch.arange(3), 3)
    assert ((values @ weight.T + bias).argmax(1) == torch.arange(3)).all()


def test_what_is_kept_is_never_below_the_probe(folders, tmp_path: Path, monkeypatch) -> None:
    """A rate that destroys the network keeps the probe; one that helps keeps a later step."""
    ruined = fine_tune(settings(folders, lr=3.0, layer_decay=1.0), tmp_path / "r")
    assert ruined["top1"] >= ruined["probe_top1"]
    probe = finetune.read_state_dict(tmp_path / "r" / finetune.PROBE_WEIGHTS)
    if ruined["kept_step"] == 0:
        kept = load_run(tmp_path / "r")[0].state_dict()
        assert all(torch.equal(kept[name], value) for name, value in probe.items())
    good = fine_tune(settings(folders, lr=3e-3), tmp_path / "g")
    assert good["top1"] >= good["probe_top1"] and good["top1"] > 0.5
    assert load_run(tmp_path / "g")[1].class_names == ("a", "b", "c")


def test_a_blend_that_is_better_is_kept(folders, tmp_path: Path, monkeypatch) -> None:
    """Weights between the probe's and the last, by hand; kept where the judge says they are best.

    The judge here says what it is told: of the probe, the last look, and the three blends.
    """
    fine_tune(settings(folders, epochs=0), tmp_path / "p")
    probe = finetune.read_state_dict(tmp_path / "p" / finetune.PROBE_WEIGHTS)
    name = next(n for n in probe if n.endswith("fc.bias"))
    told, moved = iter([0.5, 0.1, 0.3, 0.9, 0.4]), []

    def judge(self, model, normalise, dtype):
        moved.append(float((model.state_dict()[name] - probe[name]).abs().max()))
        return {"top1": next(told), "nll": 1.0, "ece": 0.0}

    monkeypatch.setattr(finetune._Judge, "__call__", judge)
    found = fine_tune(settings(folders, epochs=3, evaluate_epochs=9), tmp_path / "b")
    assert (found["kept_step"], found["kept_share"], found["top1"]) == (9, 0.5, 0.9)
    assert found["last_top1"] == 0.1
    first, last, *blends = moved
    assert first == 0
    assert blends == pytest.approx([last / 4, last / 2, 3 * last / 4], abs=2e-6)
    kept = load_run(tmp_path / "b")[0].state_dict()
    assert float((kept[name] - probe[name]).abs().max()) == pytest.approx(last / 2, abs=2e-6)


@pytest.mark.parametrize(
    ("looks", "steps"), [((0.5, 0.6, 0.7, 0.8), 8), ((0.5, 0.6, 0.55, 0.7), 6)]
)
def test_a_run_below_its_probe_goes_on_while_it_climbs(
    folders, tmp_path: Path, monkeypatch, looks, steps
) -> None:
    """The probe is at 0.9 and patience 1: only a look below the best look before it is one."""
    told = iter([0.9, *looks[: steps // 2], 0.1, 0.1, 0.1])
    monkeypatch.setattr(finetune, "_LEAST_STEPS", 2)
    monkeypatch.setattr(
        finetune._Judge, "__call__", lambda *_: {"top1": next(told), "nll": 1.0, "ece": 0.0}
    )
    tuning = settings(folders, epochs=8 / 3, evaluate_epochs=2 / 3, patience=1)
    found = fine_tune(tuning, tmp_path / "r")
    assert (found["steps"], found["top1"], found["kept_step"]) == (steps, 0.9, 0)
    assert found["last_top1"] == looks[steps // 2 - 1]


def test_no_epochs_keep_the_probe(folders, tmp_path: Path) -> None:
    found = fine_tune(settings(folders, epochs=0), tmp_path / "p")
    assert (found["kept_step"], found["steps"]) == (0, 0)
    assert found["top1"] == found["probe_top1"]
    again = fine_tune(settings(folders, epochs=0), tmp_path / "p", resume=True)
    assert again == found


def test_an_interrupted_one_continues_to_the_same_bytes(folders, tmp_path: Path) -> None:
    whole = fine_tune(settings(folders), tmp_path / "whole")

    class Stopped(Exception):
        pass

    def stop(done: int, total: int, note: str) -> None:
        if "steps" in note and done == 24:  # after the evaluation of step 20, its state saved
            raise Stopped

    with pytest.raises(Stopped):
        fine_tune(settings(folders), tmp_path / "cut", progress=stop)
    continued = fine_tune(settings(folders), tmp_path / "cut", resume=True)
    same = ("top1", "probe_top1", "kept_step", "nll", "ece", "steps")
    assert [continued[key] for key in same] == [whole[key] for key in same]
    ours, theirs = (load_run(tmp_path / n)[0].state_dict() for n in ("whole", "cut"))
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_layers_learn_slower_with_their_depth() -> None:
    import timm

    model = timm.create_model("test_resnet", num_classes=3)
    optimizer = build_optimizer(OptimizerConfig(lr=1.0, layer_decay=0.5), model)
    scales = {id(p): group["lr_scale"] for group in optimizer.param_groups for p in group["params"]}
    head, first = scales[id(model.fc.weight)], scales[id(model.conv1[0].weight)]
    assert head == 1.0 and first < 0.5
    assert len(scales) == len(list(model.parameters()))


@pytest.mark.parametrize("names", ["ab", "abcd"])
def test_other_validation_classes_are_refused(folders, tmp_path: Path, names: str) -> None:
    root = tmp_path / "v"
    for name in names:
        (root / name).mkdir(parents=True)
        assert cv2.imwrite(str(root / name / "0.png"), np.zeros((40, 40, 3), np.uint8))
    with pytest.raises(InputError, match="the classes do not match"):
        fine_tune(settings(folders, val=str(root)), tmp_path / "out")


def test_a_network_without_a_linear_head_is_refused() -> None:
    with pytest.raises(InputError, match="does not end in a linear layer of 4 classes"):
        head_of(nn.Sequential(nn.Flatten(), nn.Linear(3, 5)), 4)
