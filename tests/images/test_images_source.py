from __future__ import annotations

import os
import pickle
import shutil
import sys
import tarfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import fsspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pictures import write_noise

from ferkd import label
from ferkd.images import (
    FolderImages,
    decode,
    fingerprint,
    kinds,
    open_images,
    spelt_otherwise,
)
from ferkd.loading.crop_sources import match
from ferkd.system.errors import InputError

FLOWERS = Path(__file__).parents[3] / "shared" / "data" / "flowers" / "val"


def fill(root: Path, *names: str) -> Path:
    """Files whose content is their own name: listing and reading never look at pixels."""
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(name.encode())
    return root


# Sorted by code point over whole ids: '-' < '/' puts cat-2 before cat, capitals come first.
NAMES = (
    "cat-2/a.jpg",
    "cat/A.JPG",
    "cat/a.JPeG",
    "cat/a.png",
    "cat/deep/er/x.webp",
    "cat/my.photo.v2.jpg",
    "dog/žluť 狗.jpg",
    "élan/a.jpg",
)
TARGETS = (1, 0, 0, 0, 0, 0, 2, 3)  # classes sorted: cat, cat-2, dog, élan


def test_ids_targets_and_classes(tmp_path: Path) -> None:
    images = FolderImages(fill(tmp_path, *reversed(NAMES)))
    assert images.ids == NAMES
    assert images.class_names == ("cat", "cat-2", "dog", "élan")
    assert images.targets.dtype == np.int32
    assert images.targets.tolist() == list(TARGETS)
    assert len(images) == 8
    assert [images.read(i).decode() for i in range(8)] == list(NAMES)
    assert images.name == str(tmp_path)


def test_order_does_not_depend_on_the_system(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(tmp_path, *NAMES)
    real = os.scandir

    class Backwards:
        def __init__(self, path: str) -> None:
            with real(path) as entries:
                self.entries = sorted(entries, key=lambda e: e.name, reverse=True)

        def __enter__(self) -> list[os.DirEntry[str]]:
            return self.entries

        def __exit__(self, *_: object) -> None: ...

    monkeypatch.setattr(os, "scandir", Backwards)
    images = FolderImages(tmp_path)
    assert images.ids == NAMES
    assert images.targets.tolist() == list(TARGETS)


def test_hidden_and_other_files_are_passed_over(tmp_path: Path) -> None:
    fill(tmp_path, "a/x.jpg", "a/.y.jpg", "a/.thumbs/z.jpg", ".git/a/b.jpg", ".c.jpg")
    fill(tmp_path, "a/notes.txt", "a/jpg", "a/x.jpg.bak", "README.md", "a/x.json")
    assert FolderImages(tmp_path).ids == ("a/x.jpg",)
    assert FolderImages(tmp_path, targets=False).ids == ("a/x.jpg",)


def test_a_folder_named_like_an_image_is_a_folder(tmp_path: Path) -> None:
    images = FolderImages(fill(tmp_path, "a.jpg/x.jpg", "b/y.png/z.gif"))
    assert images.ids == ("a.jpg/x.jpg", "b/y.png/z.gif")
    assert images.class_names == ("a.jpg", "b")


@pytest.mark.parametrize("names", [("x.jpg", "y.png"), ("a/b/c.jpg", "d.jpg"), ("a/x.jpg",)])
def test_any_layout_without_targets(tmp_path: Path, names: tuple[str, ...]) -> None:
    (tmp_path / "empty").mkdir()
    images = FolderImages(fill(tmp_path, *names), targets=False)
    assert images.ids == names
    assert images.class_names == ()
    assert images.targets.tolist() == [-1] * len(names)
    assert images.targets.dtype == np.int32


def test_one_class_is_allowed(tmp_path: Path) -> None:
    assert FolderImages(fill(tmp_path, "a/x.jpg")).class_names == ("a",)


def test_empty_classes_are_named(tmp_path: Path) -> None:
    fill(tmp_path, "a/x.jpg", "b/notes.txt", "c/.hidden.jpg")
    (tmp_path / "d").mkdir()
    with pytest.raises(InputError, match=r"3 class folders \(b, c, d\) without images.*no-targets"):
        FolderImages(tmp_path)


@pytest.mark.parametrize("names", [("x.jpg", "y.png"), ("x.jpg", "y.png", "a/z.jpg")])
def test_images_outside_class_folders(tmp_path: Path, names: tuple[str, ...]) -> None:
    fill(tmp_path, *names)
    message = r"2 images \(x.jpg, y.png\) directly in this folder.*CLASS/NAME.jpg.*--no-targets"
    with pytest.raises(InputError, match=message):
        FolderImages(tmp_path)


def test_missing_empty_and_file(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"nowhere: there is no such folder"):
        FolderImages(tmp_path / "nowhere")
    with pytest.raises(InputError, match=r"no images in this folder.*\.jpg"):
        FolderImages(tmp_path)
    fill(tmp_path, "a.jpg")
    with pytest.raises(InputError, match=r"a\.jpg is a file: give the folder"):
        FolderImages(tmp_path / "a.jpg")
    with pytest.raises(InputError, match="empty text"):
        open_images("")


def test_links(tmp_path: Path) -> None:
    fill(tmp_path / "elsewhere", "pictures/1.jpg", "2.jpg")
    root = fill(tmp_path / "root", "a/x.jpg")
    (root / "a" / "link.png").symlink_to(tmp_path / "elsewhere" / "2.jpg")
    (root / "b").symlink_to(tmp_path / "elsewhere" / "pictures")
    images = FolderImages(root)
    assert images.ids == ("a/link.png", "a/x.jpg", "b/1.jpg")
    assert images.read(0) == b"2.jpg"
    assert images.class_names == ("a", "b")


@pytest.mark.parametrize("target", ["gone.jpg", "link.jpg"])
def test_links_to_nowhere(tmp_path: Path, target: str) -> None:
    fill(tmp_path, "a/x.jpg")
    (tmp_path / "a" / "link.jpg").symlink_to(target)
    with pytest.raises(InputError, match=r"a/link\.jpg is a link that leads nowhere"):
        FolderImages(tmp_path)


def test_links_in_a_circle(tmp_path: Path) -> None:
    fill(tmp_path, "a/x.jpg")
    (tmp_path / "a" / "up").symlink_to(tmp_path)
    with pytest.raises(InputError, match=r"a/up is a link back to a folder that holds it"):
        FolderImages(tmp_path)


@pytest.mark.skipif(sys.platform != "linux", reason="other systems refuse such file names")
def test_names_that_are_not_unicode(tmp_path: Path) -> None:
    fill(tmp_path, "a/x.jpg")
    Path(os.fsdecode(os.fsencode(tmp_path) + b"/a/\xff.jpg")).write_bytes(b"")
    with pytest.raises(InputError, match=r"'a/\\udcff\.jpg' is not valid Unicode.*Rename"):
        FolderImages(tmp_path)


@pytest.mark.skipif(sys.platform == "darwin", reason="macOS takes both spellings for one")
def test_composed_and_decomposed_names_stay_apart(tmp_path: Path) -> None:
    names = ("a/e\u0301.jpg", "a/\u00e9.jpg")
    images = FolderImages(fill(tmp_path, *names))
    assert images.ids == names
    assert [images.read(i).decode() for i in (0, 1)] == list(names)


def test_a_vanished_image_is_named(tmp_path: Path) -> None:
    images = FolderImages(fill(tmp_path, "a/x.jpg", "a/y.jpg"))
    (tmp_path / "a" / "y.jpg").unlink()
    assert images.read(0) == b"a/x.jpg"
    with pytest.raises(InputError, match=r"^a/y\.jpg: this image was listed .* no longer there"):
        images.read(1)
    shutil.rmtree(tmp_path / "a")
    with pytest.raises(InputError, match=r"^a/x\.jpg: "):
        images.read(0)


def test_pickle_and_another_working_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(tmp_path / "root", *NAMES)
    monkeypatch.chdir(tmp_path)
    images = FolderImages("root")
    monkeypatch.chdir("/")
    copy = pickle.loads(pickle.dumps(images))
    assert copy.ids == images.ids
    assert copy.class_names == images.class_names
    assert copy.name == "root"
    assert np.array_equal(copy.targets, images.targets)
    assert copy.read(7) == NAMES[7].encode()


def to_memory(root: Path, url: str) -> str:
    memory = fsspec.filesystem("memory")
    for path in root.rglob("*"):
        if path.is_file():
            memory.pipe_file(f"{url}/{path.relative_to(root).as_posix()}", path.read_bytes())
    return url


@pytest.mark.parametrize("slash", ["", "/"])
def test_remote_as_local(tmp_path: Path, slash: str) -> None:
    fill(tmp_path, *NAMES, "cat/.hidden.jpg", "cat/notes.txt", "readme.txt", ".git/a/b.jpg")
    url = to_memory(tmp_path, f"memory://{tmp_path.name}/train")
    local, remote = FolderImages(tmp_path), FolderImages(url + slash)
    assert remote.ids == local.ids == NAMES
    assert remote.class_names == local.class_names
    assert np.array_equal(remote.targets, local.targets)
    content = [local.read(i) for i in range(8)]
    assert [remote.read(i) for i in range(8)] == content
    copy = pickle.loads(pickle.dumps(remote))
    assert copy._files._opened == {}
    assert [copy.read(i) for i in range(8)] == content
    copy._files._opened = {(os.getpid() + 1, 0): (None, "")}  # as a forked worker inherits it
    assert copy.read(0) == content[0]


def test_remote_mistakes(tmp_path: Path) -> None:
    memory = fsspec.filesystem("memory")
    base = f"memory://{tmp_path.name}"
    with pytest.raises(InputError, match="there is no such folder"):
        FolderImages(f"{base}/nowhere")
    memory.pipe_file(f"{base}/a/x.jpg", b"1")
    memory.pipe_file(f"{base}/b/x.txt", b"2")
    with pytest.raises(InputError, match=r"1 class folder \(b\) without images"):
        FolderImages(base)
    with pytest.raises(InputError, match="is a file"):
        FolderImages(f"{base}/a/x.jpg")
    images = FolderImages(base, targets=False)
    memory.rm(f"{base}/a/x.jpg")
    with pytest.raises(InputError, match=r"^a/x\.jpg: "):
        images.read(0)
    with pytest.raises(InputError, match=r"nonsense://x cannot be opened"):
        FolderImages("nonsense://x")


def test_a_file_url_is_a_local_folder(tmp_path: Path) -> None:
    fill(tmp_path, *NAMES)
    images = FolderImages(tmp_path.as_uri())
    assert images.ids == NAMES
    assert images.read(6) == NAMES[6].encode()
    (tmp_path / "cat" / "gone.jpg").symlink_to("nowhere.jpg")
    with pytest.raises(InputError, match="leads nowhere"):
        FolderImages(tmp_path.as_uri())


def test_open_images(tmp_path: Path) -> None:
    fill(tmp_path, *NAMES)
    images = open_images(str(tmp_path))
    assert images.ids == NAMES
    assert open_images(images) is images
    with pytest.raises(InputError, match="open it with targets=False"):
        open_images(images, targets=False)
    bare = open_images(tmp_path, targets=False)
    assert bare.class_names == ()
    assert open_images(bare, targets=False) is bare


@pytest.mark.parametrize(
    ("names", "remedy"),
    [
        (("train/cat/a.jpg", "val/cat/a.jpg"), r"folders train, val .*{0}/train .*{0}/val for val"),
        (("Train/a.jpg", "test/a.jpg"), r"folders Train, test are named as the parts"),
        (("train/cat/a.jpg", "train/dog/b.jpg"), r"folders train are .*Give {0}/train for"),
        (("extra/cat/a.jpg", "train/cat/a.jpg", "val/cat/a.jpg"), r"folders train, val"),
    ],
)
def test_the_parts_of_a_data_set_are_not_its_classes(
    tmp_path: Path, names: tuple[str, ...], remedy: str
) -> None:
    fill(tmp_path, *names)
    with pytest.raises(InputError, match=remedy.format(tmp_path)):
        FolderImages(tmp_path)
    assert FolderImages(tmp_path, targets=False).ids == tuple(sorted(names))


@pytest.mark.parametrize(
    "names", [("car/1.jpg", "train/1.jpg"), ("train/1.jpg",), ("car/x/1.jpg", "train/x/1.jpg")]
)
def test_trains_are_a_class(tmp_path: Path, names: tuple[str, ...]) -> None:
    assert "train" in FolderImages(fill(tmp_path, *names)).class_names


@pytest.mark.skipif(sys.platform == "darwin", reason="macOS takes both spellings for one")
def test_classes_that_look_the_same_are_refused(tmp_path: Path) -> None:
    fill(tmp_path, "e\u0301/a.jpg", "\u00e9/a.jpg")
    with pytest.raises(InputError, match=r"'e\\u0301' and '\\xe9' look the same"):
        FolderImages(tmp_path)


def test_names_spelt_otherwise_are_told_apart() -> None:
    said = spelt_otherwise(["a.jpg", "e\u0301.jpg"], ["\u00e9.jpg", "a.jpg"])
    assert r"'e\u0301.jpg' and '\xe9.jpg' look the same" in said
    assert spelt_otherwise(["b.jpg", "e\u0301.jpg"], ["\u00e9.jpg", "a.jpg"]) == ""
    assert spelt_otherwise(["a.jpg"], ["a.jpg"]) == ""


@pytest.mark.skipif(sys.platform == "darwin", reason="macOS takes both spellings for one")
def test_labels_of_images_that_were_copied_with_other_accents(tmp_path: Path) -> None:
    for name, letter in (("here", "e\u0301"), ("there", "\u00e9")):
        write_noise(tmp_path / name, {f"{letter}/1.png": (20, 30), "x/2.png": (20, 30)})
    options = {"crops": 1, "image_size": 32, "check_agreement": False, "device": "cpu"}
    store = label(
        tmp_path / "here", "timm/resnet10t?random=1&num_classes=2", tmp_path / "s", **options
    )
    with pytest.raises(InputError, match=r"'e\\u0301' and '\\xe9' look the same.*convmv"):
        match(open_images(tmp_path / "there"), store)


@pytest.mark.parametrize("kind", ["zip", "tar", "dotted"])
@pytest.mark.parametrize("inside", ["", "train"])
def test_archives_keep_the_names_whole(tmp_path: Path, kind: str, inside: str) -> None:
    names = ("ant/1.jpg", "ant/deep/2.jpg", "bee/1.jpg")
    fill(tmp_path / "in" / inside, *names)
    if kind == "tar":
        with tarfile.open(tmp_path / "a.tar", "w") as archive:
            for path in (tmp_path / "in").iterdir():
                archive.add(path, path.name)
    else:  # a tar file of this function has names that begin with "./"
        kind = kind.replace("dotted", "tar")
        shutil.make_archive(str(tmp_path / "a"), kind, tmp_path / "in")
    images = FolderImages(f"{kind}://{inside}::file://{tmp_path}/a.{kind}")
    assert images.ids == names
    assert images.class_names == ("ant", "bee")
    with ThreadPoolExecutor(4) as pool:  # an archive's one handle is not shared by threads
        read = list(pool.map(images.read, [0, 1, 2] * 50))
    assert [data.decode() for data in read] == list(names) * 50
    assert pickle.loads(pickle.dumps(images)).read(2) == b"bee/1.jpg"


def test_kinds_without_their_plugin_are_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    fill(tmp_path, "a/1.jpg", "a/2.HEIC", "a/3.heif", "b/4.heic", "b/5.jpg", "b/.6.heic")
    monkeypatch.setattr(kinds, "_has", lambda plugin: False)
    images = FolderImages(tmp_path)
    assert images.ids == ("a/1.jpg", "b/5.jpg")
    assert images.unread == {".heic": 2, ".heif": 1}
    line = "3 images are passed over (2 .heic, 1 .heif): to read them, pip install pillow-heif"
    assert [record.getMessage() for record in caplog.records] == [f"{tmp_path}: {line}"]
    for path in (tmp_path / "a" / "1.jpg", tmp_path / "b" / "5.jpg"):
        path.unlink()
    with pytest.raises(InputError, match=r"no images .*pip install pillow-heif"):
        FolderImages(tmp_path)


def test_kinds_with_their_plugin_are_images(tmp_path: Path) -> None:
    pillow_heif = pytest.importorskip("pillow_heif")
    pixels = np.full((40, 60, 3), (200, 30, 30), np.uint8)
    pixels[:, :30] = (30, 30, 200)
    (tmp_path / "a").mkdir()
    pillow_heif.from_bytes("RGB", (60, 40), pixels.tobytes()).save(tmp_path / "a" / "x.heic")
    images = FolderImages(tmp_path)
    assert images.ids == ("a/x.heic",)
    assert images.unread == {}
    assert np.abs(decode(images.read(0)).astype(int) - pixels).mean() < 8


def test_fingerprint() -> None:
    # `printf abc | b2sum -l 64` prints d8bb14d833d59559: the first byte is the lowest
    assert fingerprint(b"abc") == 0x5995D533D814BBD8
    assert fingerprint(b"") != fingerprint(b"\0")


@settings(max_examples=25, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.text("aBé-. _0", min_size=1, max_size=4).filter(lambda s: s[0] != "." and s.strip()),
            st.text("aBé-. _0", min_size=1, max_size=4).filter(lambda s: s[0] != "." and s.strip()),
            st.sampled_from([".jpg", ".JPG", ".png"]),
        ),
        min_size=1,
        max_size=8,
        unique=True,
    )
)
def test_any_names(
    tmp_path_factory: pytest.TempPathFactory, parts: list[tuple[str, str, str]]
) -> None:
    names = {f"{folder}/{stem}{extension}" for folder, stem, extension in parts}
    images = FolderImages(fill(tmp_path_factory.mktemp("names"), *names))
    assert images.ids == tuple(sorted(names))
    for index, id in enumerate(images.ids):
        assert images.class_names[images.targets[index]] == id.split("/")[0]
        assert images.read(index).decode() == id


def test_real_photos() -> None:
    if not FLOWERS.is_dir():
        pytest.skip("the shared photos (../shared/data/flowers) are not here")
    images = FolderImages(FLOWERS)
    assert images.class_names == ("daisy", "dandelion", "roses", "sunflowers", "tulips")
    assert len(images) == 729
    assert images.read(0)[:2] == b"\xff\xd8"
