from __future__ import annotations

import os
import pickle
import shutil
import sys
from pathlib import Path

import fsspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ferkd.images import FolderImages, fingerprint, open_images
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
    assert copy._opened is None
    assert [copy.read(i) for i in range(8)] == content
    copy._opened = (os.getpid() + 1, None)  # as a forked worker inherits it
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


@pytest.mark.parametrize("spec", ["wds:s3://bucket/{0..9}.tar", "hf:imagenet-1k:train"])
def test_sources_of_later_versions(spec: str) -> None:
    with pytest.raises(InputError, match=r"not supported in this version.*folder"):
        open_images(spec)


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
