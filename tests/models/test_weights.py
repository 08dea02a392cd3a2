"""Weights: fingerprints, every form of checkpoint, and files that are refused."""

from __future__ import annotations

import argparse
import json
import pickle
from pathlib import Path

import pytest
import safetensors.torch
import torch
from nets import SMALL, Malicious, batch_norm_net, crops, small_resnet
from torch import Tensor, nn

from ferkd.models.teacher import load_teacher
from ferkd.models.weights import fingerprint, head_classes, load_strict, read_state_dict
from ferkd.system.errors import InputError


@pytest.fixture(scope="module")
def small() -> nn.Module:
    return small_resnet()


# Fingerprints


def test_fingerprint_is_stable_and_moves_with_one_weight() -> None:
    net = batch_norm_net()
    first = fingerprint(net)
    assert len(first) == 64
    assert fingerprint(batch_norm_net()) == first
    assert fingerprint(net.to(memory_format=torch.channels_last)) == first  # type: ignore[call-overload]
    assert fingerprint(batch_norm_net().double()) != first
    with torch.no_grad():
        weight = net[6].weight  # type: ignore[index]
        weight[0, 0] = torch.nextafter(weight[0, 0], torch.tensor(9.0))  # type: ignore[operator, index]
    assert fingerprint(net) != first


def test_fingerprint_counts_buffers_names_shapes_and_dtypes() -> None:
    def holding(name: str, value: Tensor) -> str:
        module = nn.Module()
        module.register_buffer(name, value)
        return fingerprint(module)

    zeros = torch.zeros(2, 3, dtype=torch.int32)  # the same bytes in all four
    variants = [("a", zeros), ("b", zeros), ("a", zeros.mT), ("a", zeros.float())]
    assert len({holding(name, value) for name, value in variants}) == 4
    assert holding("a", zeros) == holding("a", zeros.clone())


def test_random_weights_follow_their_seed_and_leave_torchs_generator_alone() -> None:
    state = torch.random.get_rng_state()
    one, same, other = (
        load_teacher(f"{SMALL}?random={seed}&num_classes=3&image_size=32", device="cpu")
        for seed in (1, 1, 2)
    )
    assert one.fingerprint == same.fingerprint != other.fingerprint
    assert torch.equal(torch.random.get_rng_state(), state)


# Checkpoints


@pytest.mark.parametrize("form", ["safetensors", "bare", "state_dict", "model", "ema", "prefixed"])
def test_own_weights_come_back_from_every_form_of_file(
    small: nn.Module, tmp_path: Path, form: str
) -> None:
    state = small.state_dict()
    file = tmp_path / "own.pt"
    if form == "safetensors":
        file = tmp_path / "own.safetensors"
        safetensors.torch.save_file(state, file)
    elif form == "bare":
        torch.save(state, file)
    elif form == "ema":
        zeros = {name: torch.zeros_like(value) for name, value in state.items()}
        torch.save({"epoch": 3, "state_dict": zeros, "state_dict_ema": state}, file)
    elif form == "prefixed":
        prefixed = {f"module._orig_mod.{name}": value for name, value in state.items()}
        torch.save({"model": prefixed}, file)
    else:
        torch.save({form: state, "epoch": 3, "args": {"lr": 0.1}}, file)
    teacher = load_teacher(f"{SMALL}?checkpoint={file}&image_size=64", device="cpu")
    assert teacher.num_classes == 7
    assert teacher.fingerprint == fingerprint(small)
    assert teacher.describe()["weights"] == f"checkpoint {file.name}"
    assert str(tmp_path) not in json.dumps(teacher.describe())
    images = crops(2, 64)
    pixels = (images / 255 - torch.tensor(teacher.mean).view(3, 1, 1)) / torch.tensor(
        teacher.std
    ).view(3, 1, 1)
    with torch.no_grad():
        torch.testing.assert_close(teacher(images), small(pixels), atol=1e-4, rtol=1e-4)


def test_class_count_is_read_off_the_head_and_only_off_the_head() -> None:
    net = nn.Sequential(nn.Linear(4, 10), nn.Linear(10, 10))
    narrow = nn.Sequential(nn.Linear(4, 10), nn.Linear(10, 3)).state_dict()
    assert head_classes(net, narrow, 10) == 3
    assert head_classes(net, net.state_dict(), 10) == 10
    wider = nn.Sequential(nn.Linear(4, 12), nn.Linear(12, 3)).state_dict()
    assert head_classes(net, wider, 10) == 10  # two candidates: no guess


def test_weights_that_do_not_fit_are_named(small: nn.Module, tmp_path: Path) -> None:
    state = dict(small.state_dict())
    del state["fc.bias"]
    state["extra.bias"] = torch.zeros(1)
    file = tmp_path / "odd.safetensors"
    safetensors.torch.save_file(state, file)
    with pytest.raises(InputError, match=r"1 missing \(fc\.bias\); 1 unexpected \(extra\.bias\)"):
        load_teacher(f"{SMALL}?checkpoint={file}", device="cpu")
    with pytest.raises(InputError, match=r"of another shape \(weight \(3, 2\) instead of \(3, 4\)"):
        load_strict(nn.Linear(4, 3), nn.Linear(2, 3).state_dict(), source="x")


def test_a_stated_class_count_must_be_the_weights_own(small: nn.Module, tmp_path: Path) -> None:
    file = tmp_path / "own.pt"
    torch.save(small.state_dict(), file)
    with pytest.raises(InputError, match=r"fc\.weight \(7, \d+\) instead of \(5, \d+\)"):
        load_teacher(f"{SMALL}?checkpoint={file}", num_classes=5, device="cpu")


@pytest.mark.parametrize("writer", ["torch", "pickle"])
def test_a_malicious_pickle_is_refused_and_not_executed(tmp_path: Path, writer: str) -> None:
    proof, file = tmp_path / "executed", tmp_path / "evil.pt"
    if writer == "torch":
        torch.save({"state_dict": Malicious(proof)}, file)
    else:
        file.write_bytes(pickle.dumps(Malicious(proof), protocol=2))
    with pytest.raises(InputError, match=r"never executes pickled code.*safetensors"):
        load_teacher(f"{SMALL}?checkpoint={file}", device="cpu")
    assert not proof.exists()
    pickle.loads(pickle.dumps(Malicious(proof)))
    assert proof.exists()  # so the file was dangerous


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("none.pt", None, r"none\.pt is not a file"),
        ("text.safetensors", b"not a header", r"not intact safetensors"),
        ("text.pt", b"not a checkpoint", r"text\.pt"),
        ("empty.pt", b"", r"empty\.pt"),
    ],
)
def test_unreadable_checkpoints_are_named(
    tmp_path: Path, name: str, content: bytes | None, message: str
) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=message):
        read_state_dict(tmp_path / name)


def test_a_truncated_checkpoint_is_named(small: nn.Module, tmp_path: Path) -> None:
    for name, save in (("a.pt", torch.save), ("a.safetensors", safetensors.torch.save_file)):
        save(small.state_dict(), tmp_path / name)
        whole = (tmp_path / name).read_bytes()
        (tmp_path / name).write_bytes(whole[: len(whole) // 2])
        with pytest.raises(InputError, match=name):
            read_state_dict(tmp_path / name)


@pytest.mark.parametrize(
    "content", [torch.zeros(3), {"epoch": 3}, {}, {"state_dict": {"fc.weight": [1.0]}}]
)
def test_a_file_without_a_state_dict_is_named(tmp_path: Path, content: object) -> None:
    torch.save(content, tmp_path / "odd.pt")
    with pytest.raises(InputError, match="holds no state dict"):
        read_state_dict(tmp_path / "odd.pt")


def test_checkpoints_of_training_scripts_hold_a_namespace(tmp_path: Path) -> None:
    state = {"weight": torch.arange(3.0)}
    options = argparse.Namespace(model="resnet10t", lr=0.1, nested=argparse.Namespace(a=[1, "x"]))
    timm_like = {"epoch": 3, "arch": "x", "state_dict": state, "args": options, "metric": 70.1}
    torch.save(timm_like, tmp_path / "timm.pth.tar")
    torch.save({"model": state, "epoch": 3, "args": options}, tmp_path / "tv.pth")
    for name in ("timm.pth.tar", "tv.pth"):
        assert torch.equal(read_state_dict(tmp_path / name)["weight"], state["weight"])


def test_another_global_is_refused_by_its_name(tmp_path: Path) -> None:
    options = argparse.Namespace(out=Path("runs"))
    torch.save({"state_dict": {"weight": torch.ones(1)}, "args": options}, tmp_path / "w.pth")
    with pytest.raises(InputError, match=r"needs pathlib\.\w*Path besides tensors"):
        read_state_dict(tmp_path / "w.pth")
