"""Help that fits: commands by purpose, nothing cut, an example of each command that means it."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import typer

from ferkd.cli.commands import app
from ferkd.cli.help import EXAMPLES, GROUPS
from ferkd.system import doctor


def commands(group=None, path=()):
    """Every command that does something, by its words after ``ferkd``."""
    group = group or typer.main.get_command(app)
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from commands(command, (*path, name))
        else:
            yield (*path, name), command


def app_commands():
    return typer.main.get_command(app).commands


@pytest.mark.parametrize("flag", ["-h", "--help"])
def test_help_fits_a_screen_of_80_columns(command_line, monkeypatch, flag):
    monkeypatch.setenv("COLUMNS", "80")
    status, text, _ = command_line(flag)
    lines = text.splitlines()
    assert status == 0 and len(lines) <= 50 and max(map(len, lines)) <= 80
    assert "..." not in text.replace("[ARGS]...", "")  # nothing is cut
    for title in ("Do:", "Look:", "Share:", "Measure:", "Examples:"):
        assert title in lines
    after = lines[lines.index("Examples:") + 1 :]
    assert sum(line.startswith("  ferkd ") for line in after) == 3


def test_help_fits_a_screen_of_40_columns(command_line, monkeypatch):
    monkeypatch.setenv("COLUMNS", "40")
    lines = command_line("-h")[1].splitlines()
    assert len(lines) <= 52 and max(map(len, lines)) <= 40
    shown = [" ".join(line.split()) for line in lines]  # a command and its words on one line
    for group in GROUPS.values():
        for name, words in group.items():
            assert name not in app_commands() or f"{name} {words}" in shown


@pytest.mark.parametrize("columns", ["40", "80"])
def test_no_groups_help_is_cut(command_line, monkeypatch, columns):
    monkeypatch.setenv("COLUMNS", columns)
    for name, group in app_commands().items():
        if hasattr(group, "commands"):
            text = command_line(name, "-h")[1]
            assert "..." not in text.replace("[ARGS]...", "").replace("COMMAND...", ""), name


def test_every_command_is_shown_in_one_group(command_line):
    text = command_line("-h")[1]
    names = [name for group in GROUPS.values() for name in group]
    assert len(names) == len(set(names))
    for path, _ in commands():
        assert f"\n  {path[0]} " in text, path


@pytest.mark.parametrize("path", [p for p, _ in commands()], ids=" ".join)
def test_every_command_has_an_example_that_parses(command_line, path):
    status, text, _ = command_line(*path, "-h")
    example = EXAMPLES[" ".join(path)]
    assert status == 0 and text.count("Example:") == 1 and f"Example:\n    {example}" in text
    words = shlex.split(example)
    assert words[: len(path) + 1] == ["ferkd", *path]
    # Every option exists, and none that is required is missing.
    dict(commands())[path].make_context("ferkd", words[len(path) + 1 :])


def test_examples_name_recipes_and_suites_that_are_shipped():
    from ferkd.study.compare.suite import shipped_suites
    from ferkd.training.recipe import shipped_recipes

    words = {name: shlex.split(example) for name, example in EXAMPLES.items()}
    assert words["compare"][2] in shipped_suites()
    assert {words["train"][2], words["plan"][2], words["recipes copy"][3]} <= {*shipped_recipes()}


def test_completion_knows_the_commands(monkeypatch):
    from typer.testing import CliRunner

    environment = {"_FERKD_COMPLETE": "complete_bash", "COMP_WORDS": "ferkd ins", "COMP_CWORD": "1"}
    found = CliRunner().invoke(app, [], prog_name="ferkd", env=environment)
    assert found.stdout.split() == ["inspect"]


@pytest.mark.skipif(shutil.which("bash") is None, reason="bash is not installed")
def test_bash_completes_commands_and_options_by_the_script_that_is_installed(tmp_path):
    ferkd = tmp_path / "ferkd"
    ferkd.write_text(f'#!/bin/sh\nexec {sys.executable} -m ferkd "$@"\n')
    ferkd.chmod(0o755)
    script = """
eval "$(_FERKD_COMPLETE=source_bash ferkd)"
for COMP_LINE in "ferkd ins" "ferkd label --tea" "ferkd bench st"; do
  COMP_WORDS=($COMP_LINE); COMP_CWORD=$((${#COMP_WORDS[@]} - 1))
  _ferkd_completion ferkd
  echo "${COMPREPLY[*]}"
done
"""
    path = f"{tmp_path}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", "-c", script], env=os.environ | {"PATH": path}, capture_output=True, text=True
    )
    assert done.stdout.splitlines() == ["inspect", "--teacher", "store step"], done.stderr


def test_the_doctor_knows_the_extras_of_the_package():
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]
    extras = set(project["optional-dependencies"]) - {"all", "docs", "examples"}
    extras = {name for name in extras if not name.endswith("test")}
    # Of the tests' and the examples' extras the doctor says nothing; others may come and go.
    assert set(doctor.EXTRAS) <= extras and {"report", "demo", "hf", "s3"} <= set(doctor.EXTRAS)


def test_the_doctors_findings_by_hand(command_line):
    well = {
        "threads": {"torch": 2, "load": 0.5},
        "limits": {"open_files": 1024, "shared_memory": 1 << 30},
        "devices": {"cpu": "", "bf16": False, "cuda:0": "a card"},
    }
    assert [x for x in doctor.problems(well, 2) if "UTF-8" not in x] == []
    ill = {
        "threads": {"torch": 8, "load": 7.0},
        "limits": {"open_files": 32, "shared_memory": 64 << 20},
        "devices": {"cpu": "", "bf16": True},
    }
    said = "\n".join(doctor.problems(ill, 2))
    for words in ("OMP_NUM_THREADS=2", "7.0 processes want 2 cores", "ulimit -n", "64 MiB free"):
        assert words in said
    ill["threads"] = {"torch": 1, "load": 7.0}  # which is as few as can be
    said = "\n".join(doctor.problems(ill, 2))
    assert "7.0 processes want 2 cores; everything takes" in said and "OMP_NUM" not in said
    assert doctor.missing(("json", "no_such_module")) == ["no_such_module"]
    status, text, _ = command_line("doctor")
    assert status == 0 and all(word in text for word in ("torch", "extras", "problems", "cores"))


def test_threads_wait_without_spinning_unless_the_user_says_so(command_line, monkeypatch):
    import os

    monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)
    command_line("--version")
    assert os.environ["OMP_WAIT_POLICY"] == "PASSIVE"
    monkeypatch.setenv("OMP_WAIT_POLICY", "ACTIVE")
    command_line("--version")
    assert os.environ["OMP_WAIT_POLICY"] == "ACTIVE"
