"""Images from tables, tar shards and lists: the same as from the folder that they were made of."""

from __future__ import annotations

import io
import json
import multiprocessing
import os
import pickle
import tarfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest
from pictures import write_noise

from ferkd import evaluate, label, train
from ferkd.images import FolderImages, ImageSource, open_images
from ferkd.images.sources import SOURCES
from ferkd.system.errors import InputError
from ferkd.training.recipe import Recipe

FLOWERS = Path(__file__).parents[3] / "shared" / "data" / "flowers" / "val"
CLASSES = ("1e3", "no", "null")  # names that YAML and pandas would take for something else


@pytest.fixture(autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The indexes of this test's shards, and what the data sets' library keeps."""
    place = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("FERKD_CACHE", str(place))
    if find_spec("datasets"):
        import datasets

        monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", place / "datasets")
    return place


@pytest.fixture
def folder(tmp_path: Path) -> FolderImages:
    names = [f"{name}/{i}.png" for name in CLASSES for i in range(3)]
    return FolderImages(write_noise(tmp_path / "folder", {n: (24, 32) for n in names}))


# --- the same images in each form -----------------------------------------------------------


def rows_of(source: ImageSource) -> Iterator[tuple[str, bytes, str]]:
    for index, image_id in enumerate(source.ids):
        yield image_id, source.read(index), source.class_names[source.targets[index]]


def as_parquet(source: ImageSource, place: Path) -> str:
    datasets = pytest.importorskip("datasets")
    features = datasets.Features(
        image=datasets.Image(), kind=datasets.ClassLabel(names=list(source.class_names)),
        name=datasets.Value("string"),
    )  # fmt: skip
    rows = [
        {"image": {"bytes": data, "path": None}, "kind": name, "name": image_id}
        for image_id, data, name in reversed(list(rows_of(source)))
    ]
    columns = {key: [row[key] for row in rows] for key in features}
    place.mkdir()
    table = datasets.Dataset.from_dict(columns, features=features)
    table.to_parquet(str(place / "train-00000-of-00001.parquet"))
    return f"hf:{place}?id=name"


def as_saved(source: ImageSource, place: Path) -> str:
    datasets = pytest.importorskip("datasets")
    parquet = as_parquet(source, place.with_name("table"))[3:].partition("?")[0]
    cache = str(place.with_name("arrow"))
    found = datasets.load_dataset("parquet", data_files=f"{parquet}/*.parquet", cache_dir=cache)
    datasets.DatasetDict(train=found["train"], test=found["train"].select([0])).save_to_disk(place)
    return f"hf:{place}:train?id=name&label=kind"


def as_shards(source: ImageSource, place: Path) -> str:
    webdataset = pytest.importorskip("webdataset")
    place.mkdir()
    rows = list(rows_of(source))
    for number in range(2):
        with webdataset.TarWriter(str(place / f"s-{number:03d}.tar")) as writer:
            for image_id, data, name in rows[number::2]:
                stem, _, ending = image_id.rpartition(".")
                writer.write({"__key__": stem, ending: data, "cls": name.encode(), "json": {}})
    return f"wds:{place}/s-{{000..001}}.tar"


def as_list(kind: str) -> Callable[[ImageSource, Path], str]:
    def write(source: ImageSource, place: Path) -> str:
        place.mkdir()
        (place / "pictures").symlink_to(Path(source.name).resolve())
        rows = [
            {"path": image_id, "label": name, "split": "train", "more": "a,\"b"}
            for image_id, _, name in rows_of(source)
        ]  # fmt: skip
        rows.append({"path": "elsewhere.png", "label": "x", "split": "val", "more": ""})
        if kind == "parquet":
            parquet = pytest.importorskip("pyarrow.parquet")
            import pyarrow

            parquet.write_table(pyarrow.Table.from_pylist(rows), place / "l.parquet")
        elif kind == "csv":
            import csv

            with (place / "l.csv").open("w", newline="") as file:
                writer = csv.DictWriter(file, list(rows[0]))
                writer.writeheader()
                writer.writerows(rows)
        else:
            (place / "l.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
        return f"list:{place}/l.{kind}?split=train&root={place}/pictures"

    return write


FORMS = {
    "parquet": as_parquet,
    "saved": as_saved,
    "shards": as_shards,
    **{f"list {kind}": as_list(kind) for kind in ("parquet", "csv", "jsonl")},
}


@pytest.mark.parametrize("form", FORMS)
def test_a_form_is_the_folder(form: str, folder: FolderImages, tmp_path: Path) -> None:
    found = open_images(FORMS[form](folder, tmp_path / "form"))
    assert found.ids == folder.ids
    assert found.class_names == CLASSES
    assert found.targets.dtype == np.int32
    assert found.targets.tolist() == folder.targets.tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    content = [folder.read(index) for index in range(9)]
    assert [found.read(index) for index in range(9)] == content
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(found.read, [*range(9)] * 20)) == content * 20
    copy = pickle.loads(pickle.dumps(found))
    assert [copy.read(index) for index in range(9)] == content
    with multiprocessing.get_context("fork").Pool(2) as processes:
        assert processes.map(found.read, range(9)) == content


@pytest.mark.parametrize("form", ["parquet", "shards", "list csv"])
def test_without_targets(form: str, folder: FolderImages, tmp_path: Path) -> None:
    found = open_images(FORMS[form](folder, tmp_path / "form"), targets=False)
    assert found.ids == folder.ids
    assert found.class_names == ()
    assert found.targets.tolist() == [-1] * 9


def test_flowers_have_the_same_crops_labels_and_targets_in_every_form(tmp_path: Path) -> None:
    if not FLOWERS.is_dir():
        pytest.skip("the shared photos (../shared/data/flowers) are not here")
    for name in ("daisy", "roses"):
        (tmp_path / "flowers" / name).mkdir(parents=True)
        for path in sorted((FLOWERS / name).iterdir())[:4]:
            (tmp_path / "flowers" / name / path.name).symlink_to(path)
    flowers = FolderImages(tmp_path / "flowers")
    options: dict[str, Any] = {
        "crops": 3, "image_size": 32, "top_k": None, "values": "f32", "device": "cpu"
    }  # fmt: skip
    teacher = "timm/resnet10t?random=1&num_classes=2"
    wanted = label(flowers, teacher, tmp_path / "labels", **options)
    for form, write in FORMS.items():
        spec = write(flowers, tmp_path / form)
        found = label(spec, teacher, tmp_path / f"{form}-labels", **options)
        assert list(found.ids) == list(wanted.ids)
        assert np.array_equal(found.images, wanted.images)  # sizes, targets, fingerprints
        rows = np.arange(8)[:, None], np.arange(3)
        assert np.array_equal(found.records(*rows), wanted.records(*rows)), form


def test_training_and_evaluation_are_those_of_the_folder(
    folder: FolderImages, tmp_path: Path
) -> None:
    lists, shards = as_list("csv")(folder, tmp_path / "list"), as_shards(folder, tmp_path / "tar")
    results = []
    for images, val in ((folder.name, folder.name), (shards, lists)):
        recipe = Recipe.model_validate(
            {
                "method": "hard",
                "data": {
                    "images": images, "val": val, "image_size": 32, "batch_size": 4, "workers": 0,
                    "cache": "disk", "cache_dir": str(tmp_path / "pixels"),
                },
                "student": {
                    "name": "timm/resnet10t", "pretrained": False,
                    "model_args": {"channels": [8, 8, 16, 16], "stem_width": 8},
                },
                "schedule": {"steps": 3},
                "device": "cpu",
            }
        )  # fmt: skip
        out = tmp_path / f"run-{len(results)}"
        train(recipe, out)
        found = evaluate(out, val, workers=0, device="cpu")
        results.append((found["nll"], found["per_class"]))
    assert results[0] == results[1]
    assert tuple(results[0][1]) == CLASSES


@pytest.mark.parametrize("what", ["demo", "distill"])
def test_commands_that_divide_a_folder_say_so(what: str, tmp_path: Path, command_line: Any) -> None:
    spec = ["--images", "hf:birds"] if what == "demo" else ["list:l.csv"]
    status, _, said = command_line(what, *spec, "--out", str(tmp_path / "o"))
    assert status == 2
    assert "is no folder, and" in said


# --- shards ---------------------------------------------------------------------------------


def tar(path: Path, *members: tuple[str, bytes]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as archive:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return path


def test_keys_with_dots_and_several_members(tmp_path: Path) -> None:
    path = tar(
        tmp_path / "s.tar",
        *[("v1.0/my.photo.v2.jpg", b"1"), ("v1.0/my.photo.v2.cls", b"cat\n")],
        *[("v1.0/my.other.jpg", b"2"), ("v1.0/my.other.cls", b"dog")],
        *[("a/7.jpg", b"3"), ("a/7.seg.png", b"4"), ("a/7.cls", b"cat"), ("a/7.json", b"{}")],
        *[("a/._7.jpg", b"x"), ("a/8.txt", b"no image")],
    )
    images = open_images(f"wds:{path}")
    assert images.ids == ("a/7.jpg", "v1.0/my.other.jpg", "v1.0/my.photo.v2.jpg")
    assert images.class_names == ("cat", "dog")
    assert images.targets.tolist() == [0, 1, 0]
    assert [images.read(i) for i in range(3)] == [b"3", b"2", b"1"]
    assert open_images(f"wds:{path}?image=seg.png").ids == ("a/7.seg.png",)


def test_a_sample_of_two_images_asks_which(tmp_path: Path) -> None:
    path = tar(tmp_path / "s.tar", ("7.jpg", b"1"), ("7.png", b"2"))
    with pytest.raises(InputError, match=r"sample 7 has several images \(7.jpg, 7.png\).*\?image="):
        open_images(f"wds:{path}")
    assert open_images(f"wds:{path}?image=png").ids == ("7.png",)


def test_numbers_are_classes_and_folders_are_where_nothing_else_is(tmp_path: Path) -> None:
    members = [("1.jpg", b"1"), ("1.cls", b"2"), ("2.jpg", b"2"), ("2.cls", b"0"), ("3.jpg", b"3")]
    path = tar(tmp_path / "s.tar", *members)
    images = open_images(f"wds:{path}")
    assert images.class_names == ("0", "1", "2")
    assert images.targets.tolist() == [2, 0, -1]
    (tmp_path / "names.txt").write_text("no\nnull\n1e3\n")
    named = open_images(f"wds:{path}?classes={tmp_path}/names.txt")
    assert named.class_names == ("no", "null", "1e3")
    assert named.targets.tolist() == [2, 0, -1]
    (tmp_path / "names.txt").write_text("no\nnull\n")
    with pytest.raises(InputError, match="'2' is none of the classes"):
        open_images(f"wds:{path}?classes={tmp_path}/names.txt")
    bare = tar(tmp_path / "bare.tar", ("b/1.jpg", b"1"), ("a/x/2.jpg", b"2"))
    assert open_images(f"wds:{bare}").class_names == ("a", "b")


@pytest.mark.parametrize("where", ["one", "two"])
def test_a_duplicated_key_is_named_with_its_shards(tmp_path: Path, where: str) -> None:
    second = [("a/1.jpg", b"2")]
    tar(tmp_path / "s-00.tar", ("a/1.jpg", b"1"), *(second if where == "one" else []))
    tar(tmp_path / "s-01.tar", ("a/2.jpg", b"1"), *(second if where == "two" else []))
    shards = r"s-00\.tar" if where == "one" else r"s-00\.tar and s-01\.tar"
    with pytest.raises(InputError, match=rf"a/1\.jpg stands there twice, in {shards}\. "):
        open_images(f"wds:{tmp_path}/s-{{00..01}}.tar")


@pytest.mark.parametrize("cut", [1, 300, 512, 700, 1024, 1100, 1500, 1536])
def test_a_truncated_shard_is_named(tmp_path: Path, cut: int) -> None:
    whole = tar(tmp_path / "whole.tar", ("a/1.jpg", b"1" * 400), ("a/2.jpg", b"2" * 800))
    # header 512, data 512, header 512, data 1024, then zeros
    (tmp_path / "s.tar").write_bytes(whole.read_bytes()[: 2560 - cut])
    with pytest.raises(InputError, match=r"s\.tar is truncated"):
        open_images(f"wds:{tmp_path}/s.tar")


def test_what_is_no_shard(tmp_path: Path) -> None:
    import gzip

    (tmp_path / "z.tar").write_bytes(gzip.compress(tar(tmp_path / "s.tar").read_bytes()))
    (tmp_path / "t.tar").write_bytes(b"text" * 1000)
    for name, says in (
        ("z", "compressed; unpack"),
        ("t", "damaged or no tar"),
        ("s", "holds no images"),
        ("gone", "no such shard"),
        ("s-{2..1}", "are 0 numbers"),
        ("s-*", r"\{000\.\.127\}"),
    ):
        with pytest.raises(InputError, match=says):
            open_images(f"wds:{tmp_path}/{name}.tar")


def test_the_index_is_made_once_and_anew_for_another_shard(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tar(tmp_path / "s.tar", ("a/1.jpg", b"1"))
    opened: list[Any] = []
    real = tarfile.open
    monkeypatch.setattr(tarfile, "open", lambda *a, **k: opened.append(1) or real(*a, **k))
    for _ in range(3):
        assert open_images(f"wds:{path}").ids == ("a/1.jpg",)
    assert len(opened) == 1
    (index,) = (cache / "shards").iterdir()
    index.write_bytes(b"[[")  # damaged: made again
    assert open_images(f"wds:{path}").ids == ("a/1.jpg",)
    assert len(opened) == 2
    old = open_images(f"wds:{path}")
    monkeypatch.undo()
    tar(path, ("a/2.jpg", b"12"))
    os.utime(path, ns=(1, 1))
    monkeypatch.setenv("FERKD_CACHE", str(cache))
    assert open_images(f"wds:{path}").ids == ("a/2.jpg",)
    path.write_bytes(b"")
    with pytest.raises(InputError, match=r"^a/1\.jpg: the shard s\.tar .* has changed"):
        old.read(0)


def test_shards_by_url(tmp_path: Path) -> None:
    path = tar(tmp_path / "s.tar", ("a/1.jpg", b"11"), ("a/1.cls", b"no"), ("b/2.jpg", b"222"))
    memory = fsspec.filesystem("memory")
    for number in (8, 9):
        memory.pipe_file(f"/{tmp_path.name}/s-{number:02d}.tar", path.read_bytes())
    with pytest.raises(InputError, match=r"a/1\.jpg stands there twice"):
        open_images(f"wds:memory://{tmp_path.name}/s-{{08..09}}.tar")
    images = open_images(f"wds:memory://{tmp_path.name}/s-08.tar")
    assert [images.read(i) for i in range(2)] == [b"11", b"222"]
    assert images.class_names == ("no",)
    with pytest.raises(InputError, match="no such shard"):
        open_images(f"wds:memory://{tmp_path.name}/s-07.tar")


# --- lists ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("path,label\n../x.jpg,a\n", r"'\.\./x\.jpg' leads out"),
        ("path,label\n/etc/x.jpg,a\n", "leads out of the list's folder"),
        ("path,label\nC:\\x.jpg,a\n", "leads out"),
        ("path,label\ns3://b/x.jpg,a\n", "leads out"),
        ("path,label\nx.jpg,a\n./x.jpg,b\n", r"path 'x\.jpg' stands there twice"),
        ("path,label\nx.jpg\n", "line 2: another number of values"),
        ("file,label\nx.jpg,a\n", r"column 'path' must name a file.*\?path="),
        ("path,split\nx.jpg,a\ny.jpg,b\n", r"lists the splits a, b; choose one by \?split=a"),
        ("path,label\n", "names no images"),
    ],
)
def test_lists_that_cannot_be_meant(tmp_path: Path, text: str, says: str) -> None:
    (tmp_path / "l.csv").write_text(text)
    with pytest.raises(InputError, match=says):
        open_images(f"list:{tmp_path}/l.csv")


@pytest.mark.parametrize("value", ["true", "1.5", "[1]"])
def test_labels_that_are_no_text(tmp_path: Path, value: str) -> None:
    (tmp_path / "l.jsonl").write_text(f'{{"path": "x.jpg", "label": {value}}}\n')
    with pytest.raises(InputError, match="neither text nor a whole number"):
        open_images(f"list:{tmp_path}/l.jsonl")


def test_a_list_without_labels_and_with_some(tmp_path: Path) -> None:
    (tmp_path / "l.csv").write_text("path\nb.jpg\na\\a.jpg\n")
    images = open_images(f"list:{tmp_path}/l.csv")
    assert images.ids == ("a/a.jpg", "b.jpg")
    assert images.class_names == ()
    (tmp_path / "l.csv").write_text("path,label\nb.jpg,7\na.jpg,\nc.jpg,1e3\n")
    images = open_images(f"list:{tmp_path}/l.csv")
    assert images.class_names == ("1e3", "7")
    assert images.targets.tolist() == [-1, 1, 0]
    with pytest.raises(InputError, match=r"^b\.jpg: .* no longer there"):
        images.read(1)
    with pytest.raises(InputError, match=r"no option 'spilt' here; the options are split"):
        open_images(f"list:{tmp_path}/l.csv?spilt=a&split=b")


# --- Hugging Face data sets -----------------------------------------------------------------


def test_row_numbers_are_ids_and_whole_numbers_classes(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    table = datasets.Dataset.from_dict(
        {"img": [{"bytes": b"a", "path": None}, {"bytes": b"b", "path": None}], "label": [2, None]}
    )
    table.save_to_disk(tmp_path / "d")
    images = open_images(f"hf:{tmp_path}/d")
    assert images.ids == ("000000000", "000000001")
    assert images.class_names == ("0", "1", "2")
    assert images.targets.tolist() == [2, -1]
    assert images.read(1) == b"b"


@pytest.mark.parametrize(
    ("rest", "says"),
    [
        (":val", "choose a split, as in .*:train; there are train"),
        ("?image=nothing", "no column 'nothing'; it has "),
        ("?id=nothing", "no column 'nothing' for ids"),
        ("?id=kind", "id '.*' stands there twice"),
        ("?image=name", "holds no encoded images|cannot be read|neither"),
        ("?label=image", "neither text nor a whole number"),
        ("/nowhere", "cannot be opened"),
    ],
)
def test_data_sets_that_cannot_be_meant(
    folder: FolderImages, tmp_path: Path, rest: str, says: str
) -> None:
    spec = as_parquet(folder, tmp_path / "d").partition("?")[0]
    with pytest.raises(InputError, match=says):
        open_images(spec + rest).read(0)


def test_an_absent_library_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(InputError, match=r"pip install 'ferkd\[hf-datasets\]'"):
        open_images(f"hf:{tmp_path}")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    (tmp_path / "l.parquet").write_bytes(b"PAR1")
    with pytest.raises(InputError, match=r"pip install 'ferkd\[exchange\]'"):
        open_images(f"list:{tmp_path}/l.parquet")


def test_a_prefix_may_be_added(monkeypatch: pytest.MonkeyPatch, folder: FolderImages) -> None:
    asked: list[tuple[str, bool]] = []

    def mine(spec: str, targets: bool) -> ImageSource:
        asked.append((spec, targets))
        return folder

    monkeypatch.setitem(SOURCES, "mine", mine)
    assert open_images("mine:a?b", targets=True) is folder
    assert asked == [("mine:a?b", True)]
