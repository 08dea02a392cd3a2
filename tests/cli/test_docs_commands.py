"""What CI looks for in the pages is found, and what is right there is left alone."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.main import get_command

from ferkd.cli import app

CI = Path(__file__).parents[2] / ".ci"


@pytest.fixture(autouse=True)
def ci(monkeypatch):
    monkeypatch.syspath_prepend(CI)


@pytest.mark.parametrize(
    ("code", "said"),
    [
        ("x = (", "line 1: '(' was never closed"),
        ("import ferkd.nowhere", "line 1: No module named 'ferkd.nowhere'"),
        ("from ferkd.store import Nothing", "line 1: No module named 'ferkd.store.Nothing'"),
        ("import ferkd\nferkd.Loader()", "line 2: ferkd has no 'Loader'"),
        ("print(model)", "line 1: the name 'model' comes from nowhere"),
        (
            "import ferkd\nferkd.Regions(threshold=1)",
            "line 2: ferkd.Regions: got an unexpected keyword argument 'threshold'",
        ),
        ("import ferkd\nferkd.label('a')", "line 2: ferkd.label: missing a required argument"),
    ],
)
def test_wrong_python_is_told_with_its_line(code, said):
    from docs_code import python_complaints

    (found,) = python_complaints(code)
    assert found.startswith(said)


def test_right_python_is_left_alone():
    from docs_code import python_complaints

    code = """
import os.path
import ferkd
from ferkd.store import LabelStore as Store

def first(*stores, **more):
    try:
        return [Store.open(s) for s in stores][0]
    except OSError as error:
        print(error, more, os.path.sep)

class Mine(ferkd.SoftLabelLoader):
    pass

loss = ferkd.soft_cross_entropy(*first("a"))
"""
    assert [*python_complaints(code)] == []


def test_parts_of_recipes_and_suites_are_held_to_their_rules():
    from docs_code import yaml_complaints

    assert [*yaml_complaints("method: ferkd\ndata: {store: labels}")] == []
    assert [*yaml_complaints("key: of something else")] == []
    (found,) = yaml_complaints("method: ferkd\nregions: {treshold: auto}")
    assert "recipe.regions.treshold" in found
    (found,) = yaml_complaints("base: flowers-hard\nmethods: {hard: {}}")
    assert "suite.budgets" in found
    assert len([*yaml_complaints("method: [")]) == 1


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("ferkd label --kind map", None),
        ("ferkd bench", None),
        ("ferkd distil photos", "there is no `ferkd distil`"),
        ("ferkd bench nothing", "there is no `ferkd bench nothing`"),
        ("ferkd label --kinds map", "`ferkd label` has no --kinds"),
        ("python docs/results/tables.py", None),
        ("python docs/results/none.py", "there is no docs/results/none.py"),
    ],
)
def test_a_mention_names_what_exists(words, said):
    from docs_commands import stranger

    assert stranger(words, get_command(app)) == said


def test_blocks_and_mentions_are_found_where_they_stand(tmp_path, monkeypatch):
    import docs_commands

    monkeypatch.setattr(docs_commands, "ROOT", tmp_path)
    page = tmp_path / "page.md"
    page.write_text(
        "# Title\n`ferkd\ntrain` and `other`\n```bash no-run\n`ferkd no`\n```\n"
        "1. one\n   ```python\n   x = 1\n   ```\n```yaml\na: 1\n```\n"
    )
    found = [(b.line, b.language, b.run, b.text) for b in docs_commands.blocks(page)]
    assert found == [
        (5, "bash", False, "`ferkd no`"),
        (9, "python", True, "x = 1"),
        (12, "yaml", False, "a: 1"),
    ]
    page.write_text("# Title\n\nRun `ferkd label\n--kind map` once.\n")
    assert [*docs_commands.mentions(page)] == [("page.md:3", "ferkd label\n--kind map")]


def test_a_signal_is_no_comment():
    from docs_commands import commands

    line = "ferkd signals table labels#dino means --means  # of 'each' class; isn't it"
    assert [*commands(line)] == [["ferkd", "signals", "table", "labels#dino", "means", "--means"]]
