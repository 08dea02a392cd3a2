"""The page on teachers: its Python runs as it stands."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

PAGE = Path(__file__).parents[2] / "docs" / "teachers.md"


@pytest.mark.skipif(not PAGE.is_file(), reason="the documentation is not beside these tests")
def test_the_pages_code_runs(capsys: pytest.CaptureFixture[str]) -> None:
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    assert len(blocks) == 1
    scope: dict[str, object] = {}
    exec(blocks[0], scope)
    assert capsys.readouterr().out.startswith("torch.Size([4, 5]) torch.Size([4, 5])")
    gradient = scope["student_logits"].grad  # type: ignore[attr-defined]
    assert gradient.shape == (4, 10) and float(gradient.abs().sum()) > 0
