"""docs/evidence.md says what the committed results say."""

from __future__ import annotations

import importlib.util
import json
import re
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch
from typer.main import get_command

from ferkd.cli import app
from ferkd.study.bench.distortion import markdown
from ferkd.study.compare import load_suite
from ferkd.study.compare.summary import paired
from ferkd.system.statistics import mean, sample_deviation

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "docs" / "results"


def script(name: str, folder: Path = RESULTS) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, folder / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def test_the_tables_are_those_of_the_results(capsys, monkeypatch):
    tables = script("tables")
    for page in tables.PAGES:
        text = page.read_text(encoding="utf-8")
        marks = [bool(tables.MARK.fullmatch(line)) for line in text.splitlines()]
        begun = text.count("<!-- table ") + text.count("<!-- regimes ")
        assert 0 < sum(marks) == begun, page
    monkeypatch.setattr(sys, "argv", ["tables.py", "--check"])
    assert tables.main() == 0, capsys.readouterr().out


def test_the_table_of_regimes_is_that_of_the_results():
    lines = script("tables").regimes.table("photographs")
    assert (RESULTS / "regimes.md").read_text(encoding="utf-8").splitlines() == lines


def test_a_regime_pays_where_its_interval_says_so(monkeypatch):
    """By hand: top-1 .5 against .4 and .6 against .5 of seeds 0 and 1: +10 [+10, +10] points; the
    other way round it costs. Of NLL alone: 1.0 against 1.2 in both. And neither."""
    regimes = script("tables").regimes

    def rows(ours, base):
        of = {"ours": ours, "base": base}
        runs = {
            name: {str(seed): {"top1": t, "nll": n} for seed, (t, n) in enumerate(pairs)}
            for name, pairs in of.items()
        }
        monkeypatch.setattr(
            regimes, "_methods", lambda row: {name: {"runs": r} for name, r in runs.items()}
        )
        return regimes.verdict(row)

    row = regimes.Row("", "", "", "", "", "ours", "base")
    high, low = [(0.5, 1.0), (0.6, 1.0)], [(0.4, 1.0), (0.5, 1.0)]
    assert rows(high, low) == "yes" and regimes.gain(row) == "+10.0 [+10.0, +10.0]"
    assert rows(low, high) == "no, it costs"
    crossed = [(0.4, 1.0), (0.5, 1.0)], [(0.5, 1.2), (0.4, 1.2)]
    assert rows(*crossed) == "in NLL" and regimes.nll(row) == "-0.200 [-0.200, -0.200]"
    assert rows(*crossed[::-1]) == "no, NLL suffers"
    assert rows([(0.4, 1.0), (0.5, 1.2)], [(0.5, 1.2), (0.4, 1.0)]) == "not told apart"


def test_tiny_imagenet_becomes_class_folders(tmp_path):
    """Two of three classes by name, images by number (2 before 10), validation by its list."""
    root = tmp_path / "tiny-imagenet-200"
    for name in ("n03", "n01", "n02"):
        (root / "train" / name / "images").mkdir(parents=True)
        for number in (10, 2, 0):
            (root / "train" / name / "images" / f"{name}_{number}.JPEG").write_bytes(b"x")
    (root / "val" / "images").mkdir(parents=True)
    for number in range(3):
        (root / "val" / "images" / f"val_{number}.JPEG").write_bytes(b"x")
    lines = "val_0.JPEG\tn02\t0\t0\nval_1.JPEG\tn03\t0\t0\nval_2.JPEG\tn01\t0\t0\n"
    (root / "val" / "val_annotations.txt").write_text(lines)
    assert script("tiny_imagenet").main(root, 2, 2, tmp_path / "out") == (4, 2)
    found = sorted(str(f.relative_to(tmp_path / "out")) for f in tmp_path.rglob("out/*/*/*"))
    assert found == [
        "train/n01/n01_0.JPEG",
        "train/n01/n01_2.JPEG",
        "train/n02/n02_0.JPEG",
        "train/n02/n02_2.JPEG",
        "val/n01/val_2.JPEG",
        "val/n02/val_0.JPEG",
    ]


def test_a_table_is_written_anew():
    """By hand: 40 and 60 % are 50.0 ± 14.1, and 20 points above 20 and 40 %."""
    tables = script("tables")

    def row(*top1):
        runs = {str(seed): {"top1": value, "nll": 1.0} for seed, value in enumerate(top1)}
        mean = sum(top1) / 2
        spread = abs(top1[0] - top1[1]) / 2**0.5
        return {
            "seeds": [0, 1],
            "runs": runs,
            "top1_mean": mean,
            "top1_std": spread,
            "nll_mean": 1.0,
            "nll_std": 0.0,
        }

    rows = {"a": row(0.2, 0.4), "b": row(0.4, 0.6)}
    assert tables._spread(rows["b"], "top1", 100, 1) == "50.0 ± 14.1"
    assert tables._difference(rows, "b", "a", "top1", 100, 1) == "+20.0 [+20.0, +20.0]"
    assert tables._difference(rows, "a", "a", "top1", 100, 1) == "–"
    mark = "<!-- table flowers-small.json budget=short only=hard,fkd no=reach -->"
    new = list(tables.renewed(["before", mark, "", "| old |", "", "after"]))
    again = list(tables.renewed(new))
    assert new == again and new[0] == "before" and new[-2:] == ["", "after"]
    assert [line.split(" | ")[0] for line in new[3:-2]] == [
        "| method",
        "|---|---|---|---|---|---|",
        "| hard",
        "| fkd",
    ]


def test_every_committed_pair_of_fkd_and_ferkd_is_pooled_once():
    """By name, with what the rule's name is in each suite; repeats have the runs of their pair."""
    pooled = script("pooled")
    counted = [pair for pairs in pooled.PAIRS.values() for pair in pairs]
    assert len({*counted}) == len(counted) and not {*counted} & {*pooled.REPEATED}
    known = {*counted, *pooled.REPEATED}
    # FerKD with a fixed triple and a hard band, which is not the default rule.
    known.add(pooled.Pair("flowers-ablation", "short", "fkd", "ferkd"))
    found = 0
    for file in RESULTS.glob("*.json"):
        result = json.loads(file.read_text())
        budgets = result.get("budgets", {}) if isinstance(result, dict) else {}
        for budget, entry in budgets.items():
            for name in entry["methods"]:
                ending = re.fullmatch(r"(?:ferkd|reliable)(|-.*)", name)
                if ending and f"fkd{ending[1]}" in entry["methods"]:
                    found += 1
                    pair = pooled.Pair(file.stem, budget, f"fkd{ending[1]}", name)
                    assert pair in known, f"{pair} is left out of pooled.py"
    assert found > 20
    for repeat, pair in pooled.REPEATED.items():
        assert pair in counted
        for key in ("top1", "nll"):
            for ours, theirs in ((repeat.fkd, pair.fkd), (repeat.ferkd, pair.ferkd)):
                few = pooled.figures(pooled.rows(repeat.result, repeat.budget)[ours], key)
                many = pooled.figures(pooled.rows(pair.result, pair.budget)[theirs], key)
                assert few.items() <= many.items(), repeat


def test_a_lead_is_that_of_the_seeds_of_both(monkeypatch):
    """By hand: seeds 1 and 2 in common, 0.5 and 0.7 less 0.4 and 0.5; a list, a mapping, a mean."""
    pooled = script("pooled")

    def of(**runs):
        return {"runs": {seed: {"nll": value} for seed, value in runs.items()}}

    results = {
        "seeds": {"fkd": of(a=9.0, b=0.4, c=0.5), "ferkd": of(b=0.5, c=0.7, d=9.0)},
        "lists": {
            "fkd": {"runs": [{"seed": 0, "nll": 0.4}, {"seed": 1, "nll": 0.5}]},
            "ferkd": {"runs": [{"seed": 1, "nll": 0.7}]},
        },
        "means": {"fkd": {"nll": 0.4, "seeds": 3}, "ferkd": {"nll": 0.6, "seeds": 3}},
    }
    monkeypatch.setattr(pooled, "rows", lambda result, budget: results[result])
    leads = [pooled.lead(pooled.Pair(name, "", "fkd", "ferkd"), "nll") for name in results]
    assert leads == [(pytest.approx(0.15), 2), (pytest.approx(0.2), 1), (pytest.approx(0.2), 3)]


def test_the_pooled_lead_is_the_one_that_the_pages_state(capsys):
    """Intervals, counts and medians, as printed, in evidence.md."""
    script("pooled").main()
    said = capsys.readouterr().out
    page = " ".join((RESULTS.parent / "evidence.md").read_text(encoding="utf-8").split())
    leads = re.findall(r"^(?:top1|nll)(?:, each data set once)?: (\S+ \[.*?\])", said, re.M)
    assert len(leads) == 4
    for lead in leads:
        assert lead in page, lead
    for key, name in (("top1", "top-1"), ("nll", "NLL")):
        ahead, of = re.search(rf"^{key}: .* ahead in (\d+) of (\d+)$", said, re.M).groups()
        median = re.search(rf"^{key}, median: (\S+)$", said, re.M)[1]
        assert f"{name} ahead in {ahead} of {of}" in page and f"median {median}" in page
    scenes = re.search(r"^scenes: (\d+) circumstances$", said, re.M)[1]
    assert f"{scenes} of the {of} are the scenes" in page


COMPARED = [
    file
    for file in sorted(RESULTS.glob("*.json"))
    if "budgets" in json.loads(file.read_text(encoding="utf-8"))
]


FIGURES = ("top1", "nll", "knn_top1", "probe_top1")


@pytest.mark.parametrize("file", COMPARED, ids=lambda file: file.name)
def test_committed_figures_are_what_this_code_makes_of_the_committed_runs(file):
    """Means, deviations and paired differences of the figures, by today's summary."""
    result = json.loads(file.read_text(encoding="utf-8"))
    for entry in result["budgets"].values():
        rows = entry["methods"]
        for name, row in rows.items():
            assert any(f"{key}_mean" in row for key in FIGURES), name
            for key in [key for key in FIGURES if f"{key}_mean" in row]:
                values = {int(seed): run[key] for seed, run in row["runs"].items()}
                assert mean([*values.values()]) == pytest.approx(row[f"{key}_mean"], abs=1e-12)
                spread = sample_deviation([*values.values()])
                assert spread == pytest.approx(row[f"{key}_std"], abs=1e-12), (name, key)
                base = rows.get(result["baseline"])
                if base is None or f"{key}_difference" not in row:
                    continue
                theirs = {int(seed): run[key] for seed, run in base["runs"].items()}
                found, kept = paired(values, theirs), row[f"{key}_difference"]
                for part in ("mean", "std", "low", "high"):
                    assert found[part] == pytest.approx(kept[part], abs=1e-12), (name, key)


@pytest.mark.parametrize("file", sorted(RESULTS.glob("*.json")), ids=lambda file: file.name)
def test_todays_command_line_takes_the_command_of_a_result(file):
    """And a suite named by it is shipped, with every method that the result has."""
    result = json.loads(file.read_text(encoding="utf-8"))
    command = result["command"]
    if file.name == "flowers.json":  # an abbreviation of many lines, of before there were suites
        command = "ferkd train flowers-hard --set seed=0 --out runs/hard-0"
    if command.startswith("python "):
        assert (ROOT / command.split()[1]).is_file()
        return
    (words,) = docs_commands().commands(command)
    assert words[0] == "ferkd"
    assert docs_commands().complaint(words[1:], get_command(app)) is None
    if words[1] == "compare":
        methods = load_suite(words[2]).methods
        assert {name for e in result["budgets"].values() for name in e["methods"]} <= {*methods}


def docs_commands() -> ModuleType:
    return script("docs_commands", ROOT / ".ci")


def test_store_sizes_states_the_figures_of_its_results():
    """Every row of both tables of losses, and the figures of reading and opening."""
    page = (RESULTS.parent / "store-sizes.md").read_text(encoding="utf-8")
    lost = json.loads((RESULTS / "store-distortion.json").read_text(encoding="utf-8"))
    lines = {*page.splitlines()}
    rows = [line for line in markdown(lost).splitlines() if line.startswith("|")]
    assert len(rows) > 60 and [line for line in rows if line not in lines] == []
    bench = json.loads((RESULTS / "store-bench.json").read_text(encoding="utf-8"))
    details, opening = bench["details"], bench["details"]["opening"]
    text = " ".join(page.split())
    for statement in (
        f"`torch.load` | {bench['baselines']['torch.load']:.0f} |",
        f"records | {bench['value']:.3f} |",
        f"**{bench['ratios']['torch.load']:.0f}** |",
        f"| {details['decoded_to_soft_labels']['ratio']:.0f} |",
        f"the first id is read: **{1e3 * opening['open_seconds']:.1f} ms**",
        f"had grown by **{opening['resident_bytes']['private'] / 1e6:.1f} MB**",
        f"looked at {opening['resident_bytes']['mapped'] / 1e6:.1f} MB of the map",
        f"A lookup by id takes {opening['lookup_microseconds']:.0f} µs",
        f"The first batch takes {1e3 * opening['first_batch_seconds']:.0f} ms",
        f"the same batch again {1e3 * opening['second_batch_seconds']:.2f} ms",
        f"**{details['weighed']['bytes_per_crop']:.2f} bytes per crop**",
    ):
        assert statement in text, statement


def test_weights_of_another_package_are_taken_by_place_and_shape():
    pretrained = script("pretrained_weights")
    model = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.Linear(3, 1))
    theirs = {f"layer.{i}": torch.full_like(v, i) for i, v in enumerate(model.parameters())}
    ours = pretrained.by_place(model, theirs)
    model.load_state_dict(ours, strict=True)
    assert [float(v.mean()) for v in model.state_dict().values()] == [0, 1, 2, 3]
    with pytest.raises(ValueError, match=r"0\.bias is \(3,\), layer\.1 \(2,\)"):
        pretrained.by_place(model, {**theirs, "layer.1": torch.zeros(2)})
    with pytest.raises(ValueError, match="shorter"):
        pretrained.by_place(model, {"layer.0": theirs["layer.0"]})


@pytest.mark.parametrize(("percent", "count"), [(10, 3), (1, 1), (100, 30)])
def test_few_labels_are_spread_evenly_over_the_names(tmp_path, tiny_images, percent, count):
    folder = tiny_images({"a": 30, "b": 5}, size=(8, 8))
    copied = script("few_labels").main(folder, percent, tmp_path / "few")
    kept = sorted(file.name for file in (tmp_path / "few" / "a").iterdir())
    names = sorted(file.name for file in (folder / "a").iterdir())
    assert kept == names[:: 30 // count] and copied == count + max(1, 5 * percent // 100)


def test_of_few_labels_all_images_stand_in_one_folder_too(tmp_path, tiny_images):
    """30 and 5 images, 10 % known: 3 and 1 in class folders, the others without a class."""
    folder = tiny_images({"a": 30, "b": 5}, size=(8, 8))
    assert script("few_labels").main(folder, 10, tmp_path / "few", tmp_path / "all") == 4
    counts = {path.name: len([*path.iterdir()]) for path in (tmp_path / "all").iterdir()}
    assert counts == {"a": 3, "b": 1, "_unlabelled": 31}


def test_the_peer_pays_for_its_teacher_with_every_student():
    """By hand: labels 10 s; 2 and 4 s a student against 7 and 9: 13 / 8 for one, 19 / 24 for three.
    Accuracies .6 and .7 against .5 and .7: +5 points."""
    peer = script("timm_peer", ROOT / "benchmarks")
    found = {"ours": [0.6, 0.7], "theirs": [0.5, 0.7], "ours_s": [2.0, 4.0], "theirs_s": [7.0, 9.0]}
    result = peer.summary(found, 10.0)
    assert result["students"] == {
        "1": {"stored": 13.0, "timm": 8.0},
        "3": {"stored": 19.0, "timm": 24.0},
        "10": {"stored": 40.0, "timm": 80.0},
    }
    assert result["difference"]["mean"] == pytest.approx(5.0)
    assert result["difference"]["low"] < 0 < result["difference"]["high"]
