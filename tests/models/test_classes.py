"""Which of a teacher's classes the class folders are, and what cannot be matched."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch
from nets import Pixel, crops

from ferkd.models.architectures import Inputs, imagenet_names
from ferkd.models.classes import Known, match_folders, orders, read_class_map
from ferkd.models.committee import load_committee
from ferkd.models.teacher import Teacher
from ferkd.system.errors import InputError

WORDS = Known("teacher t", 4, ("cat", "Great dane", "eel", "cat fish"))
PLAIN = Known("teacher t", 4)
IMAGENET = Known("teacher t", 1000, aliases=imagenet_names(1000))


def test_folders_are_found_by_name_whatever_their_order_and_number() -> None:
    assert match_folders(["cat", "great_dane", "eel", "cat-fish"], WORDS).columns == (0, 1, 2, 3)
    found = match_folders(["cat fish", "eel", "great dane"], WORDS)
    assert (found.columns, found.by) == ((3, 2, 1), "name")


def test_wordnet_ids_are_found_among_imagenets_thousand_classes() -> None:
    # tench is 0, goldfish 1, great white shark 2; daisy 985 by the usual list of ImageNet-1k.
    folders = ["n01440764", "n01484850", "n11939491"]
    found = match_folders(folders, IMAGENET)
    assert (found.columns, found.by) == ((0, 2, 985), "WordNet id")
    named = Known("teacher t", 1000, tuple(f"w{i}" for i in range(1000)), imagenet_names(1000))
    assert match_folders(folders, named).columns == (0, 2, 985)
    with pytest.raises(InputError, match=r"'n99999999' are none of the 1000 ImageNet classes"):
        match_folders(["n01440764", "n99999999"], IMAGENET)


def test_as_many_classes_as_imagenet_are_not_imagenets_where_the_names_differ() -> None:
    class Thousand(torch.nn.Module):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return images[:, 0, 0, :1] * torch.arange(1000.0)

    inputs = Inputs(image_size=4)
    words = [f"{word}, and more" for word in imagenet_names(1000)[1]]  # as Hugging Face names them
    hub = Teacher(Thousand(), inputs, class_names=words, device="cpu")
    assert hub.for_folders(["n01440764", "n11939491"]).matching.columns == (0, 985)
    assert hub.for_folders(["daisy", "goldfish"]).matching.columns == (985, 1)
    mine = Teacher(Thousand(), inputs, class_names=[f"c{i}" for i in range(1000)], device="cpu")
    assert mine.for_folders(["c7", "c2"]).matching.columns == (7, 2)
    for foreign in (["n01440764", "n11939491"], ["daisy", "goldfish"]):
        with pytest.raises(InputError, match="has 1000 classes, but the images have 2"):
            mine.for_folders(foreign)


def test_what_has_no_names_is_taken_in_order_if_it_is_as_many() -> None:
    found = match_folders(["a", "b", "c", "d"], PLAIN)
    assert (found.columns, found.by) == ((0, 1, 2, 3), "order")
    with pytest.raises(InputError, match=r"4 classes, but the images have 2; .*--class-map FILE"):
        match_folders(["a", "b"], PLAIN)


def test_a_class_map_names_classes_by_number_word_and_wordnet_id(tmp_path: Path) -> None:
    given = {"roses": 3, "daisy": "daisy", "white": "n01484850", "unused": 7}
    folders = ["daisy", "roses", "white"]
    assert match_folders(folders, IMAGENET, given).columns == (985, 3, 2)
    file = tmp_path / "map.json"
    file.write_text(json.dumps(given))
    assert match_folders(folders, IMAGENET, file).columns == (985, 3, 2)
    lines = "# which is which\nmy roses 3\n daisy\tn11939491\nwhite=2\n"
    (tmp_path / "map.txt").write_text(lines)
    assert read_class_map(tmp_path / "map.txt") == {
        "my roses": "3",
        "daisy": "n11939491",
        "white": "2",
    }


def test_the_orders_in_use() -> None:
    folders = ["0", "1", "10", "2"]
    # Sorted by code point; in natural order 2 comes before 10; by number 10 is beyond 4 classes.
    assert orders(folders, 4) == {"sorted": (0, 1, 2, 3), "natural": (0, 1, 3, 2)}
    assert orders(folders, 1000) == {"number": (0, 1, 10, 2)}
    assert match_folders(folders, PLAIN, "natural").columns == (0, 1, 3, 2)
    assert match_folders(folders, IMAGENET, "number").columns == (0, 1, 10, 2)
    with pytest.raises(InputError, match="'number' does not fit: 4 folders and 4 classes"):
        match_folders(folders, PLAIN, "number")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"a": 0}, "names no class for 'b'"),
        ({"a": 0, "b": 0}, r"gives class 0 to 'a', 'b'"),
        ({"a": 0, "b": 4}, r"the class 4, but teacher t has classes 0 to 3"),
        ({"a": 0, "b": -1}, r"the class -1, but"),
        ({"a": "cats", "b": 1}, r"'cats', which teacher t does not name; nearest: cat"),
        ("no/such.json", r"no/such.json is not a file; .*sorted, natural, number"),
    ],
)
def test_what_a_class_map_cannot_mean(given: object, message: str) -> None:
    with pytest.raises(InputError, match=message):
        match_folders(["a", "b"], WORDS, given)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"a": 0, "a": 1}', "'a' twice"),
        ('{"a": [1]}', "no JSON object of folder"),
        ('{"a": true}', "no JSON object of folder"),
        ('{"a": 1', "not valid JSON"),
        ("[" * 100_000, "not valid JSON"),
        ("roses\n", "line 1: 'roses' names no folder and class"),
        ("a 1\na 2\n", "line 2"),
    ],
)
def test_damaged_class_maps_are_refused(text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "map").write_text(text)
    with pytest.raises(InputError, match=re.escape(message)):
        read_class_map(tmp_path / "map")


def test_a_matched_teacher_answers_with_the_folders_classes() -> None:
    teacher = Teacher(Pixel(), Inputs(image_size=4), class_names=["r", "g", "b"], device="cpu")
    images = crops(5, size=4)
    ours = teacher.for_folders(["b", "r"])
    assert (ours.num_classes, ours.class_names) == (2, ("b", "r"))
    assert torch.equal(ours(images), teacher(images)[:, [2, 0]])
    pixels = torch.rand(2, 3, 4, 4)
    assert torch.equal(ours.logits(pixels), teacher.logits(pixels)[:, [2, 0]])
    assert ours.describe() == {
        **teacher.describe(),
        "class_map": {"by": "name", "classes": [2, 0]},
    }
    # The label is the probability given that the crop shows one of the folders' classes.
    full = teacher(images).softmax(1)
    given = full[:, [2, 0]] / full[:, [2, 0]].sum(1, keepdim=True)
    assert torch.allclose(ours(images).softmax(1), given)


def test_members_with_other_orders_label_the_same_folders() -> None:
    rgb = Teacher(Pixel(), Inputs(image_size=4), class_names=["r", "g", "b"], device="cpu")
    two = load_committee(rgb, folders=["b", "r"])
    assert (two.num_classes, two.class_names) == (2, ("b", "r"))
    with pytest.raises(InputError, match="a class map is given, but the images have no class"):
        load_committee(rgb, class_map={"b": 0})
