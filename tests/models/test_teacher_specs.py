"""Where teachers come from, and specs that are refused."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import timm
import torch
import torchvision
from nets import IMAGENET, SMALL, Malicious, Pixel, crops, small_resnet
from torch import nn

from ferkd.models.architectures import Inputs
from ferkd.models.committee import load_committee
from ferkd.models.teacher import Teacher, load_teacher
from ferkd.models.weights import fingerprint
from ferkd.system.errors import InputError


@pytest.fixture(scope="module")
def small() -> nn.Module:
    return small_resnet()


@pytest.fixture
def importable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A working directory with a module of the user's that is forgotten afterwards."""
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    sys.modules.pop("user_teacher", None)


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
        "from ferkd.models.architectures import Inputs\n"
        "from ferkd.models.teacher import Teacher\n"
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


# Paths with the grammar's own characters, home folders, what a state dict does not tell


@pytest.mark.parametrize("name", ["a,b@2", "x&std=1", "mean=0.5", "50%41", "q?x"])
def test_a_checkpoints_path_may_hold_any_character(
    name: str, small: nn.Module, tmp_path: Path
) -> None:
    folder = tmp_path / name
    folder.mkdir()
    safetensors.torch.save_file(small.state_dict(), folder / "w@0.5.safetensors")
    spec = f"{SMALL}?checkpoint={folder}/w@0.5.safetensors"
    assert load_committee(spec, device="cpu").members[0].fingerprint == fingerprint(small)
    assert load_teacher(spec, device="cpu").fingerprint == fingerprint(small)
    sized = load_teacher(f"{SMALL}?image_size=48&checkpoint={folder}/w@0.5.safetensors&std=0.5")
    assert (sized.image_size, sized.std) == (48, (0.5, 0.5, 0.5))


def test_escapes_in_a_spec(small: nn.Module, tmp_path: Path) -> None:
    file = tmp_path / "a&b,hf/c"
    file.parent.mkdir()
    torch.save(small.state_dict(), file)
    escaped = str(file).replace("&", "%26").replace(",", "%2C")
    both = load_committee(f"{SMALL}?checkpoint={escaped}@3,{SMALL}?random=0&num_classes=7@1")
    assert both.weights == (0.75, 0.25)
    assert both.members[0].fingerprint == fingerprint(small)


def test_a_tilde_is_the_home_folder(
    small: nn.Module, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    safetensors.torch.save_file(small.state_dict(), tmp_path / "w.safetensors")
    teacher = load_teacher(f"{SMALL}?checkpoint=~/w.safetensors", device="cpu")
    assert teacher.fingerprint == fingerprint(small)
    with pytest.raises(InputError, match=f"{tmp_path}/no is not a file"):
        load_teacher(f"{SMALL}?checkpoint=~/no")


def test_an_inception_checkpoint_goes_back_to_the_pretrained_inputs(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    torch.manual_seed(0)
    options = {"num_classes": 3, "aux_logits": False, "init_weights": False}
    made = torchvision.models.googlenet(weights=None, **options)
    torch.save(made.state_dict(), tmp_path / "w.pth")
    spec = f"torchvision/googlenet?checkpoint={tmp_path}/w.pth&image_size=64"
    with caplog.at_level("INFO", "ferkd"):
        ours = load_teacher(spec, device="cpu")
    assert ours.module.transform_input is True and "transform_input=false" in caplog.text
    scratch = load_teacher(f"{spec}&transform_input=false", device="cpu")
    assert scratch.module.transform_input is False
    with pytest.raises(InputError, match="has no transform_input, which only torchvision/inc"):
        load_teacher(f"{SMALL}?random=0&transform_input=true")


@pytest.mark.parametrize("where", ["import sys; sys.exit(0)", "def make(): exit(0)"])
def test_a_module_that_exits_is_an_error(where: str, importable: Path) -> None:
    (importable / "user_teacher.py").write_text(where + "\n")
    with pytest.raises(InputError, match=r"ended the program \(exit status 0\) instead of giving"):
        load_teacher("user_teacher:make")


def test_a_folder_of_hugging_face_without_a_preprocessor_needs_the_keys(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.ResNetConfig(embedding_size=8, hidden_sizes=[8], depths=[1], num_labels=2)
    transformers.ResNetForImageClassification(config).save_pretrained(tmp_path)
    with pytest.raises(InputError, match=r"no preprocessor_config.json .*image_size=224&mean="):
        load_teacher(f"hf/{tmp_path}")
    assert load_teacher(f"hf/{tmp_path}?image_size=32&mean=0.5&std=0.5").image_size == 32
