"""Pictures and computed tables of the documentation are what the code draws and computes."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_pictures_and_tables_are_what_the_code_makes() -> None:
    command = [sys.executable, "docs/pictures/make.py", "--check"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]


def test_no_picture_is_left_that_nothing_draws() -> None:
    made = {path.name for path in (ROOT / "docs" / "pictures").glob("*.svg")}
    scripts = "".join(path.read_text("utf-8") for path in (ROOT / "docs" / "pictures").glob("*.py"))
    for name in made:
        stem = name.removesuffix(".svg").removesuffix("-light").removesuffix("-dark")
        assert f'"{stem}"' in scripts or stem.startswith("badge-"), name


def test_no_interval_and_no_seed_leaves_the_studys_chart() -> None:
    text = (ROOT / "docs" / "pictures" / "study-light.svg").read_text("utf-8")
    lines = [
        list(map(float, re.findall(r"[-\d.]+", path))) for path in re.findall(r'<path d="([^"]+)"', text)
    ]
    left = [line for line in lines if line[0] < 430]
    grid = [line[1] for line in left if len(line) == 4 and line[2] - line[0] > 300]
    assert len(grid) >= 5
    drawn = [y for line in left for y in line[1::2]]
    drawn += [float(y) for y in re.findall(r'<circle [^>]*cy="([\d.]+)"', text)]
    assert min(grid) <= min(drawn) < max(drawn) <= max(grid)
