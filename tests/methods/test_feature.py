"""Learning from stored features: distances by hand, the projector, students without classes."""

from __future__ import annotations

import copy
import json
import math
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from runs import TEACHER, changed
from safetensors.torch import load_file
from torch import nn
from torch.autograd import gradcheck
from views import view

from ferkd.labelling.run import label
from ferkd.methods.feature import smooth_l1
from ferkd.methods.feature_live import LiveFeatures
from ferkd.methods.features import FeatureLoss, cosine, mean_of, spread_of
from ferkd.methods.fkd_ssl import centres, soft_embedding
from ferkd.models.student import Student, build_student, load_run
from ferkd.store import LabelStore
from ferkd.system.errors import InputError
from ferkd.training import train
from ferkd.training.data import open_data
from ferkd.training.recipe import make_recipe
from ferkd.training.run import build_trainer
from ferkd.training.together import check_shared

# Distances


def test_distances_by_hand():
    """cos((3, 4), (8, 6)) = 24/25. Smooth L1 of differences 0.5 and 3 in units of 2: 0.03125 and
    1.0, mean over the numbers. The softmax of (0.6, 0.8) / 0.2 is 1 / (1 + e) and e / (1 + e)."""
    a, b = torch.tensor([[3.0, 4.0]]), torch.tensor([[8.0, 6.0]])
    assert cosine(a, b).tolist() == pytest.approx([0.04])
    projected, features = torch.tensor([[0.0, 0.0]]), torch.tensor([[0.5, 3.0]])
    assert smooth_l1(2.0)(projected, features).tolist() == pytest.approx([(0.03125 + 1.0) / 2])
    e = math.e
    p, q = (1 / (1 + e), e / (1 + e)), (e / (1 + e), 1 / (1 + e))
    expected = -sum(x * math.log(y) for x, y in zip(p, q, strict=True))
    found = soft_embedding(0.2, 0.2)(torch.tensor([[8.0, 6.0]]), torch.tensor([[3.0, 4.0]]))
    assert found.tolist() == pytest.approx([expected])
    # Prototypes (1, 0) and (0, 1) have the vector's own numbers as similarities.
    again = soft_embedding(0.2, 0.2, torch.eye(2))(b, a)
    assert again.tolist() == pytest.approx([expected])


def test_a_vector_without_direction_is_halfway():
    """Of zeros the cosine is 0, as of vectors at right angles; such a target moves nothing."""
    zero, some = torch.zeros(1, 2), torch.tensor([[3.0, 4.0]], requires_grad=True)
    assert cosine(zero, some).tolist() == [1.0]
    (distance,) = cosine(some, zero)
    assert distance.tolist() == 1.0
    distance.backward()
    assert some.grad is not None and some.grad.tolist() == [[0.0, 0.0]]


def test_each_side_has_its_own_temperature():
    """The teacher at 0.4: (0.6, 0.8) / 0.4 differ by 1/2; the student's numbers are equal."""
    student, teacher = torch.tensor([[1.0, 1.0]]), torch.tensor([[3.0, 4.0]])
    assert soft_embedding(0.1, 0.4)(student, teacher).tolist() == pytest.approx([math.log(2)])
    sure = soft_embedding(0.2, 0.01)(teacher, teacher)  # all mass on the second number
    assert sure.tolist() == pytest.approx([math.log(1 + math.exp(-1))], rel=1e-6)


@pytest.mark.parametrize(
    "distance",
    [
        cosine,
        smooth_l1(0.7),
        soft_embedding(0.3, 0.2),
        soft_embedding(0.3, 0.2, torch.eye(4, dtype=torch.float64)[:3]),
    ],
)
def test_gradients_by_finite_differences(distance):
    torch.manual_seed(0)
    projected, features = torch.randn(3, 4, dtype=torch.float64), torch.randn(3, 4).double()
    assert gradcheck(lambda x: distance(x, features), projected.requires_grad_())


def test_a_mixed_row_is_as_far_as_its_pixels_say():
    """A quarter of the pixels are the row's own: 0.25 d(own) + 0.75 d(other), less the mean."""
    loss = FeatureLoss(nn.Identity(), torch.tensor([1.0, 1.0]), cosine, weight=2.0)
    shown = replace(
        view(targets=(0,)),
        features=torch.tensor([[2.0, 1.0]]),
        other_features=torch.tensor([[1.0, 2.0]]),
        shares=torch.tensor([0.25]),
        beside=torch.tensor([[5.0, 0.0]]),
    )
    assert float(loss(torch.zeros(1, 2), shown)) == pytest.approx(2 * (0.25 * 0 + 0.75 * 1))


def test_a_live_mean_is_that_of_all_batches_so_far():
    """Means (2, 0) and (0, 2): the first batch is less (2, 0), the second less (1, 1), a third of
    (1, 4) less (1, 2). A loss that continues from the state goes on from there."""
    first, second = [[3.0, 0.0], [1.0, 0.0]], [[1.0, 2.0], [-1.0, 2.0]]
    loss = LiveFeatures(nn.Identity(), torch.zeros(2), cosine, shown=lambda of: of, weight=1.0)

    def of(loss, features):
        beside = torch.tensor([[1.0, 0.0], [1.0, 0.0]])
        shown = replace(view(torch.tensor(features), targets=(0, 0)), beside=beside)
        return float(loss(torch.zeros(2, 2), shown))

    assert of(loss, first) == pytest.approx(1 - (1 - 1) / 2)  # (1, 0) and (-1, 0)
    # (0, 1) and (-2, 1): cosines with (1, 0) are 0 and -2 / sqrt 5.
    assert of(loss, second) == pytest.approx(1 + 1 / math.sqrt(5))
    state = copy.deepcopy(loss.state_dict())
    again = LiveFeatures(nn.Identity(), torch.zeros(2), cosine, shown=lambda of: of, weight=1.0)
    again.load_state_dict(state)
    third = [[2.0, 4.0], [0.0, 4.0]]  # less (1, 2): (1, 2) and (-1, 2), whose cosines cancel
    for one in (loss, again):
        assert of(one, third) == pytest.approx(1.0) and one.mean.tolist() == [1.0, 2.0]


def test_centres_are_the_directions_of_the_clusters():
    ring = torch.tensor([[1.0, 0.1], [1.0, -0.1], [-0.1, 1.0], [0.1, 1.0], [0.0, 3.0], [2.0, 0.0]])
    found = centres(ring.numpy(), 2)
    assert torch.allclose(found.abs().sort(dim=0).values, torch.eye(2).sort(0).values, atol=1e-6)
    with pytest.raises(InputError, match=r"loss.prototypes is 9, but there are 6 vectors"):
        centres(ring.numpy(), 9)


# Stores and students


@pytest.fixture
def signals(photos, tmp_path):
    """Features of one teacher, labels of another; the second knows no class of the folders."""
    path = tmp_path / "signals"
    options = {"workers": 1, "kind": "features", "crops": 5}
    label(photos, "timm/test_efficientnet?random=1&image_size=32", path, **options)
    return path


def relative(settings, signals, loss, **changes):
    return changed(settings, "feature", lambda _: str(signals), loss=loss, **changes)


def test_the_mean_and_the_spread_are_those_of_all_crops(signals):
    store = LabelStore(signals)
    vectors = store.features(torch.arange(len(store)).numpy()[:, None], torch.arange(5).numpy())
    flat = torch.from_numpy(vectors).flatten(0, 1).double()
    assert torch.allclose(mean_of(store).double(), flat.mean(0), atol=1e-6)
    spread = (flat - flat.mean(0)).square().mean().sqrt()
    assert spread_of(store, mean_of(store)) == pytest.approx(float(spread), rel=1e-5)


def by_hand(method, loss, projected, features, all_vectors):
    """The distances of ``projected`` to ``features`` [B, d] of a store that holds ``all_vectors``
    [N, d], by the equations of docs/methods in float64."""
    mean = all_vectors.mean(0)
    features = features - mean
    if loss.get("feature_distance") == "smooth-l1":
        far = np.abs(projected - features / np.sqrt(np.square(all_vectors - mean).mean()))
        return np.where(far < 1, far**2 / 2, far - 0.5).mean(1)
    ours, theirs = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (projected, features))
    if method == "feature":
        return 1 - (ours * theirs).sum(1)
    temperature = 0.2 * math.sqrt(128 / len(mean))
    if count := loss.get("prototypes"):
        temperature = 0.1
        found = centres((all_vectors - mean).astype(np.float32), count).double().numpy()
        ours, theirs = ours @ found.T, theirs @ found.T
    q = np.exp(ours / temperature)
    p = np.exp(theirs / loss.get("teacher_embedding_temperature", temperature))
    p, q = p / p.sum(1, keepdims=True), q / q.sum(1, keepdims=True)
    return -(p * np.log(q)).sum(1)


@pytest.mark.parametrize(
    ("method", "loss"),
    [
        ("feature", {"feature_weight": 3.0}),
        ("feature", {"feature_distance": "smooth-l1"}),
        ("fkd-ssl", {}),
        ("fkd-ssl", {"prototypes": 4, "teacher_embedding_temperature": 0.03}),
    ],
)
def test_a_step_against_the_store_by_hand(settings, store, method, loss):
    """Two crops an image, so a row's partner in SelfMix is the image's other one, and the share
    of its pixels is that of its label."""
    path = store("feature")
    data = {"crops_per_image": 2, "batch_size": 8}
    settings = {**settings, "mix": {"kind": "selfmix"}, "data": {**settings["data"], **data}}
    recipe = changed(settings, method, lambda _: path, loss={"beside": "soft", **loss})
    trainer, _, _ = build_trainer(recipe)
    seen, ours = [], trainer.objective
    trainer.objective = lambda logits, shown: seen.append((logits, shown)) or ours(logits, shown)
    next(trainer.run())
    ((logits, shown),) = seen
    vectors = LabelStore(path).features(np.arange(10)[:, None], np.arange(5)).astype(float)
    whole = vectors.reshape(50, -1)
    own = vectors[shown.rows.numpy(), shown.crops.numpy()]
    projected = shown.beside.detach().double().numpy()
    partner = np.arange(8) ^ 1
    assert shown.labels is not None and torch.equal(shown.shares, shown.labels.share)
    share = shown.shares.double().numpy()
    assert 0.05 < share.mean() < 0.95
    far, other = (by_hand(method, loss, projected, f, whole) for f in (own, own[partner]))
    expected = (share * far + (1 - share) * other).mean()
    log_q = logits.detach().double().log_softmax(1)
    labels = float(-(shown.labels.dense().double() * log_q).sum(1).mean())
    weight = loss.get("feature_weight", {"feature": 4.0, "fkd-ssl": 1.0}[method])
    assert trainer.mean_loss() == pytest.approx(weight * expected + labels, rel=1e-5)


def test_the_projector_learns_with_the_student(settings, signals):
    trainer, _, _ = build_trainer(relative(settings, signals, {"beside": "none"}))
    before = copy.deepcopy(trainer.objective.layers.state_dict())
    next(trainer.run())
    after = trainer.objective.layers.state_dict()
    assert all(not torch.equal(before[name], after[name]) for name in before)


def test_the_projector_is_in_the_checkpoint_and_not_in_the_weights(settings, signals, tmp_path):
    train(relative(settings, signals, {}), tmp_path / "run")
    plain = build_student(Student(name="timm/test_efficientnet"), 3).state_dict()
    kept = load_file(tmp_path / "run" / "weights.safetensors")
    assert {k: v.shape for k, v in kept.items()} == {k: v.shape for k, v in plain.items()}
    state = torch.load(tmp_path / "run" / "checkpoint.pt", weights_only=True)
    assert (
        state["objective"]["layers"]["weight"].shape[0] == LabelStore(signals).features(0, 0).size
    )
    assert not any("layers" in name for name in state["model"])


def test_batches_hold_the_features_of_their_crops(settings, signals):
    data = open_data(relative(settings, signals, {}, data={"crops_per_image": 2}))
    batch = next(data.loader.batches(3, 4))
    stored = LabelStore(signals).features(batch.rows.numpy(), batch.crops.numpy())
    assert torch.equal(batch.features, torch.from_numpy(stored))
    assert batch.labels is None


def test_labels_that_train_the_head_alone_change_nothing_else(settings, signals, tmp_path):
    """From one start the same layers, to the bit, as of a student that has no classes at all."""
    start = tmp_path / "start.pt"
    torch.save(build_student(Student(name="timm/resnet10t"), 3).state_dict(), start)
    for beside in ("probe", "none"):
        student = {"name": "timm/resnet10t", "weights": str(start)}
        train(relative(settings, signals, {"beside": beside}, student=student), tmp_path / beside)
    probe, none = (load_file(tmp_path / n / "weights.safetensors") for n in ("probe", "none"))
    assert {*probe} - {*none} == {"fc.weight", "fc.bias"} and {*none} < {*probe}
    assert all(torch.equal(probe[name], none[name]) for name in none)
    assert load_run(tmp_path / "none", headless=True)[1].num_classes == 0
    before = torch.load(start, weights_only=True)
    moved = [name for name in none if not torch.equal(none[name], before[name])]
    assert "conv1.0.weight" in moved and not torch.equal(probe["fc.weight"], before["fc.weight"])


def test_labels_that_are_not_read_decide_nothing(settings, signals, photos):
    """Signals that are added to the store change neither data nor classes; two must be told."""
    before = open_data(relative(settings, signals, {}))
    for seed, name in enumerate(("first", "second")):
        teacher = f"timm/test_resnet?random={seed}&num_classes=3&image_size=32"
        label(photos, teacher, signals, workers=1, into=True, signal=name)
    after = open_data(relative(settings, signals, {}))
    assert (before.identity, before.class_names) == (after.identity, after.class_names)
    with pytest.raises(InputError, match=r"several signals of kind labels \(first, second\)"):
        open_data(relative(settings, signals, {"beside": "soft"}))
    chosen = [
        open_data(relative(settings, f"{signals}#{name}", {"beside": "soft"}))
        for name in ("first", "second,features")
    ]
    assert len({data.identity for data in (after, *chosen)}) == 3
    one, other = (next(data.loader.batches(0, 1)) for data in chosen)
    assert torch.equal(one.features, other.features)
    assert not torch.equal(one.labels.dense(), other.labels.dense())


def test_regions_choose_the_crops_of_a_student_that_learns_no_label(settings, store):
    """By the labels' scores crops are discarded; beside the features stands the truth alone."""
    path = store("feature")
    loss = {"beside": "hard", "by_regions": True, "label_temperature": 3.0}  # of no label
    regions = {"thresholds": [0.5, 0.5, 1.0], "scale": "image_quantile"}
    data = open_data(relative(settings, path, loss, regions=regions))
    found = data.mining.regions
    assert (found == 0).any()
    shown = list(data.loader.batches(0, 12))
    assert all(batch.labels is None for batch in shown)
    rows, crops = (torch.cat([getattr(b, n) for b in shown]).numpy() for n in ("rows", "crops"))
    assert (found[rows, crops] != 0).all()


def test_what_cannot_be_is_refused(settings, signals, photos, tmp_path):
    label(photos, f"{TEACHER}&image_size=32", tmp_path / "labels", workers=1, crops=2)
    with pytest.raises(InputError, match=r"holds no features; make them with ferkd label --kind"):
        open_data(relative(settings, tmp_path / "labels", {}))
    with pytest.raises(InputError, match=r"holds no labels; make them with ferkd label --into"):
        open_data(relative(settings, signals, {"beside": "soft"}))
    conv = {"name": "torchvision/squeezenet1_1"}  # what its head is
    with pytest.raises(InputError, match="does not end in a linear layer, whose input its feat"):
        build_trainer(relative(settings, signals, {}, student=conv))
    with pytest.raises(InputError, match="takes the mean of all stored features, which a store"):
        build_trainer(relative(settings, signals, {}, data={"partial": True}))
    with pytest.raises(InputError, match=r"loss\.feature_distance"):
        relative(settings, signals, {"feature_distance": "euclid"})
    with pytest.raises(InputError, match=r"loss\.beside"):
        changed(settings, "feature-live", lambda _: None, loss={"beside": "soft"})
    recipes = {
        "a": relative(settings, signals, {}),
        "b": changed(settings, "fkd", lambda _: str(signals)),
    }
    with pytest.raises(InputError, match=r"differ in method \(the labels that it reads\)"):
        check_shared(recipes)


def test_students_with_and_without_classes_share_no_data(settings, signals):
    """Their batches are the same, but the number of classes comes with the data."""
    one, other = (relative(settings, signals, {"beside": beside}) for beside in ("none", "hard"))
    with pytest.raises(InputError, match=r"differ in loss\.beside \(whether there are classes\)"):
        check_shared({"a": one, "b": other})
    probe = relative(settings, signals, {"beside": "probe"})
    check_shared({"a": probe, "b": other})


def test_recipes_whose_labels_are_taken_otherwise_share_no_batches(settings, store):
    once = store("fkd")
    one, other = (
        changed(settings, "fkd", lambda _: once, loss={"truth_share": share}) for share in (0, 1)
    )
    with pytest.raises(InputError, match=r"differ in loss\.truth_share"):
        check_shared({"a": one, "b": other})


# Without classes


def test_a_flat_folder_from_labels_to_a_fine_tuned_student(
    settings, photos, tmp_path, command_line, caplog
):
    flat = tmp_path / "flat"
    flat.mkdir()
    for number, file in enumerate(sorted(photos.rglob("*.jpg"))):
        shutil.copy(file, flat / f"{number}.jpg")
    teacher = "timm/test_efficientnet?random=1&image_size=32"
    made = command_line(
        *("label", flat, "--teacher", teacher, "--kind", "features", "--no-targets"),
        *("--crops", 4, "--out", tmp_path / "signals", "--workers", 1),
    )
    assert made[0] == 0, made[2]
    data = {**settings["data"], "images": str(flat), "store": str(tmp_path / "signals")}
    caplog.set_level("INFO", "ferkd")
    free = {**settings, "method": "fkd-ssl", "data": data}
    result = train(make_recipe(free), tmp_path / "run")
    assert "top1" not in result and "data.val is not evaluated" in caplog.text
    with pytest.raises(InputError, match=r"class folders; without classes set loss\.beside none"):
        build_trainer(make_recipe({**free, "method": "feature"}))
    status, out, err = command_line(
        *("evaluate", tmp_path / "run", photos, "--knn", "--probe", "--reference", photos),
        *("--workers", 0, "--json"),
    )
    found = json.loads(out)
    assert status == 0, err
    assert (found["judged_images"], found["reference_images"], found["knn_k"]) == (10, 10, 10)
    assert 0 <= found["knn_top1"] <= 1 and 0 <= found["probe_top1"] <= 1
    status, _, err = command_line("evaluate", tmp_path / "run", photos)
    assert status == 2 and "was trained without classes" in err and "--knn --probe" in err
    start = {"name": "timm/test_efficientnet", "weights": str(tmp_path / "run")}
    tuned = make_recipe({**settings, "method": "hard", "student": start})
    model = build_trainer(tuned)[0].model
    kept = load_file(tmp_path / "run" / "weights.safetensors")
    state = model.state_dict()
    assert all(torch.equal(state[name], kept[name]) for name in kept)
    assert not state["classifier.weight"].any() and state["classifier.weight"].shape[0] == 3
    assert 0 <= train(tuned, tmp_path / "tuned")["top1"] <= 1


def test_a_student_without_classes_takes_pretrained_weights_without_their_head(tmp_path):
    whole = build_student(Student(name="timm/test_resnet"), 7)
    torch.save(whole.state_dict(), tmp_path / "w.pt")
    bare = build_student(Student(name="timm/test_resnet", weights=tmp_path / "w.pt"), 0)
    own = bare.state_dict()
    assert all(torch.equal(whole.state_dict()[name], own[name]) for name in own)
    assert bare.eval()(torch.zeros(1, 3, 32, 32)).shape == (1, whole.num_features)
    torchvision = build_student(Student(name="torchvision/resnet18"), 0, image_size=32)
    assert torchvision.eval()(torch.zeros(1, 3, 32, 32)).shape == (1, 512)


def test_a_fresh_head_forgets_the_labels_of_its_weights(tmp_path):
    whole = build_student(Student(name="timm/test_resnet"), 3)
    torch.save(whole.state_dict(), tmp_path / "w.pt")
    start = Student(name="timm/test_resnet", weights=tmp_path / "w.pt", fresh_head=True)
    found = build_student(start, 3, image_size=32)
    head = found.get_classifier()
    assert not head.weight.any() and not head.bias.any()
    own, theirs = found.state_dict(), whole.state_dict()
    spared = [name for name in own if not torch.equal(own[name], theirs[name])]
    assert {name.rpartition(".")[0] for name in spared} == {"fc"}
