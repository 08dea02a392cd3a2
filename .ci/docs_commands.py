"""The commands and code in README.md and docs/*.md: list, check and run them.

    docs_commands.py block HEADING    print the one fenced block under a heading of README.md
    docs_commands.py check            every `ferkd ...` line parses, its values included; Python
                                      compiles, its imports, names and calls resolve; recipes and
                                      suites are valid; `ferkd ...` in the text names what exists
    docs_commands.py run              run every block that is not marked `no-run`

A block is fenced with ```bash or ```python; a ` no-run` behind it keeps it from being run (hours of
work, data that is not here), not from being checked. The blocks of one file run in order in one
folder, a copy of the working tree, so a later block may use what an earlier one wrote. The block
under "Test it" is left out of `run`: .ci/run has run it before.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
FENCE = re.compile(r"^(?P<indent> *)```(?P<language>[a-z]*)(?P<info>[^`\n]*)$")
SHELL = ("bash", "sh", "shell", "console")
MENTION = re.compile(r"(?<!`)`(ferkd [a-z][^`]*|python [\w./-]+\.py[^`]*)`(?!`)")
HEADING = re.compile(r"^#+ +(?P<title>.*?)\s*$")
# Words that may stand before a command's name in one simple command.
LEADING = re.compile(r"^(if|then|else|do|while|until|!|time|nice|exec|[A-Za-z_]\w*=.*)$")


@dataclass(frozen=True)
class Block:
    """One fenced block: its file, the number of its first line, its heading and its text."""

    file: Path
    line: int
    language: str
    heading: str
    run: bool
    text: str

    @property
    def place(self) -> str:
        return f"{self.file.relative_to(ROOT)}:{self.line}"


def blocks(file: Path) -> Iterator[Block]:
    """The fenced blocks of a Markdown file, in order; console prompts and outputs are dropped."""
    heading, lines = "", file.read_text(encoding="utf-8").splitlines()
    number = 0
    while number < len(lines):
        line = lines[number]
        number += 1
        if title := HEADING.match(line):
            heading = title["title"]
        elif line.lstrip().startswith("```"):
            fence, start = FENCE.match(line), number
            while number < len(lines) and lines[number].strip() != "```":
                number += 1
            body = (
                [text.removeprefix(fence["indent"]) for text in lines[start:number]]
                if fence
                else []
            )
            number += 1
            if any(text.startswith("$ ") for text in body):
                body = [text[2:] for text in body if text.startswith("$ ")]
            if fence:
                language = "bash" if fence["language"] in SHELL else fence["language"]
                runs = language in ("bash", "python") and "no-run" not in fence["info"].split()
                yield Block(file, start + 1, language, heading, runs, "\n".join(body))


def pages() -> list[Path]:
    return [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("**/*.md"))]


def all_blocks() -> list[Block]:
    return [block for file in pages() for block in blocks(file)]


def mentions(file: Path) -> Iterator[tuple[str, str]]:
    """`ferkd ...` and `python FILE.py ...` in the running text, each with its place."""
    fenced, lines = False, []
    for line in file.read_text(encoding="utf-8").splitlines():
        fence = line.lstrip().startswith("```")
        lines.append("" if fence or fenced else line)
        fenced ^= fence
    text = "\n".join(lines)
    for found in MENTION.finditer(text):
        line = text.count("\n", 0, found.start()) + 1
        yield f"{file.relative_to(ROOT)}:{line}", found[1]


def stranger(words: str, command: Any) -> str | None:
    """A command, option or script that a mention names and that does not exist.

    A mention may leave out what the text does not need, so missing arguments are no fault.
    """
    name, *rest = words.split()
    if name == "python":
        return None if (ROOT / rest[0]).is_file() else f"there is no {rest[0]}"
    path = name
    while hasattr(command, "commands") and rest and re.fullmatch(r"[a-z][a-z-]*", rest[0]):
        path, name = f"{path} {rest[0]}", rest.pop(0)
        if name not in command.commands:
            return f"there is no `{path}`"
        command = command.commands[name]
    known = {option for item in command.params for option in item.opts} | {"--help", "-h"}
    options = [word.partition("=")[0] for word in rest if word.startswith("--")]
    return next((f"`{path}` has no {o}" for o in options if o not in known), None)


def commands(text: str) -> Iterator[list[str]]:
    """The simple commands of the lines that speak of ferkd, as words from a command's name on."""
    for line in text.replace("\\\n", " ").splitlines():
        if "ferkd" not in line:
            continue
        # A comment begins a word, as in bash; `labels#dino` names a signal.
        line = re.sub(r"(^|\s)#.*", "", line)
        lexer = shlex.shlex(line, posix=True, punctuation_chars=True)
        lexer.whitespace_split, lexer.commenters = True, ""
        words: list[str] = []
        for word in [*lexer, ";"]:
            if re.fullmatch(r"[();<>|&]+", word):
                while words and LEADING.match(words[0]):
                    words.pop(0)
                if words:
                    yield words
                words = []
            else:
                words.append(word)


def complaint(words: list[str], command: Any) -> str | None:
    """What is wrong with the command line ``words`` after `ferkd`, judged by the click command."""
    path, rest = ["ferkd"], list(words)
    while hasattr(command, "commands") and rest and not rest[0].startswith("-"):
        name = rest.pop(0)
        if name not in command.commands:
            return f"`{' '.join(path)}` has no command {name!r}"
        command = command.commands[name]
        path.append(name)
    try:
        command.make_context(" ".join(path), rest)
    except Exception as error:  # of typer's own copy of click, or of click, by typer's version
        if hasattr(error, "format_message"):
            return f"`{' '.join(path)}`: {error.format_message()}"
        if type(error).__name__ != "Exit":  # that is --help
            raise
    return None


def check() -> int:
    from docs_code import python_complaints, yaml_complaints
    from typer.main import get_command

    from ferkd.cli import app

    command = get_command(app)
    checked = dict.fromkeys(("command lines", "mentions", "Python blocks", "YAML blocks"), 0)
    wrong: list[str] = []
    for block in all_blocks():
        match block.language:
            case "bash":
                for words in commands(block.text):
                    if words[0] == "ferkd":
                        checked["command lines"] += 1
                        if message := complaint(words[1:], command):
                            wrong.append(f"{block.place}: {message} (in: {shlex.join(words)})")
            case "python":
                checked["Python blocks"] += 1
                wrong += (f"{block.place}: {said}" for said in python_complaints(block.text))
            case "yaml":
                checked["YAML blocks"] += 1
                wrong += (f"{block.place}: {said}" for said in yaml_complaints(block.text))
            case "" if re.search(r"^(\$ )?ferkd ", block.text, re.MULTILINE):
                wrong.append(f"{block.place}: fence commands with bash, so that they are checked")
    for file in pages():
        for place, words in mentions(file):
            checked["mentions"] += 1
            if message := stranger(words, command):
                wrong.append(f"{place}: {message} (in: {' '.join(words.split())})")
    print("\n".join(wrong), end="\n" if wrong else "")
    print(", ".join(f"{count} {kind}" for kind, count in checked.items()) + f": {len(wrong)} wrong")
    return 1 if wrong or not all(checked.values()) else 0


def run() -> int:
    runnable = [b for b in all_blocks() if b.run and b.heading != "Test it"]
    with tempfile.TemporaryDirectory() as scratch:
        for file in dict.fromkeys(block.file for block in runnable):
            folder = Path(scratch) / file.stem
            copy_tree(folder)
            for block in (b for b in runnable if b.file == file):
                print(f"{block.place}: {block.heading}", flush=True)
                start = time.monotonic()
                shell = ["bash", "-euo", "pipefail", "-c"]
                words = shell if block.language == "bash" else [sys.executable, "-c"]
                done = subprocess.run([*words, block.text], cwd=folder)
                seconds = time.monotonic() - start
                if done.returncode:
                    print(f"{block.place}: exit status {done.returncode} in:\n{block.text}")
                    return 1
                print(f"{block.place}: done in {seconds:.0f} s", flush=True)
    print(f"{len(runnable)} blocks of the documents run")
    return 0


def copy_tree(target: Path) -> None:
    """Copy what git would keep of the working tree: no build output, nothing ignored."""
    listing = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        check=True,
        capture_output=True,
    )
    for name in os.fsdecode(listing.stdout).split("\0"):
        if name and (ROOT / name).is_file():
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, target / name)


def only_block(title: str) -> str:
    """The text of the one shell block under the heading ``title`` of README.md."""
    found = [
        block.text
        for block in blocks(ROOT / "README.md")
        if block.heading == title and block.language == "bash"
    ]
    if len(found) != 1:
        sys.exit(f"README.md has {len(found)} shell blocks under '## {title}'; 1 is needed")
    return found[0]


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["block", title]:
            print(only_block(title))
        case ["check"]:
            sys.exit(check())
        case ["run"]:
            sys.exit(run())
        case _:
            sys.exit(__doc__)
