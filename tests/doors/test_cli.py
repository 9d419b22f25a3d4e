"""``patch-level`` and ``train.py`` as a shell sees them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from patch_algorithm import __version__
from patch_algorithm.cli import app

COMMANDS = [
    [],
    *(
        [name]
        for name in ("recipe", "train", "doctor", "init", "plan", "prepare", "report", "check-export", "eval")
    ),
    *(["data", name] for name in ("convert", "info", "cat")),
]
TRAIN = Path(__file__).parents[2] / "train.py"


def train(*args: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(TRAIN), *args], cwd=cwd, capture_output=True, text=True, timeout=120, check=False
    )


def test_help_and_version() -> None:
    result = CliRunner().invoke(app, ["--help"])
    assert result.exit_code == 0
    assert "prepare" in result.output
    assert CliRunner().invoke(app, ["--version"]).output == f"patch-algorithm {__version__}\n"


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_every_help_has_examples_and_exit_codes(command: list[str]) -> None:
    long, short = (CliRunner().invoke(app, [*command, option]) for option in ("--help", "-h"))
    assert short.exit_code == 0
    assert short.output == long.output
    assert "Examples:" in short.output
    assert "Exit codes: 0" in short.output
    assert "\\b" not in short.output


def test_shell_completion_can_be_installed() -> None:
    assert "--install-completion" in CliRunner().invoke(app, ["--help"]).output


@pytest.mark.parametrize(
    "command",
    [
        "",
        "'recipe', ",
        "'train', ",
        "'doctor', ",
        "'init', ",
        "'plan', ",
        "'prepare', ",
        "'report', ",
        "'check-export', ",
        "'eval', ",
        "'data', 'convert', ",
    ],
)
def test_help_imports_nothing_heavy(command: str) -> None:
    heavy = {"torch", "transformers", "composer", "llmfoundry", "streaming", "omegaconf"}
    code = (
        f"import sys; from patch_algorithm.cli import app; app([{command}'--help'], standalone_mode=False);"
        f"print(sorted({heavy} & set(sys.modules)))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.splitlines()[-1] == "[]"


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["prepare", "none.yaml"], "there is no configuration file 'none.yaml'"),
        (["prepare", "run.yaml", "nonsense"], "is not of the form key=value"),
        (["prepare", "run.yaml", "variables.builtin_corpus.folder=x"], "lacks row_tokens"),
    ],
)
def test_prepare_with_bad_input(
    args: list[str], words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "run.yaml").write_text("max_seq_len: 8\n")
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(app, args)
    assert result.exit_code == 2
    assert words in result.output
    assert "Traceback" not in result.output


def test_prepare_where_nothing_is_asked_for(tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text("max_seq_len: 8\n")
    result = CliRunner().invoke(app, ["prepare", str(path)])
    assert result.exit_code == 0
    assert "asks for no data" in result.output


def test_train_without_arguments_and_with_help(tmp_path: Path) -> None:
    bare, helped = train(cwd=tmp_path), train("--help", cwd=tmp_path)
    assert (bare.returncode, helped.returncode) == (2, 0)
    assert "usage: composer -m patch_algorithm.train" in bare.stderr
    assert "composer train.py CONFIG.yaml" in helped.stdout


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["none.yaml"], "there is no configuration file 'none.yaml'"),
        (["run.yaml", "nonsense"], "is not of the form key=value"),
        (["run.yaml", "variables.builtin_corpus.folder=x"], "lacks row_tokens"),
    ],
)
def test_train_with_bad_input(args: list[str], words: str, tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_text("max_seq_len: 8\n")
    result = train(*args, cwd=tmp_path)
    assert result.returncode == 2
    assert result.stderr.startswith("train.py: ")
    assert words in result.stderr
    assert "Traceback" not in result.stderr


def test_train_command_passes_file_overrides_and_status_on(monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[tuple[list[str], str]] = []

    def main(args: list[str], command: str) -> int:
        given.append((args, command))
        return len(args) - 1

    monkeypatch.setattr("patch_algorithm.train.main", main)
    assert CliRunner().invoke(app, ["train", "run.yaml"]).exit_code == 0
    assert CliRunner().invoke(app, ["train", "run.yaml", "seed=1", "max_duration=2ba"]).exit_code == 2
    assert given[1] == (["run.yaml", "seed=1", "max_duration=2ba"], "patch-level train")


@pytest.mark.parametrize("command", [["-m", "patch_algorithm.cli", "train"], ["-m", "patch_algorithm.train"]])
def test_train_from_any_folder(command: list[str], tmp_path: Path) -> None:
    if "patch_algorithm.cli" in command:  # what the installed command does
        command = ["-c", "from patch_algorithm.cli import app; app()", "train"]
    done = subprocess.run(
        [sys.executable, *command, "none.yaml"],
        cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 2
    assert "train: there is no configuration file 'none.yaml'" in done.stderr
