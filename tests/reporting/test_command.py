"""``patch-level report`` as a shell sees it."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest
from typer.testing import CliRunner

from patch_algorithm.cli import app
from patch_algorithm.reporting.plots import draw, pictures
from patch_algorithm.reporting.report import make_report
from patch_algorithm.reporting.style import DARK, LIGHT
from tests.reporting.synthetic import EVAL, SAME_COMPUTE, SAME_DATA, ends_at, lines, run, write

PICTURES = {
    "eval-by-tokens",
    "eval-by-compute",
    "eval-by-time",
    "final-by-compute",
    "recovery-patch",
    "training-loss",
    "learning-rate",
    "speed",
    "memory",
}


@pytest.fixture
def runs(tmp_path: Path) -> list[str]:
    """A patch run of two seeds, and its twins."""
    return [
        run(tmp_path / "patch-1", seed=1, loss=ends_at(5.10)),
        run(tmp_path / "patch-2", seed=2, loss=ends_at(5.12)),
        run(tmp_path / "data", SAME_DATA, loss=ends_at(5.00)),
        run(tmp_path / "compute", SAME_COMPUTE, loss=ends_at(5.25)),
    ]


class Page(HTMLParser):
    """What a browser would fetch, and the text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.links: list[str] = []
        self.words = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.links += [value or "" for name, value in attrs if name in ("src", "srcset", "href", "data")]

    def handle_data(self, data: str) -> None:
        self.words += data


def test_page_pictures_and_numbers(runs: list[str], tmp_path: Path) -> None:
    out = tmp_path / "out"
    result = CliRunner().invoke(app, ["report", *runs, "--out", str(out)])
    assert result.exit_code == 0, result.output
    assert "+0.110 nats, worse" in result.output
    assert {path.stem for path in out.glob("*.png")} == PICTURES
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in out.glob("*.png"))
    text = (out / "report.html").read_text("utf-8")
    page = Page(text)
    assert len(page.links) == 2 * len(PICTURES)
    assert all(link.startswith("data:image/svg+xml;base64,") for link in page.links), "no network"
    assert "prefers-color-scheme: dark" in text
    assert not re.search(r"url\(|@import|<script", text)
    for words in (
        "Equal data (491,520 raw tokens)",
        "Equal compute",
        "patch-2",
        "level with compute",
        "5.100",
    ):
        assert words in page.words
    numbers = json.loads((out / "report.json").read_text("utf-8"))
    assert [verdict["difference"] for verdict in numbers["verdicts"]] == pytest.approx([0.11, -0.14])
    assert [group["name"] for group in numbers["groups"]] == ["patch", "data", "compute"]


@pytest.mark.parametrize("name", ["report.html", "report.json", "training-loss.png"])
def test_json_and_overwriting(
    name: str, runs: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("patch_algorithm.reporting.writing.draw", lambda *_: b"picture")
    monkeypatch.setattr("patch_algorithm.reporting.writing.render", lambda *_: "page")
    out = tmp_path / "out"
    call = ["report", runs[0], runs[2], "--out", str(out), "--json"]
    first = CliRunner().invoke(app, call)
    assert first.exit_code == 0
    assert json.loads(first.stdout)["verdicts"][0]["stated"] is True
    for path in out.iterdir():
        path.unlink()
    (out / name).write_text("kept")
    (out / "recovery-other.png").write_text("of an earlier report")
    second = CliRunner().invoke(app, call)
    assert second.exit_code == 2
    assert f"{name} exists. Give --overwrite" in second.output
    assert {path.name: path.read_text() for path in out.iterdir()} == {
        name: "kept",
        "recovery-other.png": "of an earlier report",
    }
    assert CliRunner().invoke(app, [*call, "--overwrite"]).stdout == first.stdout
    assert (out / name).read_text() != "kept"
    assert (out / "recovery-other.png").read_text() == "of an earlier report"


def test_the_same_runs_give_the_same_bytes_and_a_theme_others(runs: list[str]) -> None:
    report = make_report(runs)
    picture = pictures(report.groups, report.recoveries, report.compute)[0]
    light = draw(picture, LIGHT, "svg")
    assert draw(picture, LIGHT, "svg") == light
    assert LIGHT.lines[0].lower().encode() in light
    dark = draw(picture, DARK, "svg")
    assert DARK.lines[0].lower().encode() in dark
    assert DARK.ground.encode() in dark


def test_every_odd_run_can_be_drawn(tmp_path: Path) -> None:
    odd = [
        run(tmp_path / "three <&>", ((8, 40), (4, 40), (1, 40))),
        run(tmp_path / "targets", reads_patches=False),
        run(tmp_path / "no-evals", every=0),
        run(tmp_path / "old", seed=None, flops=False),
        run(tmp_path / "broken", stop=50, ends=False),
        run(tmp_path / "first-step", stop=1, ends=False),
        run(tmp_path / "twin", SAME_DATA),
    ]
    result = CliRunner().invoke(app, ["report", *odd, "--out", str(tmp_path / "out")])
    assert result.exit_code == 0, result.output
    text = (tmp_path / "out" / "report.html").read_text("utf-8")
    assert "three &lt;&amp;&gt;" in text
    assert "no-evals: no evaluation with" in result.output


@pytest.mark.parametrize(("loss", "first"), [("nan", 81), ("inf", 1)])
def test_a_diverged_run_has_a_report(loss: str, first: int, tmp_path: Path) -> None:
    history = lines(name="patch")
    for line in history:
        if line.get("step", 0) >= first and "metrics" in line:
            names = ("loss/train/total", "patch_level/loss", EVAL)
            line["metrics"] |= {name: loss for name in names if name in line["metrics"]}
    out = tmp_path / "out"
    call = [
        "report",
        write(tmp_path / "patch", history),
        run(tmp_path / "twin", SAME_DATA),
        "--out",
        str(out),
    ]
    result = CliRunner().invoke(app, call)
    assert result.exit_code == 0, result.output
    assert f"patch: the training loss is not finite at step {first}." in result.output
    assert "patch: the eval loss is not finite at its end." in result.output
    assert "its eval loss at its end is not finite. Repeat it with settings under which" in result.output
    assert "the training loss is not finite" in Page((out / "report.html").read_text("utf-8")).words
    assert (out / "training-loss.png").exists()


def test_a_picture_that_cannot_be_drawn_leaves_no_file(
    runs: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise ValueError("cannot be drawn")

    monkeypatch.setattr("patch_algorithm.reporting.figures.curve_figure", fail)
    result = CliRunner().invoke(app, ["report", runs[0], "--out", str(tmp_path / "out")])
    assert result.exit_code == 2
    assert not (tmp_path / "out").exists()


def test_bad_input_is_named(runs: list[str], tmp_path: Path) -> None:
    (tmp_path / "notes.md").write_text("# Notes\n")
    bad = tmp_path / "bad.jsonl"
    bad.write_text('{"kind": "start", "step": 0}\n{"kind": "step"}\n')
    out = str(tmp_path / "out")
    for arguments, words in (
        ([str(tmp_path / "none")], "does not exist"),
        ([str(tmp_path / "notes.md")], "notes.md is not a history"),
        ([str(bad)], "bad.jsonl is not a history: line"),
        ([str(bad)], "line 2"),
        ([str(tmp_path)], "is a folder without history.jsonl"),
        ([runs[0], runs[0]], "are the same run"),
        ([runs[0], "--baseline", "nobody"], "--baseline nobody is not one of the runs"),
        ([runs[0], "--out", str(bad)], "is a file. Give a folder."),
    ):
        result = CliRunner().invoke(app, ["report", "--out", out, *arguments])
        assert result.exit_code == 2, arguments
        assert words in result.output
        assert "Traceback" not in result.output
    assert not (tmp_path / "out").exists()


def test_help_and_reading_need_neither_torch_nor_matplotlib(runs: list[str]) -> None:
    heavy = "{'torch', 'composer', 'matplotlib', 'pandas', 'numpy', 'jinja2'} & set(sys.modules)"
    for code in (
        "from patch_algorithm.cli import app; app(['report', '--help'], standalone_mode=False)",
        f"from patch_algorithm.reporting.report import make_report; make_report({runs!r})",
    ):
        code = f"import sys; {code}; print(sorted({heavy}))"
        result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        assert result.stdout.splitlines()[-1] == "[]"
