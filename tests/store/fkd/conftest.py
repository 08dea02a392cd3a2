"""What the tests of label files of FKD's authors share."""

from __future__ import annotations

import pytest
from fkd_files import Set


@pytest.fixture
def fkd(tmp_path) -> Set:
    return Set(tmp_path)
