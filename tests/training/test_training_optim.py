"""Optimisers: which parameters are decayed, and a step of each by hand."""

from __future__ import annotations

import pytest
import timm
import torch
import torchvision
from torch import nn

from ferkd.system.errors import InputError
from ferkd.training.optim import OptimizerConfig, build_optimizer, parameter_groups


def test_norms_and_biases_are_not_decayed():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4, 2))
    decayed, others = parameter_groups(model, 0.1)
    assert decayed["weight_decay"] == 0.1 and others["weight_decay"] == 0.0
    assert {id(p) for p in decayed["params"]} == {id(model[0].weight), id(model[3].weight)}
    assert {id(p) for p in others["params"]} == {
        id(p) for p in (model[0].bias, model[1].weight, model[1].bias, model[3].bias)
    }


def spared(model):
    """The names of the parameters that are not decayed and have two axes or more."""
    decayed = {
        id(p) for g in parameter_groups(model, 0.1) if g["weight_decay"] for p in g["params"]
    }
    return {n for n, p in model.named_parameters() if id(p) not in decayed and p.ndim > 1}


def test_what_a_transformer_names_is_not_decayed():
    """Class tokens and position embeddings of timm's ViT and Swin, by their no_weight_decay()."""
    vit = timm.create_model("test_vit", num_classes=3)
    assert spared(vit) == {"cls_token", "pos_embed"} <= vit.no_weight_decay()
    with torch.device("meta"):
        swin = timm.create_model("swin_tiny_patch4_window7_224", num_classes=3)
    tables = {n for n, _ in swin.named_parameters() if "relative_position_bias_table" in n}
    assert len(tables) == 12 and spared(swin) == tables


def test_embeddings_of_torchvisions_transformers_are_not_decayed():
    with torch.device("meta"):
        vit, swin = (torchvision.models.get_model(n, weights=None) for n in ("vit_b_32", "swin_t"))
    assert spared(vit) == {"class_token", "encoder.pos_embedding"}
    assert len(spared(swin)) == 12 and all("relative_position_bias" in n for n in spared(swin))


def test_frozen_parameters_and_empty_groups_are_left_out():
    model = nn.Linear(2, 2)
    model.weight.requires_grad_(False)
    (only,) = parameter_groups(model, 0.1)
    assert only["params"] == [model.bias] and only["weight_decay"] == 0.0


@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_one_step_by_hand(name):
    """Weight 1 (decay .5), bias 1 (none), gradients 2, rate .1."""
    model = nn.Linear(1, 1)
    for parameter in model.parameters():
        nn.init.ones_(parameter)
        parameter.grad = torch.full_like(parameter, 2.0)
    build_optimizer(OptimizerConfig(name=name, lr=0.1, weight_decay=0.5), model).step()
    # SGD: 1 - .1 (2 + .5 * 1) and 1 - .1 * 2. AdamW's first step is the rate itself:
    # 1 (1 - .1 * .5) - .1 and 1 - .1.
    expected = {"sgd": (0.75, 0.8), "adamw": (0.85, 0.9)}[name]
    assert (model.weight.item(), model.bias.item()) == pytest.approx(expected)


def test_sgd_momentum_by_hand():
    model = nn.Linear(1, 1, bias=False)
    nn.init.ones_(model.weight)
    config = OptimizerConfig(name="sgd", lr=0.1, weight_decay=0.0, momentum=0.5)
    optimizer = build_optimizer(config, model)
    for _ in range(2):  # velocities 1 and 1.5
        model.weight.grad = torch.ones_like(model.weight)
        optimizer.step()
    assert model.weight.item() == pytest.approx(1 - 0.1 - 0.15)


@pytest.mark.parametrize(
    ("name", "plain"),
    [
        ("adamw", lambda p: torch.optim.AdamW(p, lr=0.1, betas=(0.9, 0.999), fused=True)),
        ("sgd", lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, fused=True)),
    ],
)
def test_the_factory_makes_torchs_own_to_the_bit(name, plain):
    models = []
    for make in (lambda m: build_optimizer(OptimizerConfig(name=name, lr=0.1), m),
                 lambda m: plain(parameter_groups(m, 0.05))):  # fmt: skip
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 2))
        optimizer = make(model)
        for _ in range(4):
            optimizer.zero_grad()
            model(torch.randn(8, 4)).square().sum().backward()
            optimizer.step()
        models.append(model.state_dict())
    assert all(torch.equal(value, models[1][key]) for key, value in models[0].items())


def test_any_optimiser_of_timm_by_name():
    """Lion's step is the rate in the gradient's direction: 1 (1 - .1 * .5) - .1, and 1 - .1."""
    model = nn.Linear(1, 1)
    for parameter in model.parameters():
        nn.init.ones_(parameter)
        parameter.grad = torch.full_like(parameter, 2.0)
    build_optimizer(OptimizerConfig(name="lion", lr=0.1, weight_decay=0.5), model).step()
    assert (model.weight.item(), model.bias.item()) == pytest.approx((0.85, 0.9))
    made = build_optimizer(OptimizerConfig(name="lookahead_lamb", options={"eps": 1e-3}), model)
    assert type(made).__name__ == "Lookahead" and made.param_groups[0]["eps"] == 1e-3


def test_an_optimiser_that_cannot_be_is_named():
    with pytest.raises(ValueError, match="timm has no optimiser 'adamww'; did you mean 'adamw'"):
        OptimizerConfig(name="adamww")
    with pytest.raises(ValueError, match="adahessian needs second derivatives"):
        OptimizerConfig(name="adahessian")
    with pytest.raises(InputError, match=r"optimizer lion with the options .* cannot be made"):
        build_optimizer(OptimizerConfig(name="lion", options={"depth": 3}), nn.Linear(1, 1))
