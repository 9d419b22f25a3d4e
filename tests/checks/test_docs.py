"""The table of checks in the documentation is the catalogue."""

from __future__ import annotations

import re
from pathlib import Path

from patch_algorithm.checks import CATALOGUE

PAGE = (Path(__file__).parents[2] / "docs/checks.md").read_text("utf-8")


def test_the_table_is_the_catalogue() -> None:
    rows = re.findall(r"^\| `([\w-]+)` \| (\w+) \| (yes)? ?\| (.+) \|$", PAGE, re.MULTILINE)
    listed = [(check, severity, bool(seen), summary) for check, severity, seen, summary in rows]
    assert listed == [
        (check.id, check.severity.value, check.in_algorithm, check.summary) for check in CATALOGUE.values()
    ]
