"""Every method: trains, continues to the bit, has its card, reads the options of its loss."""

from __future__ import annotations

from pathlib import Path

import pytest
import safetensors.torch
import torch
from runs import STEPS, changed, interrupt_at

from ferkd import objectives
from ferkd.methods import METHODS
from ferkd.training import train
from ferkd.training.metrics import read_metrics
from ferkd.training.run import build_trainer

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
    ("feature", {"loss": {"projector": "mlp"}}),
    ("feature", {"loss": {"beside": "soft", "by_regions": True}, "mix": {"kind": "mixup"}}),
    ("fkd-ssl", {"loss": {"beside": "probe", "prototypes": 4}}),
    ("feature-live", {"mix": {"kind": "cutmix"}}),
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


# Cards


DOCS = Path(__file__).parents[2] / "docs" / "methods"


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
