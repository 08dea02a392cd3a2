"""Signals: added to a finished store, dropped, copied, published and fetched alone."""

from __future__ import annotations

import fsspec
import numpy as np
import pytest
import torch
from signals import OPTIONS, add, teacher
from stores import bytes_of, write_store

from ferkd.labelling.run import label
from ferkd.labelling.verify import verify_store
from ferkd.store import LabelStore, adding
from ferkd.store.adding import copy_signal, drop
from ferkd.store.claims import locked
from ferkd.store.features import FeatureFormat
from ferkd.store.merge import combine, merge
from ferkd.store.publish import fetch, publish
from ferkd.store.sharing import Shard, SharedSignalWriter
from ferkd.system.errors import InputError


def test_a_signal_is_added_without_touching_other_bytes(images, store, tmp_path):
    before = bytes_of(store)
    with_two = add(images, store, "second", top_k=2)
    after = bytes_of(store)
    assert {name for name in after if after[name] != before.get(name)} == {
        "manifest.json",
        "second-00000.npy",
    }
    assert list(with_two.manifest.signals) == ["labels", "second"]
    assert verify_store(store, images=images).ok
    # What labelling with that teacher from the start gives.
    alone = label(images, teacher(1), tmp_path / "alone", crops=3, top_k=2, **OPTIONS)
    assert (alone.folder / "labels-00000.npy").read_bytes() == after["second-00000.npy"]
    rows, crops = np.arange(5)[:, None], np.arange(3)
    assert torch.equal(
        LabelStore(f"{store}#second").labels(rows, crops).log_probs,
        alone.labels(rows, crops).log_probs,
    )
    with pytest.raises(InputError, match=r"several signals.*labels, second.*choose one"):
        LabelStore(store).labels(0, 0)
    with pytest.raises(InputError, match=r"no signal 'third'.*has labels \(labels\), second"):
        LabelStore(f"{store}#third")


def test_a_dropped_signal_leaves_the_store_as_it_was(images, store):
    before = bytes_of(store)
    add(images, store, "second", top_k=2)
    drop(store, "second")
    assert bytes_of(store) == before
    with pytest.raises(InputError, match="no signal 'second'"):
        drop(store, "second")


def test_a_copied_signal_is_the_same_bytes_and_belongs_to_the_same_crops(images, store, tmp_path):
    other = label(images, teacher(1), tmp_path / "o", crops=3, top_k=2, **OPTIONS)
    copied = copy_signal(other, "labels", store, "theirs")
    assert (store / "theirs-00000.npy").read_bytes() == (
        other.folder / "labels-00000.npy"
    ).read_bytes()
    assert copied.settings.teacher["spec"] == "seed 1" and verify_store(store).ok
    seeded = label(images, teacher(1), tmp_path / "x", crops=3, seed=7, top_k=2, **OPTIONS)
    with pytest.raises(InputError, match="other images or crops"):
        copy_signal(seeded, "labels", store, "wrong")


def test_a_killed_addition_leaves_a_readable_store_and_is_continued(images, store):
    whole = bytes_of(add(images, store, "second", top_k=2).folder)
    drop(store, "second")
    before = bytes_of(store)

    class Killed(BaseException):
        pass

    for part in (1, 2):

        def progress(now, part=part) -> None:
            if now.parts == part:
                raise Killed

        with pytest.raises(Killed):
            label(
                images, teacher(1), store, top_k=2, into=True, signal="second",
                resume=part > 1, progress=progress, **OPTIONS,
            )  # fmt: skip
        assert LabelStore(store).labels(4, 2).num_classes == 4  # readable as it was
        assert {name: data for name, data in bytes_of(store).items() if name in before} == before
    with pytest.raises(InputError, match=r"holds a signal second already.*--resume"):
        add(images, store, "second", top_k=2)
    with pytest.raises(InputError, match=r"begun with other settings.*record.k"):
        add(images, store, "second", top_k=1, resume=True)
    add(images, store, "second", top_k=2, resume=True)
    assert bytes_of(store) == whole


def test_a_replaced_signal_is_the_new_one(images, store):
    add(images, store, "second", seed=1, top_k=2)
    add(images, store, "second", seed=2, top_k=1, overwrite=True)
    assert LabelStore(f"{store}#second").settings.teacher["spec"] == "seed 2"
    assert verify_store(store).ok


def test_a_committee_is_a_signal_computed_from_others(images, store):
    add(images, store, "second", top_k=None, values="f32")
    add(images, store, "first", seed=0, top_k=None, values="f32")
    both = merge([f"{store}#first", f"{store}#second"], store, signal="both", into=True)
    assert list(both.manifest.signals) == ["both", "first", "labels", "second"]
    rows, crops = np.arange(5)[:, None], np.arange(3)
    first, second = (LabelStore(f"{store}#{n}").labels(rows, crops) for n in ("first", "second"))
    expected = (first.dense() + second.dense()) / 2  # by hand: the mean of probabilities
    got = LabelStore(f"{store}#both").labels(rows, crops).dense()
    assert torch.allclose(got, expected, atol=1e-5)
    assert torch.allclose(got, combine([first, second], [1, 1]).dense(), atol=1e-5)


def before_the_lock(monkeypatch, act) -> None:
    """Have ``act`` done by another process at the last moment before the next lock is taken."""

    def late(folder):
        monkeypatch.undo()
        act()
        return locked(folder)

    monkeypatch.setattr(adding, "locked", late)


def test_a_signal_that_comes_while_another_goes_stays(images, store, tmp_path, monkeypatch):
    other = label(images, teacher(1), tmp_path / "o", crops=3, top_k=2, **OPTIONS)
    add(images, store, "second", top_k=2)
    before_the_lock(monkeypatch, lambda: copy_signal(other, "labels", store, "third"))
    drop(store, "second")
    assert list(LabelStore(store).manifest.signals) == ["labels", "third"]
    assert verify_store(store).ok


def test_two_copies_under_one_name_do_not_replace_each_other(images, store, tmp_path, monkeypatch):
    first = label(images, teacher(1), tmp_path / "o", crops=3, top_k=2, **OPTIONS)
    later = label(images, teacher(2), tmp_path / "l", crops=3, top_k=2, **OPTIONS)
    before_the_lock(monkeypatch, lambda: copy_signal(first, "labels", store, "theirs"))
    with pytest.raises(InputError, match="holds a signal theirs already"):
        copy_signal(later, "labels", store, "theirs")
    assert LabelStore(f"{store}#theirs").settings.teacher["spec"] == "seed 1"
    assert verify_store(store).ok


def test_processes_that_add_together_leave_each_other_alone(images, store, tmp_path):
    """Of one the next part is on its way when the other comes; nobody copies over the two."""
    other = label(images, teacher(1), tmp_path / "o", crops=3, top_k=2, **OPTIONS)
    given = (store, other.settings, len(other))
    unfinished = store / "adding-theirs/parts/.000000.npz.0123456789abcdef.tmp"
    with SharedSignalWriter(*given, shard=Shard(0, 2), signal="theirs"):
        unfinished.write_bytes(b"half of a part")
        with SharedSignalWriter(*given, shard=Shard(1, 2), signal="theirs"):
            assert unfinished.exists()
        with pytest.raises(InputError, match="holds a signal theirs already, or a part of one"):
            copy_signal(other, "labels", store, "theirs")


@pytest.mark.parametrize("normalised", [False, True])
@pytest.mark.parametrize(("codec", "error"), [("f16", 1e-3), ("i8", 8e-3)])
def test_features_are_what_the_head_is_given(images, store, codec, error, normalised):
    """The input of the head, for the crops and flips of the geometry: means of the colours."""
    made = add(images, store, "means", kind="features", values=codec, normalised=normalised)
    vectors = made.signal("means").settings.vectors
    assert (vectors.dim, vectors.layer, vectors.normalised) == (3, "input of head", normalised)
    rows, crops = np.arange(5)[:, None], np.arange(3)
    given = made.features(rows, crops)
    assert given.shape == (5, 3, 3) and given.dtype == np.float32
    # Full logits of the same network, from features: the head is linear.
    network = teacher(1).module
    log_probs = network.head(torch.from_numpy(given)).log_softmax(-1).detach()
    full = label(
        images, teacher(1), store.parent / "f", crops=3, top_k=None, values="f32", **OPTIONS
    )
    exact = full.labels(rows, crops).log_probs.reshape(5, 3, 4)
    if normalised:
        assert np.allclose(np.linalg.norm(given, axis=-1), 1, atol=error)
    else:
        assert (log_probs - exact).abs().max() < 3 * error * max(1, np.abs(given).max())
    assert torch.equal(
        made.labels(rows, crops).classes, LabelStore(store).labels(rows, crops).classes
    )
    assert verify_store(store).ok


def test_features_of_whole_images_are_one_vector_an_image(images, store):
    made = add(images, store, "whole", kind="features", per="image")
    found = made.features(np.arange(5)[:, None], np.arange(3))
    assert (found == found[:, :1]).all() and len(np.unique(found[:, 0], axis=0)) == 5
    assert np.load(store / "whole-00000.npy").shape == (5, 1)


def test_a_store_of_features_alone(images, tmp_path):
    made = label(images, teacher(), tmp_path / "f", crops=3, kind="features", **OPTIONS)
    assert made.features([0, 1], [2, 0]).shape == (2, 3) and verify_store(made.folder).ok
    with pytest.raises(InputError, match="holds no labels; make them with ferkd label --into"):
        made.labels(0, 0)


def test_codes_by_hand():
    """[1, -0.5, 0.25] as i8: the scale is 1/127, the codes 127, -63.5 to the even -64, 31.75."""
    form = FeatureFormat.choose(3)
    record = form.encode(np.array([[1.0, -0.5, 0.25], [0, 0, 0]], np.float32))
    assert record["values"].tolist() == [[127, -64, 32], [0, 0, 0]]
    assert record["scale"].tolist() == [np.float32(1 / 127), 0]
    back = form.decode(record)
    assert back[0] == pytest.approx([1, -64 / 127, 32 / 127], abs=1e-6) and not back[1].any()
    assert form.dtype.itemsize == 7 and FeatureFormat.choose(384).dtype.itemsize == 388
    for wrong, message in ((np.inf, "not finite"), (70_000, "beyond half precision")):
        with pytest.raises(InputError, match=message):
            FeatureFormat.choose(1, "f16").encode(np.array([[wrong]], np.float32))


def test_signals_are_published_and_fetched_alone(images, store, tmp_path):
    add(images, store, "second", top_k=2)
    url = f"memory://{tmp_path.name}/labels"
    publish(store, url, signals=["labels"])
    assert list(LabelStore(url).manifest.signals) == ["labels"]
    publish(store, url, signals=["second"])
    assert list(LabelStore(url).manifest.signals) == ["labels", "second"]
    fetched = fetch(url, tmp_path / "f", signals=["second"])
    assert list(fetched.manifest.signals) == ["second"]
    assert not (tmp_path / "f/labels-00000.npy").exists() and verify_store(tmp_path / "f").ok
    assert list(fetch(f"{url}#labels", tmp_path / "f").manifest.signals) == ["labels", "second"]
    assert bytes_of(tmp_path / "f") == bytes_of(store)


@pytest.mark.parametrize("changed", ["by a signal", "by another store"])
def test_what_another_upload_leaves_meanwhile_is_not_lost(
    images, store, tmp_path, monkeypatch, changed
):
    add(images, store, "second", top_k=2)
    add(images, store, "third", seed=2, top_k=2)
    seeded = label(images, teacher(1), tmp_path / "x", crops=3, seed=7, top_k=2, **OPTIONS)
    url = f"memory://{tmp_path.name}/labels"
    publish(store, url, signals=["labels"])
    memory = fsspec.get_filesystem_class("memory")
    real = memory.put_file

    def at_the_same_time(self, source, target, **options):
        monkeypatch.undo()
        if changed == "by a signal":
            publish(store, url, signals=["third"])
        else:
            publish(seeded, url, overwrite=True)
        return real(self, source, target, **options)

    monkeypatch.setattr(memory, "put_file", at_the_same_time)
    if changed == "by a signal":
        publish(store, url, signals=["second"])
        assert bytes_of(fetch(url, tmp_path / "f").folder) == bytes_of(store)
    else:
        with pytest.raises(InputError, match=r"changed by another upload meanwhile.*--overwrite"):
            publish(store, url, signals=["second"])
        assert verify_store(fetch(url, tmp_path / "f").folder).ok


def test_names_of_signals_are_plain(tmp_path):
    for name in ("../x", "A", "boxes", "", "-a", "a" * 49):
        with pytest.raises(InputError, match="a name has"):
            write_store(tmp_path / "s", signal=name or "é")


def test_a_folder_whose_name_has_a_mark_is_that_folder(tmp_path):
    write_store(tmp_path / "s#labels")
    assert len(LabelStore(tmp_path / "s#labels")) == 5
