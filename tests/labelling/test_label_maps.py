"""Label maps: the head at every position, and stores whose crops are the cells of a grid."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from hypothesis import given
from hypothesis import strategies as st
from nets import Cells
from pictures import write_noise
from stores import bytes_of, write_store

from ferkd import cli
from ferkd.crops import CUT_RULE, CropDistribution, cut
from ferkd.evaluating.run import store_agreement
from ferkd.images import decode, open_images
from ferkd.labelling.maps import MapTeacher, grid_boxes
from ferkd.labelling.run import label
from ferkd.labelling.verify import verify_store
from ferkd.loading.loader import SoftLabelLoader
from ferkd.models.committee import Committee
from ferkd.models.teacher import Inputs, Teacher, load_teacher
from ferkd.store import LabelStore
from ferkd.store import manifest as manifests
from ferkd.store.derive import subset
from ferkd.store.fkd.export import export_fkd
from ferkd.store.merge import merge
from ferkd.store.parquet import export_parquet
from ferkd.study.inspection import inspect
from ferkd.system.errors import InputError

SPEC = "timm/test_resnet?random=0&num_classes=3&image_size=64"


def teacher(classes: int = 3, seed: int = 0, size: int = 16, spec: str = "test") -> Teacher:
    return Teacher(Cells(classes, seed), Inputs(image_size=size), spec=spec, device="cpu")


@pytest.fixture
def folder(tmp_path) -> Path:
    sizes = {f"class {i % 3}/é.{i}.jpg": (20 + 3 * i, 50 - i) for i in range(9)}
    return write_noise(tmp_path / "images", sizes)


def whole(images: Path, row: int, size: int) -> torch.Tensor:
    source = open_images(images)
    pixels = decode(source.read(row))
    resized = cut(pixels, (0, 0, *pixels.shape[:2]), False, size)
    return torch.from_numpy(resized).permute(2, 0, 1)[None]


def test_the_cells_of_a_grid_by_hand():
    """Edges of thirds of 10 pixels are 0, 3.33, 6.67, 10; halves of 5 are 0, 2.5 (up), 5."""
    boxes = grid_boxes([10], [5], 3, 2)[0]
    assert boxes.tolist() == [
        [0, 0, 3, 3],
        [0, 3, 3, 2],
        [3, 0, 4, 3],
        [3, 3, 4, 2],
        [7, 0, 3, 3],
        [7, 3, 3, 2],
    ]
    assert (
        grid_boxes([1], [2], 2, 3)[0].tolist()
        == [
            [0, 0, 1, 1],
            [0, 1, 1, 1],
            [0, 1, 1, 1],
        ]
        * 2
    )


@given(st.integers(1, 400), st.integers(1, 400), st.integers(1, 16), st.integers(1, 16))
def test_cells_tile_an_image_that_has_pixels_enough(height, width, rows, columns):
    covered = np.zeros((height, width), int)
    for top, left, tall, wide in grid_boxes([height], [width], rows, columns)[0]:
        assert tall >= 1 and wide >= 1 and top + tall <= height and left + wide <= width
        covered[top : top + tall, left : left + wide] += 1
    assert covered.min() >= 1
    if height >= rows and width >= columns:
        assert covered.max() == 1


def test_a_map_of_a_timm_resnet_is_its_head_at_each_position():
    """Computed by hand from the module, and its mean is the teacher's own answer (linear head)."""
    loaded = load_teacher(SPEC, device="cpu")
    by_cell = MapTeacher(loaded)
    assert (by_cell.rows, by_cell.columns) == (2, 2)
    images = torch.randint(0, 256, (3, 3, 64, 64), dtype=torch.uint8)
    logits = by_cell({64: images}).reshape(3, 2, 2, 3)
    module = loaded.module
    mean = torch.tensor(loaded.mean).view(3, 1, 1)
    std = torch.tensor(loaded.std).view(3, 1, 1)
    with torch.inference_mode():
        features = module.forward_features((images / 255 - mean) / std)
        for row in range(2):
            for column in range(2):
                expected = module.fc(features[:, :, row, column])
                assert torch.allclose(logits[:, row, column], expected, atol=1e-4)
    assert logits.std(dim=(1, 2)).min() > 1e-3  # the positions do not all say the same
    assert torch.allclose(logits.mean((1, 2)), loaded(images), atol=1e-4)


@pytest.mark.parametrize("name", ["mobilenetv3_small_050", "test_convnext", "test_efficientnet"])
def test_other_convolutional_networks_make_maps_too(name):
    module = timm.create_model(name, num_classes=4)
    by_cell = MapTeacher(Teacher(module, Inputs(image_size=64), device="cpu"))
    images = torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8)
    assert by_cell({64: images}).shape == (2 * by_cell.cells, 4)


def test_teachers_without_spatial_features_are_refused():
    vit = timm.create_model("test_vit", num_classes=3)
    with pytest.raises(InputError, match=r"features \[1, 101, 64\]; a label map needs a convolut"):
        MapTeacher(Teacher(vit, Inputs(image_size=160), device="cpu"))
    last = timm.create_model("test_mambaout", num_classes=3)  # channels last: [B, 2, 2, 64]
    with pytest.raises(InputError, match=r"features \[1, 2, 2, 64\]; a label map"):
        MapTeacher(Teacher(last, Inputs(image_size=64), device="cpu"))
    plain = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * 64, 3))
    with pytest.raises(InputError, match=r"has no forward_features; .*--kind crops"):
        MapTeacher(Teacher(plain, Inputs(image_size=8), device="cpu"))


def test_a_network_that_is_not_its_head_on_its_features_is_refused():
    class Other(Cells):
        def forward(self, images):
            return super().forward(images) + 1

    with pytest.raises(InputError, match="answers otherwise than its head does"):
        MapTeacher(Teacher(Other(), Inputs(image_size=16), spec="test", device="cpu"))

    class Fixed(Cells):
        def forward_head(self, features):
            return self.head(features.flatten(2).matmul(torch.ones(16) / 16))

    with pytest.raises(InputError, match="cannot be applied to its features"):
        MapTeacher(Teacher(Fixed(), Inputs(image_size=16), spec="test", device="cpu"))


def test_a_map_store_holds_the_head_at_each_cell(folder, tmp_path):
    model = teacher()
    store = label(folder, model, tmp_path / "s", kind="map", top_k=None, values="f32", batch_size=4)
    assert len(store) == 9 and store.crops_per_image == 16
    crops = store.settings.crops
    assert (crops.kind, crops.rows, crops.columns, crops.rule) == ("grid", 4, 4, CUT_RULE)
    for row in range(9):
        with torch.inference_mode():
            pixels = whole(folder, row, 16) / 255
            pixels = (pixels - torch.tensor(model.mean).view(3, 1, 1)) / torch.tensor(
                model.std
            ).view(3, 1, 1)
            features = model.module.forward_features(pixels)[0]
            expected = model.module.head(features.flatten(1).T).softmax(1)
        got = store.labels(row, np.arange(16)).dense()
        assert torch.allclose(got, expected, atol=1e-5)
        size = store.images[row][["height", "width"]].tolist()
        boxes = grid_boxes([size[0]], [size[1]], 4, 4)[0]
        assert (store.boxes(row, np.arange(16)) == boxes).all()
        assert not store.flips(row, np.arange(16)).any()
    written = json.loads((tmp_path / "s" / "manifest.json").read_text(encoding="utf-8"))
    assert written["geometry"]["settings"]["crops"] == {
        "kind": "grid",
        "count": 16,
        "rows": 4,
        "columns": 4,
        "rule": CUT_RULE,
    }


def test_cells_keep_the_probability_of_their_images_truth(folder, tmp_path):
    full = label(folder, teacher(), tmp_path / "f", kind="map", top_k=None, values="f32")
    one = label(folder, teacher(), tmp_path / "o", kind="map", top_k=1, values="f32", batch_size=4)
    targets = torch.from_numpy(np.repeat(full.targets, 16).astype(np.int64))
    every = np.arange(9)[:, None], np.arange(16)
    known = one.record.decode(one.records(*every).reshape(-1)).true_log_prob.exp()
    assert torch.allclose(known, full.labels(*every).prob_of(targets), atol=1e-5)
    assert len(set(targets.tolist())) == 3 and known.std() > 0.1


def test_a_map_store_does_not_depend_on_workers_or_a_kill(folder, tmp_path):
    options = {"kind": "map", "top_k": 2, "part_images": 2, "batch_size": 3}
    label(folder, teacher(), tmp_path / "whole", workers=1, **options)

    def killed(progress) -> None:
        if progress.parts == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        label(folder, teacher(), tmp_path / "s", workers=3, progress=killed, **options)
    assert not (tmp_path / "s" / "manifest.json").exists()
    seen = []
    label(folder, teacher(), tmp_path / "s", resume=True, progress=seen.append, **options)
    assert bytes_of(tmp_path / "s") == bytes_of(tmp_path / "whole")
    assert (seen[0].done, seen[-1].done, seen[-1].crops) == (4, 9, 5 * 16)
    with pytest.raises(InputError, match=r"other settings \(crops.columns was 4, now None"):
        label(folder, teacher(), tmp_path / "s", resume=True, **options | {"kind": "crops"})


def test_unreadable_images_are_left_out_of_a_map_store(folder, tmp_path):
    (folder / "class 0/text.jpg").write_text("hello")
    store = label(folder, teacher(), tmp_path / "s", kind="map", max_unreadable=0.2)
    assert len(store) == 9 and [s.id for s in store.manifest.skipped] == ["class 0/text.jpg"]


def test_what_makes_no_sense_for_a_map_is_refused_before_anything_is_written(folder, tmp_path):
    made = label(folder, teacher(), tmp_path / "map", kind="map")
    for option in (
        {"crops": 4},
        {"seed": 0},
        {"distribution": CropDistribution()},
        {"boxes_from": made},
        {"add_to": made},
    ):
        (name,) = option
        with pytest.raises(InputError, match=f"{name} is given, but a label map.*--kind crops"):
            label(folder, teacher(), tmp_path / "s", kind="map", **option)
    with pytest.raises(InputError, match=r"2 teachers for one label map.*ferkd merge"):
        label(folder, Committee([teacher(), teacher(seed=1)]), tmp_path / "s", kind="map")
    with pytest.raises(InputError, match="kind is 'maps'; it must be crops, map or features"):
        label(folder, teacher(), tmp_path / "s", kind="maps")
    for option in ({"boxes_from": made}, {"add_to": made, "crops": 20}):
        with pytest.raises(InputError, match=r"holds label maps .4x4 cells"):
            label(folder, teacher(), tmp_path / "s", **option)
    assert not (tmp_path / "s").exists()


def test_what_reads_crops_refuses_maps(folder, tmp_path):
    made = label(folder, teacher(), tmp_path / "map", kind="map")
    with pytest.raises(InputError, match=r"holds label maps .*method relabel"):
        SoftLabelLoader(folder, made, batch_size=4)
    with pytest.raises(InputError, match=r"holds label maps .*method relabel"):
        export_fkd(made, tmp_path / "fkd")
    with pytest.raises(InputError, match=r"crops is 4, but .* holds label maps"):
        subset(made, tmp_path / "s", crops=4)
    with pytest.raises(InputError, match=r"holds label maps .*method relabel"):
        store_agreement(
            Cells(), open_images(folder), made, num_classes=3, image_size=16, normalise=None
        )
    assert not (tmp_path / "s").exists() and not (tmp_path / "fkd").exists()


def test_verify_knows_the_cells_and_replays_them(folder, tmp_path):
    made = label(folder, teacher(), tmp_path / "map", kind="map", top_k=2, batch_size=4)
    found = verify_store(made.path, images=folder, teacher=teacher(), sample=40, device="cpu")
    assert found.ok, found.problems
    assert found.figures["map_grid"] == "4x4" and found.figures["replayed_crops"] == 40
    assert found.figures["argmax_agreement"] == 1.0
    with pytest.raises(InputError, match="is not the one that made the labels"):
        verify_store(made.path, images=folder, teacher=teacher(seed=1), device="cpu")


@pytest.mark.parametrize("wrong", ["box", "flip"])
def test_verify_finds_a_record_that_is_not_of_its_cell(tmp_path, wrong):
    cells = manifests.Crops(kind="grid", count=4, rows=2, columns=2, rule=CUT_RULE)
    store = write_store(tmp_path / "s", crops=4, values="f32", grid=cells, wrong=wrong)
    found = verify_store(store.path)
    assert [str(p) for p in found.problems] == [
        f"{store.ids[1]}, crop 2: its box is not its cell of the 2x2 grid"
    ]


def test_a_replay_finds_another_answer(folder, tmp_path):
    """A map made by a teacher that says of itself that it is this one."""

    class Liar(Teacher):
        def describe(self):
            return teacher().describe()

    liar = Liar(Cells(seed=1), Inputs(image_size=16), spec="test", device="cpu")
    made = label(folder, liar, tmp_path / "map", kind="map")
    found = verify_store(made.path, images=folder, teacher=teacher(), sample=30, device="cpu")
    assert not found.ok and "the teacher's answer lies" in str(found.problems[0])


def test_inspect_and_parquet_take_maps(folder, tmp_path):
    made = label(folder, teacher(), tmp_path / "map", kind="map", top_k=2)
    figures = inspect(made)
    assert (figures["kind"], figures["map_grid"]) == ("map", "4x4")
    parquet = pytest.importorskip("pyarrow.parquet")
    assert export_parquet(made, tmp_path / "map.parquet") == 9 * 16
    rows = parquet.read_table(tmp_path / "map.parquet").to_pylist()
    assert [r["crop"] for r in rows[:17]] == [*range(16), 0]
    assert [rows[5][s] for s in ("top", "left", "height", "width")] == made.boxes(0, 5).tolist()


def test_subset_and_merge_of_maps(folder, tmp_path):
    one = label(folder, teacher(), tmp_path / "1", kind="map", top_k=None, values="f32")
    two = label(folder, teacher(seed=1), tmp_path / "2", kind="map", top_k=None, values="f32")
    both = merge([one, two], tmp_path / "both")
    assert both.settings.crops == one.settings.crops
    every = np.arange(16)
    mean = (one.labels(3, every).dense() + two.labels(3, every).dense()) / 2
    assert torch.allclose(both.labels(3, every).dense(), mean, atol=1e-5)
    small = subset(one, tmp_path / "small", top_k=2, values="u8")
    assert small.settings.crops == one.settings.crops and small.record.k == 2
    assert (small.labels(3, every).top1() == one.labels(3, every).top1()).all()
    assert verify_store(both.path).ok and verify_store(small.path).ok
    finer = label(folder, teacher(size=20), tmp_path / "3", kind="map")
    with pytest.raises(InputError, match=r"cells of maps: .*5x5.*, not .*4x4"):
        merge([one, finer], tmp_path / "s")
    crops = label(folder, teacher(), tmp_path / "4", crops=16)
    with pytest.raises(InputError, match="cells of maps"):
        merge([one, crops], tmp_path / "s")


def test_a_manifest_says_one_kind_of_crops_in_full():
    random = {"count": 4, "distribution": CropDistribution(), "seed": 1, "rule": CUT_RULE}
    grid = {"kind": "grid", "count": 4, "rows": 2, "columns": 2, "rule": CUT_RULE}
    assert set(manifests.Crops(**random).model_dump()) == set(random)
    assert manifests.Crops(**grid).model_dump() == grid
    for wrong, message in (
        (grid | {"count": 5}, "a grid of 2x2 has no 5 cells"),
        (grid | {"seed": 1}, r"kind grid with \['seed'\]"),
        ({k: v for k, v in random.items() if k != "seed"}, r"kind random without \['seed'\]"),
        (random | {"rows": 2}, r"kind random with \['rows'\]"),
    ):
        with pytest.raises(ValueError, match=message):
            manifests.Crops(**wrong)


def test_the_command_makes_maps(folder, tmp_path, monkeypatch, capsys):
    out = tmp_path / "map"
    arguments = ["label", str(folder), "--teacher", SPEC, "--out", str(out), "--kind", "map"]
    monkeypatch.setattr(sys, "argv", ["ferkd", *arguments, "--image-size", "96", "--json"])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    made = json.loads(capsys.readouterr().out)
    assert not ended.value.code
    assert (made["kind"], made["images"], made["crops_per_image"]) == ("map", 9, 9)
    assert LabelStore.open(out).settings.crops.rows == 3
    monkeypatch.setattr(sys, "argv", ["ferkd", "inspect", str(out)])
    with pytest.raises(SystemExit):
        cli.main()
    assert "3x3" in capsys.readouterr().out
