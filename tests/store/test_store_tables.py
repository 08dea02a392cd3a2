"""Side tables: they belong to a signal, and nothing else changes as they come and go."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
from known_stores import write_features
from stores import bytes_of, resigned
from typer.testing import CliRunner

from ferkd.cli import app
from ferkd.labelling.verify import verify_store
from ferkd.store import LabelStore
from ferkd.store.adding import copy_signal, drop
from ferkd.store.publish import fetch, publish
from ferkd.store.tables import add_table, class_means, drop_table
from ferkd.system.errors import InputError

VECTORS = np.arange(6, dtype=np.float32).reshape(2, 3)
PAGE = Path(__file__).parents[2] / "docs/store-format.md"


@pytest.fixture
def store(tmp_path) -> Path:
    """Images of the classes 0, 1, 0 and one without truth; 2 crops with features of 2 numbers."""
    features = np.array([[1, 10], [3, 30], [-4, 0], [-8, 0], [5, 50], [7, 70], [99, 99], [99, 99]])
    return write_features(tmp_path / "s", features.reshape(4, 2, 2), [0, 1, 0, -1]).folder


def test_a_table_comes_and_goes_without_touching_other_bytes(store):
    before, identity = bytes_of(store), LabelStore(store).identity
    added = add_table(store, "features", "class-vectors", VECTORS)
    after = bytes_of(store)
    assert {name for name in after if after[name] != before.get(name)} == {
        "manifest.json",
        "features.class-vectors.npy",
    }
    assert added.signal("features").table("class-vectors").tolist() == VECTORS.tolist()
    assert added.bytes_on_disk == sum(map(len, after.values()))
    assert added.identity == identity and verify_store(store).ok
    with pytest.raises(InputError, match="has a table class-vectors already"):
        add_table(store, "features", "class-vectors", VECTORS)
    with pytest.raises(InputError, match="no table 'other'; it has class-vectors"):
        added.signal("features").table("other")
    drop_table(store, "features", "class-vectors")
    assert bytes_of(store) == before


def test_a_mean_of_each_class_is_that_of_its_crops(store):
    # Class 0: (1 + 3 + 5 + 7) / 4 = 4 and 40; class 1: -6 and 0; the image without truth not.
    assert class_means(LabelStore(store)).tolist() == [[4, 40], [-6, 0]]


def test_a_class_that_cannot_be_has_no_mean(store):
    def outside(arrays, body):
        arrays["images.npy"]["target"][1] = 2

    resigned(store, outside)
    with pytest.raises(InputError, match="target 2 of 2 classes"):
        class_means(LabelStore(store))


def test_vectors_that_no_record_can_hold_are_no_features(store):
    def huge(arrays, body):
        body["signals"]["features"]["settings"]["vectors"]["dim"] = 10**10

    resigned(store, huge)
    with pytest.raises(InputError, match=r"vectors\.dim: .*equal to 65536"):
        LabelStore(store)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (np.zeros(3), r"shape \(3,\); give \[rows, dim\]"),
        (np.zeros((0, 3)), r"shape \(0, 3\)"),
        (np.array([[1.0, np.nan]]), "not finite"),
    ],
)
def test_what_is_no_table_is_refused(store, values, message):
    before = bytes_of(store)
    with pytest.raises(InputError, match=message):
        add_table(store, "features", "t", values)
    with pytest.raises(InputError, match="a name has 1 to 48"):
        add_table(store, "features", "a.b", VECTORS)
    assert bytes_of(store) == before


def test_a_signal_takes_its_tables_along(store, tmp_path):
    add_table(store, "features", "means", VECTORS)
    copy_signal(LabelStore(store), "features", store, "again")
    copied = LabelStore(store).signal("again")
    assert copied.table("means").tolist() == VECTORS.tolist()
    assert (store / "again.means.npy").read_bytes() == (store / "features.means.npy").read_bytes()
    drop(store, "features")
    assert not list(store.glob("features*")) and verify_store(store).ok


def test_a_table_is_published_and_fetched_also_beside_what_is_there(store, tmp_path):
    url = f"memory://{tmp_path.name}/there"
    publish(store, url)
    add_table(store, "features", "means", VECTORS)
    publish(store, url)  # only the table is new
    assert LabelStore(url).signal("features").table("means").tolist() == VECTORS.tolist()
    fetched = fetch(url, tmp_path / "here")
    assert bytes_of(fetched.folder) == bytes_of(store)


def test_damage_to_a_table_is_found(store):
    add_table(store, "features", "means", VECTORS)
    file = store / "features.means.npy"
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    (problem,) = verify_store(store).problems
    assert problem.where == file.name and "damaged" in problem.what


def test_the_command_adds_means_and_vectors_of_a_file(store, tmp_path):
    np.save(tmp_path / "v.npy", VECTORS)
    run = CliRunner().invoke
    shown = run(app, ["signals", "table", str(store), "class-means", "--means", "--json"])
    assert json.loads(shown.stdout)["shape"] == [2, 2]
    given = ["--from", str(tmp_path / "v.npy")]
    assert run(app, ["signals", "table", f"{store}#features", "text", *given]).exit_code == 0
    listed = json.loads(run(app, ["signals", "ls", str(store), "--json"]).stdout)
    assert listed["features"]["tables"] == {"class-means": [2, 2], "text": [2, 3]}
    assert run(app, ["signals", "table", str(store), "text", "--drop"]).exit_code == 0
    assert list(LabelStore(store).signal("features").stored.tables) == ["class-means"]


def test_the_page_s_reader_reads_a_table(store):
    add_table(store, "features", "means", VECTORS)
    code = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)[-1]
    names: dict = {}
    exec(code, names)
    assert names["Store"](store, "features").table("means").tolist() == VECTORS.tolist()
