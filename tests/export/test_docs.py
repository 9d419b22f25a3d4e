"""The command that generates text works as documented, with every kind of export."""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.export.runs import export_of

PAGE = (Path(__file__).parents[2] / "docs/export.md").read_text("utf-8")


@pytest.mark.filterwarnings("ignore:Propagating key_padding_mask")  # from the export's own code
@pytest.mark.parametrize("name", ["mpt", "llama"])
def test_the_documented_command_generates_text(
    name: str, run_of: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    (line,) = re.findall(r"^python -c .*$", PAGE, re.MULTILINE)
    _, _, code = shlex.split(line)
    for documented, here in (
        ("runs/my-run/huggingface/ba450", str(export_of(run_of(name)))),
        ("Once upon a time", "w1 w2 w3"),
        ("max_new_tokens=50", "max_new_tokens=5, min_new_tokens=5, do_sample=False"),
    ):
        assert documented in code
        code = code.replace(documented, here)
    exec(compile(code, "docs/export.md", "exec"), {"__name__": "__docs__"})
    words = capsys.readouterr().out.split()
    assert words[:3] == ["w1", "w2", "w3"]
    assert len(words) == 8
