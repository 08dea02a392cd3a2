"""docs/evidence.md says what the committed results say."""

from __future__ import annotations

import importlib.util
import json
import re
import sys
from pathlib import Path
from types import ModuleType

import pytest

RESULTS = Path(__file__).parents[2] / "docs" / "results"


def script(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, RESULTS / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def test_the_tables_are_those_of_the_results(capsys, monkeypatch):
    tables = script("tables")
    text = tables.PAGE.read_text(encoding="utf-8")
    assert text.count("<!-- table ") == sum(
        bool(tables.MARK.fullmatch(line)) for line in text.splitlines()
    )
    monkeypatch.setattr(sys, "argv", ["tables.py", "--check"])
    assert tables.main() == 0, capsys.readouterr().out


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


def test_the_pooled_lead_is_the_one_that_the_page_states(capsys):
    """Each of the four intervals and both counts, as printed."""
    script("pooled").main()
    said = capsys.readouterr().out
    page = (RESULTS.parent / "evidence.md").read_text(encoding="utf-8")
    leads = re.findall(r"^(?:top1|nll)(?:, each data set once)?: (\S+ \[.*?\])", said, re.M)
    assert len(leads) == 4 and all(lead in page for lead in leads)
    (ahead, _), (nll, all_of) = re.findall(r"ahead in (\d+) of (\d+)", said)
    assert f"ahead in {ahead}" in page and nll == all_of and f"in all {all_of} circum" in page


@pytest.mark.parametrize("file", sorted(RESULTS.glob("*.json")), ids=lambda file: file.name)
def test_results_say_how_they_were_made(file):
    result = json.loads(file.read_text(encoding="utf-8"))
    assert re.search(r"\b(ferkd|python) \S", result["command"])
    assert result["machine"]
    assert re.fullmatch(r"20\d\d-\d\d-\d\d", result.get("date") or result["machine"]["date"])
