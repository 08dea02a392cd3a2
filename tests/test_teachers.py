"""Teachers: what they are fed, what they give back, where they come from, what is refused."""

from __future__ import annotations

import json
import pickle
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import timm
import torch
from torch import Tensor, nn

from ferkd.architectures import Inputs
from ferkd.errors import InputError
from ferkd.teachers import Teacher, check_classes, load_teacher
from ferkd.weights import fingerprint, head_classes, load_strict, read_state_dict

SMALL = "timm/test_resnet"  # 0.5 M parameters, made by timm for tests
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


class Pixel(nn.Module):
    """Its logits are the normalised RGB of the upper left pixel."""

    def __init__(self) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.ones(3))

    def forward(self, images: Tensor) -> Tensor:
        return images[:, :, 0, 0] * self.gain


def batch_norm_net(classes: int = 4) -> nn.Module:
    """A net whose output in training mode depends on the whole batch, with moved statistics."""
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(3, 8, 3, stride=2),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Dropout(0.5),
        nn.Linear(8, classes),
    )
    net(torch.randn(16, 3, 16, 16))
    return net


def crops(count: int, size: int = 16, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (count, 3, size, size), generator=generator, dtype=torch.uint8)


@pytest.fixture
def importable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A working directory with a module of the user's that is forgotten afterwards."""
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    sys.modules.pop("user_teacher", None)


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
    with pytest.raises(InputError, match=r"returned \[1, 3, 4, 4\] for 1 images"):
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


@pytest.fixture(scope="module")
def small() -> nn.Module:
    torch.manual_seed(0)
    return timm.create_model("test_resnet", num_classes=7).eval()


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


class Malicious:
    """What a hostile checkpoint looks like: unpickling it touches a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[Path]]:
        return (Path.touch, (self.path,))


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


# Where teachers come from


def test_a_run_directory_is_a_teacher(small: nn.Module, tmp_path: Path) -> None:
    run = tmp_path / "runs" / "big"
    run.mkdir(parents=True)
    names = ["a", "b", "c", "d", "e", "f", "g"]
    config = {
        "architecture": SMALL,
        "num_classes": 7,
        "class_names": names,
        "image_size": 48,
        "mean": [0.5, 0.5, 0.5],
        "std": [0.25, 0.25, 0.25],
        "crop_fraction": 0.9,
        "model_args": {},
    }
    (run / "config.json").write_text(json.dumps(config))
    safetensors.torch.save_file(small.state_dict(), run / "weights.safetensors")
    teacher = load_teacher(run, device="cpu")
    assert (teacher.image_size, teacher.crop_fraction) == (48, 0.9)
    assert (teacher.mean, teacher.std) == ((0.5,) * 3, (0.25,) * 3)
    assert teacher.class_names == tuple(names)
    assert teacher.fingerprint == fingerprint(small)
    assert teacher.spec == "run big"
    assert load_teacher(str(run), image_size=64, device="cpu").image_size == 64
    other = timm.create_model("test_resnet", num_classes=7)
    torch.save(other.state_dict(), tmp_path / "other.pt")
    swapped = load_teacher(f"{run}?checkpoint={tmp_path / 'other.pt'}", device="cpu")
    assert swapped.fingerprint == fingerprint(other) != teacher.fingerprint
    (run / "weights.safetensors").unlink()
    with pytest.raises(InputError, match=r"no weights\.safetensors"):
        load_teacher(run, device="cpu")
    (run / "config.json").unlink()
    with pytest.raises(InputError):
        load_teacher(run, device="cpu")


def test_timm_names_bring_timms_own_inputs() -> None:
    teacher = load_teacher("timm/test_vit.r160_in1k?random=0", device="cpu")
    cfg = timm.get_pretrained_cfg("test_vit.r160_in1k")
    assert cfg is not None
    assert teacher.image_size == cfg.input_size[-1] == 160
    assert (teacher.mean, teacher.std) == (cfg.mean, cfg.std) != IMAGENET
    assert teacher.interpolation == cfg.interpolation
    assert teacher.num_classes == 1000
    # A network whose size is fixed when it is built is built for the size asked for.
    smaller = load_teacher("timm/test_vit?random=0", image_size=64, device="cpu")
    assert smaller(crops(1, 64)).shape == (1, 1000)


def test_torchvision_names_bring_torchvisions_own_inputs(tmp_path: Path) -> None:
    import torchvision

    net = torchvision.models.squeezenet1_1(num_classes=6)
    torch.save(net.state_dict(), tmp_path / "own.pt")
    teacher = load_teacher(
        f"torchvision/squeezenet1_1?checkpoint={tmp_path / 'own.pt'}", device="cpu"
    )
    assert (teacher.image_size, teacher.crop_fraction) == (224, 224 / 256)
    assert (teacher.mean, teacher.std) == IMAGENET
    assert teacher.num_classes == 6
    assert teacher.fingerprint == fingerprint(net)


def test_stated_inputs_take_precedence() -> None:
    spec = f"{SMALL}?random=0&num_classes=2&image_size=32&mean=0.5&std=0.1,0.2,0.3"
    teacher = load_teacher(spec, device="cpu")
    assert (teacher.image_size, teacher.mean) == (32, (0.5, 0.5, 0.5))
    assert teacher.std == (0.1, 0.2, 0.3)
    assert load_teacher(spec, image_size=64, device="cpu").image_size == 64


def test_functions_modules_and_teachers_of_the_user(importable: Path) -> None:
    (importable / "user_teacher.py").write_text(
        "import torch\n"
        "from ferkd.architectures import Inputs\n"
        "from ferkd.teachers import Teacher\n"
        "def build():\n"
        "    return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * 8 * 8, 5))\n"
        "def logits(images):\n"
        "    return images.mean((2, 3))\n"
        "def other_logits(images):\n"
        "    return -images.mean((2, 3))\n"
        "def teacher():\n"
        "    return Teacher(build(), Inputs(image_size=8), device='cpu')\n"
        "ready = build()\n"
        "number = 3\n"
    )
    for name in ("build", "ready"):
        made = load_teacher(f"user_teacher:{name}?image_size=8", device="cpu")
        assert (made.num_classes, made.image_size, made.mean) == (5, 8, IMAGENET[0])
    function = load_teacher("user_teacher:logits?image_size=4&mean=0&std=1", device="cpu")
    images = crops(2, 4)
    torch.testing.assert_close(function(images), images.float().mean((2, 3)) / 255)
    other = load_teacher("user_teacher:other_logits?image_size=4", device="cpu")
    assert function.fingerprint != other.fingerprint  # told apart though neither holds weights
    assert load_teacher("user_teacher:teacher", device="cpu").image_size == 8
    assert str(importable) not in sys.path
    with pytest.raises(InputError, match=r"states its own image_size, 8; image_size=9 cannot"):
        load_teacher("user_teacher:teacher", image_size=9, device="cpu")
    with pytest.raises(InputError, match=r"is a int; an nn\.Module, a Teacher"):
        load_teacher("user_teacher:number", device="cpu")
    with pytest.raises(InputError, match=r"has no bild; nearest: build"):
        load_teacher("user_teacher:bild", device="cpu")
    with pytest.raises(InputError, match=r"no_such_module cannot be imported"):
        load_teacher("no_such_module:build", device="cpu")


def test_a_teacher_or_module_is_taken_as_it_is() -> None:
    teacher = Teacher(Pixel(), Inputs(image_size=4), device="cpu")
    assert load_teacher(teacher, image_size=4) is teacher
    with pytest.raises(InputError, match="states its own image_size, 4"):
        load_teacher(teacher, image_size=8)
    wrapped = load_teacher(timm.create_model("test_vit.r160_in1k"), device="cpu")
    assert wrapped.mean == (0.5, 0.5, 0.5)  # timm's, not ImageNet's


@pytest.fixture(scope="module")
def hf_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    transformers = pytest.importorskip("transformers", reason="needs the extra hf")
    folder = tmp_path_factory.mktemp("hub") / "tiny-vit"
    names = {0: "cat", 1: "dog", 2: "eel"}
    torch.manual_seed(0)
    config = transformers.ViTConfig(
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        image_size=32,
        patch_size=8,
        id2label=names,
        label2id={name: index for index, name in names.items()},
    )
    transformers.ViTForImageClassification(config).save_pretrained(folder)
    transformers.ViTImageProcessor(
        size={"height": 32, "width": 32}, image_mean=[0.5, 0.4, 0.3], image_std=[0.2, 0.25, 0.3]
    ).save_pretrained(folder)
    return folder


def test_a_hugging_face_folder_is_a_teacher(hf_folder: Path) -> None:
    from transformers import AutoImageProcessor, AutoModelForImageClassification

    teacher = load_teacher(f"hf/{hf_folder}", device="cpu")
    assert (teacher.image_size, teacher.mean) == (32, (0.5, 0.4, 0.3))
    assert teacher.std == (0.2, 0.25, 0.3)
    assert teacher.class_names == ("cat", "dog", "eel")
    assert (teacher.spec, teacher.weights) == ("hf/tiny-vit", "pretrained")
    images = crops(2, 32)
    processor = AutoImageProcessor.from_pretrained(hf_folder)
    pixels = processor(images=[np.asarray(i.permute(1, 2, 0)) for i in images], return_tensors="pt")
    model = AutoModelForImageClassification.from_pretrained(hf_folder).eval()
    with torch.no_grad():
        torch.testing.assert_close(teacher(images), model(**pixels).logits, atol=1e-5, rtol=1e-4)


def test_hugging_face_weights_must_be_safetensors_with_a_trained_head(
    hf_folder: Path, tmp_path: Path
) -> None:
    state = safetensors.torch.load_file(hf_folder / "model.safetensors")
    for name in ("config.json", "preprocessor_config.json"):
        (tmp_path / name).write_bytes((hf_folder / name).read_bytes())
    torch.save(state, tmp_path / "pytorch_model.bin")
    with pytest.raises(InputError, match=r"could not be loaded.*checkpoint=FILE"):
        load_teacher(f"hf/{tmp_path}", device="cpu")
    headless = {name: value for name, value in state.items() if "classifier" not in name}
    safetensors.torch.save_file(headless, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(InputError, match=r"no weights for classifier\.bias.*untrained"):
        load_teacher(f"hf/{tmp_path}", device="cpu")
    whole = load_teacher(f"hf/{hf_folder}", device="cpu")
    torch.save(whole.module.state_dict(), tmp_path / "own.pt")
    own = load_teacher(f"hf/{tmp_path}?checkpoint={tmp_path}/own.pt", device="cpu")
    assert own.fingerprint == whole.fingerprint


def test_missing_transformers_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(InputError, match=r'pip install "ferkd\[hf\]"'):
        load_teacher("hf/org/name", device="cpu")


# What is refused


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("resnet18", r"no directory of a run.*timm/NAME\?checkpoint=FILE"),
        ("runs/none", r"'runs/none' is no directory of a run"),
        ("timm/resnet19", r"timm has no model 'resnet19'; nearest: .*resnet18"),
        ("timm/resnet18.nope", r"no weights 'resnet18\.nope'; it has .*resnet18\.a1_in1k"),
        ("torchvision/resnet19", r"no classifier 'resnet19'; nearest: .*resnet18"),
        (f"{SMALL}?chekpoint=x", r"'chekpoint=x' is no option.*nearest: checkpoint"),
        (f"{SMALL}?checkpoint", r"'checkpoint' is no option"),
        (f"{SMALL}?random=1&random=2", r"given twice"),
        (f"{SMALL}?random=1&checkpoint=x", r"either checkpoint or random"),
        (f"{SMALL}?image_size=big", r"image_size=big: .*integer"),
        (f"{SMALL}?num_classes=0", r"num_classes=0: .*greater than or equal to 1"),
        (f"{SMALL}?std=0", r"std.*above 0"),
        (f"{SMALL}?mean=0.1,0.2", r"mean"),
        ("timm/a,timm/b@0.5", r"several teachers; only ferkd label takes several"),
        ("timm/vit_small_patch14_dinov2", r"no classification head"),
        ("timm/resnet18d_missing", r"timm has no model"),
        ("math:pi?random=1", r"random needs one of timm/"),
    ],
)
def test_specs_that_mean_nothing_are_explained(spec: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        load_teacher(spec, device="cpu")


def test_a_model_without_published_weights_asks_for_a_checkpoint() -> None:
    name = next(
        name
        for name in timm.list_models()
        if (cfg := timm.get_pretrained_cfg(name)) is not None and not cfg.has_weights
    )
    with pytest.raises(InputError, match=rf"no pretrained weights for {name}; .*checkpoint=FILE"):
        load_teacher(f"timm/{name}", device="cpu")


@pytest.mark.parametrize(
    ("spec", "downloader"),
    [
        (SMALL, "timm.models._builder.load_state_dict_from_hf"),
        ("torchvision/squeezenet1_1", "torch.hub.load_state_dict_from_url"),
    ],
)
def test_a_failed_download_names_model_cause_and_remedy(
    monkeypatch: pytest.MonkeyPatch, spec: str, downloader: str
) -> None:
    def fail(*args: object, **kwargs: object) -> None:
        raise OSError("no route to host")

    monkeypatch.setattr(downloader, fail)
    with pytest.raises(InputError, match=rf"{spec} .*no route to host.*{spec}\?checkpoint=FILE"):
        load_teacher(spec, device="cpu")


def test_torchvision_downloads_are_read_as_tensors_only(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A hostile file in place of the published weights is refused before torchvision reads it."""
    from torchvision.models import SqueezeNet1_1_Weights

    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    proof = tmp_path / "executed"
    cached = tmp_path / "checkpoints" / Path(SqueezeNet1_1_Weights.DEFAULT.url).name
    cached.parent.mkdir()
    torch.save({"features": Malicious(proof)}, cached)
    with pytest.raises(InputError, match=r"could not be loaded \(UnpicklingError"):
        load_teacher("torchvision/squeezenet1_1", device="cpu")
    assert not proof.exists()


def test_unknown_devices_and_precisions_are_named() -> None:
    for options in ({"device": "gpu9"}, {"precision": "fp8", "device": "cpu"}):
        with pytest.raises(InputError, match=next(iter(options.values()))):
            load_teacher(Pixel(), image_size=4, **options)  # type: ignore[arg-type]


# Classes


def named(*class_names: str) -> Teacher:
    inputs = Inputs(image_size=4)
    return Teacher(Pixel(), inputs, spec="mine", class_names=class_names, device="cpu")


def test_another_number_of_classes_is_refused_with_both_numbers_and_the_remedies() -> None:
    with pytest.raises(
        InputError, match=r"mine has 3 classes, but the 20 images have 2; .*--no-targets"
    ):
        check_classes(named(), ["cat", "dog"], 20)
    with pytest.raises(InputError, match=r"mine has 3 classes, but class names: 2"):
        named("cat", "dog")
    with pytest.raises(InputError, match=r"has 3 classes, but num_classes: 4"):
        Teacher(Pixel(), Inputs(image_size=4), num_classes=4, device="cpu")


def test_the_first_differing_class_name_is_refused() -> None:
    teacher = named("cat", "dog", "eel")
    check_classes(teacher, ["cat", "dog", "eel"])
    check_classes(teacher, ["Cat", "DOG", "eel"])
    check_classes(teacher, [])
    with pytest.raises(InputError, match=r"class 1 is 'dog' for teacher mine, but 'eel'"):
        check_classes(teacher, ["cat", "eel", "dog"])


def test_names_are_compared_only_where_both_are_words() -> None:
    check_classes(named(), ["x", "y", "z"])
    check_classes(named("tench", "goldfish", "shark"), ["n01440764", "n01443537", "n01484850"])
    check_classes(named("great white shark", "b-c", "d"), ["great_white_shark", "b_c", "d"])
