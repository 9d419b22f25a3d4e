"""What several tests of plans and checks start from."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest

from tests.planning.runs import HEALTHY
from tests.support import config, mpt


@pytest.fixture
def healthy(corpus: Path) -> dict[str, Any]:
    return copy.deepcopy(config(corpus, mpt(), **HEALTHY))
