"""Stores, runs and exports elsewhere and back: verified, resumed, whole or not at all."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
from pathlib import Path

import fsspec
import pytest
from hub_server import Hub, hub
from stores import write_store

from ferkd.models.student import ModelConfig, Student, build_student, load_run
from ferkd.product import transfer
from ferkd.product.export import export
from ferkd.product.parcel import pack
from ferkd.product.transfer import pull, push
from ferkd.store import LabelStore
from ferkd.system import storage
from ferkd.system.errors import InputError
from ferkd.system.files import write_json
from ferkd.training.checkpoint import save_weights


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "run"
    folder.mkdir()
    name = "timm/test_resnet"
    save_weights(folder / "weights.safetensors", build_student(Student(name=name), 3))
    config = ModelConfig(
        architecture=name, num_classes=3, class_names=("a", "b", "c"), image_size=32
    )
    write_json(folder / "config.json", config.model_dump(mode="json"))
    write_json(folder / "result.json", {"top1": 0.5})
    (folder / "checkpoint.pt").write_bytes(b"stays at home")
    return folder


@pytest.fixture(scope="module")
def model(run: Path) -> Path:
    to = run.parent / "model"
    export(run, to)
    return to


@pytest.fixture
def place(tmp_path: Path) -> str:
    """A URL of fsspec's file system in memory, empty."""
    url = f"memory://{tmp_path.name}"
    yield url
    system, root = fsspec.url_to_fs(url)
    if system.exists(root):
        system.rm(root, recursive=True)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def without(found: dict[str, bytes], *names: str) -> dict[str, bytes]:
    return {name: data for name, data in found.items() if name not in names}


def test_a_run_to_a_folder_and_back(run: Path, tmp_path: Path) -> None:
    told = push(run, tmp_path / "there")
    assert (told["kind"], told["files"]) == ("run", 3)
    assert set(contents(tmp_path / "there")) == {
        *("weights.safetensors", "config.json", "result.json", "ferkd.json")
    }
    pull(tmp_path / "there", tmp_path / "back")
    assert contents(tmp_path / "back") == without(contents(run), "checkpoint.pt")
    assert load_run(tmp_path / "back")[1].class_names == ("a", "b", "c")
    pull(tmp_path / "there", tmp_path / "back")  # is there already
    assert {p.name for p in tmp_path.iterdir()} == {"there", "back"}  # no trace beside them


def test_an_export_to_a_url_and_back(model: Path, place: str, tmp_path: Path) -> None:
    assert push(model, place)["kind"] == "export"
    again = storage.info(f"{place}/model.safetensors")
    push(model, place)  # the very same: nothing is sent
    assert storage.info(f"{place}/model.safetensors")["created"] == again["created"]
    told = pull(place, tmp_path / "back")
    assert told["bytes"] == sum(map(len, contents(model).values()))
    assert contents(tmp_path / "back") == contents(model)


def test_a_store_to_a_folder_to_a_url_and_back(place: str, tmp_path: Path) -> None:
    store = write_store(tmp_path / "store")
    for to in (tmp_path / "copy", place):
        assert push(tmp_path / "store", to)["kind"] == "store"
    told = pull(place, tmp_path / "back")
    assert told["files"] == len(store.manifest.files)
    assert pull(tmp_path / "copy", tmp_path / "more")["kind"] == "store"
    for name in ("back", "copy", "more"):
        assert contents(tmp_path / name) == contents(tmp_path / "store")
        assert LabelStore.open(tmp_path / name).manifest == store.manifest


def test_an_interrupted_push_goes_on_and_is_nothing_until_then(
    run: Path, place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent, whole = [], transfer.upload

    def upload(folder: Path, url: str, file: object, limit: int = 2) -> None:
        if len(sent) == limit:
            raise KeyboardInterrupt
        sent.append(file.name)
        whole(folder, url, file)

    monkeypatch.setattr(transfer, "upload", upload)
    with pytest.raises(KeyboardInterrupt):
        push(run, place)
    assert sent == ["config.json", "result.json"]
    with pytest.raises(InputError, match="holds an unfinished push; repeat it"):
        pull(place, tmp_path / "back")
    assert not (tmp_path / "back").exists()
    created = storage.info(f"{place}/config.json")["created"]
    monkeypatch.setattr(transfer, "upload", whole)
    push(run, place)
    assert storage.info(f"{place}/config.json")["created"] == created  # not sent again
    assert storage.info(f"{place}/unfinished.json") is None
    pull(place, tmp_path / "back")
    assert contents(tmp_path / "back") == without(contents(run), "checkpoint.pt")


def test_damage_on_the_way_is_refused_and_a_repeated_pull_goes_on(
    run: Path, place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    push(run, place)
    good = storage.read(f"{place}/weights.safetensors")
    bad = bytearray(good)
    bad[-1] ^= 1
    storage.write(f"{place}/weights.safetensors", bytes(bad))
    with pytest.raises(InputError, match=r"weights\.safetensors cannot be fetched: its SHA-256"):
        pull(place, tmp_path / "back")
    assert not (tmp_path / "back").exists()
    storage.write(f"{place}/weights.safetensors", good)
    fetched, download = [], transfer.download
    monkeypatch.setattr(
        transfer,
        "download",
        lambda url, file, part: fetched.append(file.name) or download(url, file, part),
    )
    pull(place, tmp_path / "back")
    assert fetched == ["weights.safetensors"]
    assert {p.name for p in tmp_path.iterdir()} == {"back"}


def test_another_thing_is_replaced_when_asked_for_alone(
    run: Path, model: Path, place: str, tmp_path: Path
) -> None:
    for to in (place, tmp_path / "there"):
        push(model, to)
        with pytest.raises(InputError, match="another run or export; replace it"):
            push(run, to)
        push(run, to, overwrite=True)
    assert storage.info(f"{place}/model.safetensors") is None  # what the run lacks is gone
    pull(place, tmp_path / "back")
    with pytest.raises(InputError, match="another run or export; replace it"):
        pull(model, tmp_path / "back")
    pull(model, tmp_path / "back", overwrite=True)
    assert contents(tmp_path / "back") == contents(model)
    (tmp_path / "back" / "mine.txt").write_text("precious")
    with pytest.raises(InputError, match="holds other files"):
        pull(place, tmp_path / "back", overwrite=True)
    storage.write(f"{place}-other/config.json", b"{}")
    with pytest.raises(InputError, match=r"holds a file config\.json that no such push left"):
        push(run, f"{place}-other")


def test_what_a_killed_pull_has_put_aside_hinders_no_other(
    run: Path, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed at its last act, when the new one is in place and the old one not yet removed."""
    back = tmp_path / "back"
    pull(run, back)
    rmtree = shutil.rmtree

    def killed(path: object, **options: object) -> None:
        if str(path).endswith(".partial"):
            os.kill(os.getpid(), signal.SIGKILL)
        rmtree(path, **options)

    monkeypatch.setattr(shutil, "rmtree", killed)
    child = os.fork()
    if not child:
        pull(model, back, overwrite=True)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    monkeypatch.undo()
    assert contents(back) == contents(model)
    pull(run, back, overwrite=True)
    pull(model, back, overwrite=True)
    assert contents(back) == contents(model)
    assert {p.name for p in tmp_path.iterdir()} == {"back"}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"name": "../evil"}, r"names '\.\./evil', which is no file of its kind"),
        ({"name": "/etc/passwd"}, "which is no file of its kind"),
        ({"name": "checkpoint.pt"}, "which is no file of its kind"),
        ({"sha256": "0"}, "damaged or of another version"),
        ({"size": -1}, "damaged or of another version"),
        ({"name": "result.json"}, "which is no file of its kind"),  # twice
    ],
)
def test_hostile_listings_are_refused(
    run: Path, place: str, tmp_path: Path, change: dict[str, object], message: str
) -> None:
    push(run, place)
    listing = json.loads(storage.read(f"{place}/ferkd.json"))
    listing["files"][0] |= change
    storage.write(f"{place}/ferkd.json", json.dumps(listing).encode())
    with pytest.raises(InputError, match=message):
        pull(place, tmp_path / "inside" / "back")
    assert not (tmp_path / "inside").exists()


def test_what_is_nothing_to_push_or_pull(
    run: Path, model: Path, place: str, tmp_path: Path
) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="neither a label store nor a run nor an exported model"):
        push(tmp_path / "empty", place)
    with pytest.raises(InputError, match="does not exist"):
        push(tmp_path / "nowhere", place)
    shutil.copytree(run, tmp_path / "unfinished")
    (tmp_path / "unfinished" / "weights.safetensors").unlink()
    with pytest.raises(InputError, match="not finished"):
        push(tmp_path / "unfinished", place)
    shutil.copytree(model, tmp_path / "edited")
    (tmp_path / "edited" / "labels.txt").write_text("c\nb\na\n")
    with pytest.raises(InputError, match="edited by hand or is damaged"):
        push(tmp_path / "edited", place)
    (tmp_path / "empty" / "distill.json").write_text("{}")
    with pytest.raises(InputError, match=r"whole distillation; give one of its parts: .*model"):
        push(tmp_path / "empty", place)
    with pytest.raises(InputError, match="nothing that ferkd push left"):
        pull(place, tmp_path / "back")
    with pytest.raises(InputError, match="where it already is"):
        push(run, run)


def test_the_commands(run: Path, place: str, tmp_path: Path, command_line) -> None:
    status, out, _ = command_line("push", run, place, "--json")
    assert status == 0 and json.loads(out)["files"] == 3
    status, out, _ = command_line("pull", place, "--out", tmp_path / "back")
    assert status == 0 and out.startswith(f"run pulled into {tmp_path / 'back'} (3 files, ")
    status, _, err = command_line("pull", f"{place}-not", "--out", tmp_path / "more")
    assert status == 2 and "nothing that ferkd push left" in err


# The Hugging Face Hub: its real client, before a stand-in of its HTTP interface on loopback. The
# hub itself was not reached.


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Hub:
    constants = pytest.importorskip("huggingface_hub").constants
    from huggingface_hub import HfFileSystem

    with hub() as server:
        monkeypatch.setattr(constants, "ENDPOINT", server.url)
        template = server.url + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setenv("HF_TOKEN", "hf_of_a_test")
        HfFileSystem.clear_instance_cache()
        yield server
        HfFileSystem.clear_instance_cache()


def forget() -> None:
    """What another process would not know: the client's listings."""
    from huggingface_hub import HfFileSystem

    HfFileSystem.clear_instance_cache()


def test_an_export_to_the_hub_and_back(stand_in: Hub, model: Path, run: Path, tmp_path) -> None:
    push(model, "hf://me/flowers")
    held = stand_in.repos["models/me/flowers"]
    assert without(held, ".gitattributes", "ferkd.json") == contents(model)
    assert stand_in.private["models/me/flowers"] and stand_in.commits["models/me/flowers"] == 1
    forget()
    push(model, "hf://me/flowers")  # the very same: no commit
    assert stand_in.commits["models/me/flowers"] == 1
    pull("hf://me/flowers", tmp_path / "back")
    assert contents(tmp_path / "back") == contents(model)
    with pytest.raises(InputError, match="holds another one already; replace it"):
        push(run, "hf://me/flowers")
    push(run, "hf://me/flowers", overwrite=True)
    forget()
    assert "model.safetensors" not in stand_in.repos["models/me/flowers"]
    assert pull("hf://me/flowers", tmp_path / "run")["kind"] == "run"
    held = stand_in.repos["models/me/flowers"]
    stand_in.tampered["config.json"] = held["config.json"].replace(b"32", b"64")
    with pytest.raises(InputError, match=r"config\.json cannot be fetched: its SHA-256"):
        pull("hf://me/flowers", tmp_path / "bad")
    assert not (tmp_path / "bad").exists()


def test_a_store_to_a_data_set_of_the_hub_and_back(stand_in: Hub, tmp_path: Path) -> None:
    write_store(tmp_path / "store")
    push(tmp_path / "store", "hf://datasets/me/labels/r50", public=True)
    assert not stand_in.private["datasets/me/labels"]
    forget()
    assert pull("hf://datasets/me/labels/r50", tmp_path / "back")["kind"] == "store"
    assert contents(tmp_path / "back") == contents(tmp_path / "store")
    with pytest.raises(InputError, match="is no place on the Hub; write hf://OWNER/NAME"):
        push(tmp_path / "store", "hf://labels")
    with pytest.raises(InputError, match="nothing that ferkd push left"):
        pull("hf://me/nothing", tmp_path / "none")


def test_the_listing_counts_what_lies_there(run: Path) -> None:
    parcel = pack(run)
    listed = {file.name: file.sha256 for file in parcel.files}
    assert listed == {
        name: hashlib.sha256((run / name).read_bytes()).hexdigest()
        for name in ("config.json", "result.json", "weights.safetensors")
    }
