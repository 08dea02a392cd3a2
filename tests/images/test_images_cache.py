"""The decoded cache: its bytes are known beforehand, bounded, shared, and checked against files."""

from __future__ import annotations

import io
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from pictures import write_noise
from PIL import Image

from ferkd.images import Pictures, PixelCache, decode, fingerprint, open_images
from ferkd.loading.crop_sources import FreshCrops
from ferkd.loading.loader import Loader
from ferkd.system.errors import InputError

ENTRY = 32  # bytes of bookkeeping an image: a 64-bit fingerprint and six 32-bit numbers


@pytest.fixture
def folder(tmp_path) -> Path:
    sizes = {f"{'ab'[i % 2]}/ü{i}.jpg": (20 + i, 40) for i in range(6)}
    return write_noise(tmp_path / "images", sizes)


def pixels_of(folder: Path) -> list[np.ndarray]:
    source = open_images(folder)
    return [decode(source.read(i)) for i in range(len(source))]


def opened(pictures: Pictures) -> list[np.ndarray]:
    return [pictures.open(i).pixels()[0].copy() for i in range(len(pictures.source))]


def test_the_need_is_the_sum_of_the_images_pixels_and_is_kept_to(folder):
    source = open_images(folder)
    cache = PixelCache(source, "ram")
    assert cache.need.bytes == sum((20 + i) * 40 * 3 for i in range(6)) + 6 * ENTRY
    assert "6 files take 16.4 kB of memory" in cache.describe() and "0 kept" in cache.describe()
    pictures = Pictures(source, cache=cache)
    first, second = opened(pictures), opened(pictures)
    for expected, one, two in zip(pixels_of(folder), first, second, strict=True):
        assert (one == expected).all() and (two == expected).all()
    assert "6 kept" in cache.describe()


def test_a_second_visit_reads_no_file(folder):
    source = open_images(folder)
    pictures = Pictures(source, cache=PixelCache(source, "ram"))
    first = opened(pictures)
    for path in folder.glob("*/*.jpg"):
        path.unlink()
    assert all((a == b).all() for a, b in zip(first, opened(pictures), strict=True))


def test_images_that_do_not_fit_are_refused_with_the_numbers(folder, tmp_path):
    source = open_images(folder)
    with pytest.raises(InputError, match=r"6 files take about .* more than the 1 kB of memory"):
        PixelCache(source, "ram", limit=1000)
    close = PixelCache(source, "ram").need.bytes - 1
    with pytest.raises(InputError, match=r"6 files take 16\.4 kB, more than the 16\.4 kB"):
        PixelCache(source, "ram", limit=close)
    place = tmp_path / "cache"
    with pytest.raises(InputError, match="disk space"):
        PixelCache(source, "disk", limit=1000, folder=place)
    assert not place.exists()
    with pytest.raises(InputError, match="cache_side is 0"):
        PixelCache(source, "ram", max_side=0)


def test_a_capped_copy_keeps_the_aspect_and_the_whole_size(folder):
    source = open_images(folder)
    cache = PixelCache(source, "ram", max_side=10)
    # The shorter side, 20 + i, becomes 10; the longer one 40 * 10 / (20 + i), rounded.
    assert cache.need.bytes == 6 * ENTRY + sum(10 * round(400 / (20 + i)) * 3 for i in range(6))
    pictures = Pictures(source, cache=cache)
    for i, whole in enumerate(pixels_of(folder)):
        picture = pictures.open(i)
        kept, scale = picture.pixels()
        assert (picture.height, picture.width) == whole.shape[:2]
        assert kept.shape[0] == 10 and scale == (whole.shape[0] / 10, 40 / kept.shape[1])
        assert (kept == cv2.resize(whole, kept.shape[1::-1], interpolation=cv2.INTER_AREA)).all()


def test_a_disk_cache_is_found_again_and_a_changed_file_is_not_taken_from_it(folder, tmp_path):
    source = open_images(folder)
    place = tmp_path / "cache"
    first = opened(Pictures(source, cache=PixelCache(source, "disk", folder=place)))
    again = PixelCache(source, "disk", folder=place)
    assert "6 kept" in again.describe() and len(list(place.iterdir())) == 1
    path = folder / source.ids[2]
    changed = np.zeros(first[2].shape, np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(changed).save(buffer, "JPEG")
    path.write_bytes(buffer.getvalue())
    found = opened(Pictures(source, cache=again))
    assert (found[2] == 0).all()
    assert all((found[i] == first[i]).all() for i in (0, 1, 3, 4, 5))
    # The new pixels have taken the old ones' place.
    assert again.get(2, path.read_bytes()).fingerprint == fingerprint(path.read_bytes())


def test_a_flipped_byte_in_a_disk_cache_is_decoded_anew(folder, tmp_path):
    source = open_images(folder)
    cache = PixelCache(source, "disk", folder=tmp_path)
    first = opened(Pictures(source, cache=cache))
    assert cache.path is not None
    data = bytearray(cache.path.read_bytes())
    data[-1] ^= 1  # of the last image
    cache.path.write_bytes(data)
    again = opened(Pictures(source, cache=PixelCache(source, "disk", folder=tmp_path)))
    assert all((a == b).all() for a, b in zip(first, again, strict=True))


def test_other_settings_and_images_have_caches_of_their_own(folder, tmp_path):
    source = open_images(folder)
    paths = {PixelCache(source, "disk", folder=tmp_path, max_side=s).path for s in (None, 10, 12)}
    (folder / "a" / "new.jpg").write_bytes((folder / source.ids[0]).read_bytes())
    paths.add(PixelCache(open_images(folder), "disk", folder=tmp_path).path)
    assert len(paths) == 4


def test_an_image_that_is_not_what_its_header_says_is_just_not_kept(folder):
    """A PNG's orientation may stand behind its pixels; other sides of the same area are kept."""
    source = open_images(folder)
    sizes = np.array([p.shape[:2] for p in pixels_of(folder)])
    turned = sizes.copy()
    turned[1] = turned[1][::-1]
    cache = PixelCache(source, "ram", sizes=turned)
    assert (opened(Pictures(source, cache=cache))[1] == pixels_of(folder)[1]).all()
    wrong = sizes.copy()
    wrong[1] = (3, 3)
    cache = PixelCache(source, "ram", sizes=wrong)
    assert (opened(Pictures(source, cache=cache))[1] == pixels_of(folder)[1]).all()
    assert "5 kept" in cache.describe()


def other_images(folder: Path, place: Path) -> Path:
    """Black images with the names and sizes of those in ``folder``."""
    for path in folder.glob("*/*.jpg"):
        black = np.zeros_like(decode(path.read_bytes()))
        copy = place / path.relative_to(folder)
        copy.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(black).save(copy, "JPEG")
    return place


def test_two_folders_with_the_same_names_and_sizes_do_not_share_pixels(folder, tmp_path):
    one, two = open_images(folder), open_images(other_images(folder, tmp_path / "other"))
    first = Pictures(one, cache=PixelCache(one, "disk", folder=tmp_path / "c"))
    second = Pictures(two, cache=PixelCache(two, "disk", folder=tmp_path / "c"))
    before = opened(first)
    assert all((pixels == 0).all() for pixels in opened(second))
    assert all((a == b).all() for a, b in zip(before, opened(first), strict=True))


def test_a_running_job_notices_that_another_run_has_put_a_changed_files_pixels(folder, tmp_path):
    source = open_images(folder)
    running = Pictures(source, cache=PixelCache(source, "disk", folder=tmp_path / "c"))
    opened(running)
    other_images(folder, folder)  # all files change
    opened(Pictures(source, cache=PixelCache(source, "disk", folder=tmp_path / "c")))
    # It looks at the files again and shows what they hold now, with their fingerprints.
    for i in range(6):
        picture = running.open(i)
        assert (picture.pixels()[0] == 0).all()
        assert picture.fingerprint == fingerprint(source.read(i))


def test_a_cache_of_other_images_or_another_orientation_is_refused(folder, tmp_path):
    one, two = open_images(folder), open_images(other_images(folder, tmp_path / "other"))
    with pytest.raises(InputError, match="made for other images"):
        Pictures(two, cache=PixelCache(one, "ram"))
    with pytest.raises(InputError, match="exif=False"):
        Pictures(one, exif=False, cache=PixelCache(one, "ram"))


@pytest.mark.parametrize("field", ["height", "rows", "fingerprint", "crc"])
def test_a_damaged_entry_is_not_believed(folder, tmp_path, field):
    source = open_images(folder)
    first = opened(Pictures(source, cache=PixelCache(source, "disk", folder=tmp_path)))
    damaged = PixelCache(source, "disk", folder=tmp_path)
    damaged._entries[field][3] += 1
    picture = Pictures(source, cache=damaged).open(3)
    assert (picture.height, picture.width) == first[3].shape[:2]
    assert (picture.pixels()[0] == first[3]).all()


def test_a_link_in_the_caches_place_is_not_followed(folder, tmp_path):
    source = open_images(folder)
    path = PixelCache(source, "disk", folder=tmp_path / "c").path
    path.unlink()
    (tmp_path / "precious").write_bytes(b"precious")
    path.symlink_to(tmp_path / "precious")
    with pytest.raises(InputError, match="cannot be made"):
        PixelCache(source, "disk", folder=tmp_path / "c")
    assert (tmp_path / "precious").read_bytes() == b"precious"


def test_a_cache_folder_that_is_a_file_is_named(folder, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"file.* cannot be (made|used).*"):
        PixelCache(open_images(folder), "disk", folder=tmp_path / "file")


@pytest.mark.parametrize("kind", ["ram", "disk"])
@pytest.mark.parametrize("workers", [(0, "threads"), (2, "threads"), (2, "processes")])
def test_batches_are_the_same_with_and_without_a_cache(folder, tmp_path, kind, workers):
    source = open_images(folder)
    options = {"batch_size": 6, "crops_per_image": 2, "image_size": 12}
    # A cache keeps whole images, so nothing may be decoded small on the other side.
    plain = Loader(source, FreshCrops(source), **options, scaled_decoding=False)
    expected = list(plain.batches(0, 6))
    cache = PixelCache(source, kind, folder=tmp_path / "c")
    count, worker_kind = workers
    options |= {"workers": count, "worker_kind": worker_kind}
    cached = Loader(source, FreshCrops(source), **options, cache=cache)
    found = list(cached.batches(0, 6))
    for one, two in zip(expected, found, strict=True):
        assert torch.equal(one.images, two.images) and torch.equal(one.targets, two.targets)
    # What the workers decoded is kept for this process too.
    assert "6 kept" in cache.describe()
    for path in folder.glob("*/*.jpg"):
        path.unlink()
    if kind == "ram":
        for one, two in zip(expected, cached.batches(0, 6), strict=True):
            assert torch.equal(one.images, two.images)


def test_only_a_disk_cache_can_be_sent_to_another_process(folder, tmp_path):
    import pickle

    source = open_images(folder)
    with pytest.raises(TypeError, match="forked"):
        pickle.dumps(PixelCache(source, "ram"))
    cache = PixelCache(source, "disk", folder=tmp_path)
    first = opened(Pictures(source, cache=cache))
    sent = pickle.dumps(cache)
    assert len(sent) < 5000  # its settings, not its pixels
    again = pickle.loads(sent)
    assert all(
        (a == b).all() for a, b in zip(first, opened(Pictures(source, cache=again)), strict=True)
    )
