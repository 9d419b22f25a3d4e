"""The model card says what the run was, and replaces nothing."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from huggingface_hub import ModelCard

from tests.export.runs import check, checkpoint_of, contents, export_of, run_config

RunOf = Callable[..., Path]
RESULTS = {
    "results": {
        "hellaswag": {"acc_norm,none": 0.2512, "acc_norm_stderr,none": 0.0043, "alias": "hellaswag"},
        "wikitext": {"word_perplexity": 30.25},
    }
}


@pytest.fixture
def config(corpus: Path, tmp_path: Path) -> Path:
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump(run_config("llama", corpus, tmp_path, run_name="a-run")))
    return path


@pytest.fixture
def export(run_of: RunOf, tmp_path: Path) -> Path:
    return shutil.copytree(export_of(run_of("llama")), tmp_path / "export")


def test_a_card_says_what_the_run_was(run_of: RunOf, export: Path, config: Path, tmp_path: Path) -> None:
    (tmp_path / "results.json").write_text(json.dumps(RESULTS))
    checkpoint = checkpoint_of(run_of("llama"))
    asked = export, "--checkpoint", checkpoint, "--config", config, "--card"
    result = check(*asked, "--results", tmp_path / "results.json")
    assert result.exit_code == 0, result.output
    card = (export / "README.md").read_text()
    for line in (
        "# a-run",
        "LlamaForCausalLM with 7,760 parameters, a context of 8 tokens, 96 embeddings, stored in float32.",
        "| patches | 4 | 3 | 384 |",
        "| tokens | 1 | 1 | 128 |",
        "- Raw tokens: 512",
        "- Share of them trained in patches: 0.75",
        "- Switch to tokens: at 3ba",
        "- Compute, as a share of token-only training on the same tokens: 0.438",
        "- Data: 8,192 tokens in rows of 32; tokenizer tiny",
        "| hellaswag | acc_norm | 0.2512 ± 0.0043 |",
        "| wikitext | word_perplexity | 30.25 |",
    ):
        assert line in card.splitlines()
    assert "- This export was compared with its checkpoint: all 21 weights equal" in card
    assert "trust_remote_code" not in card
    assert "not finished" not in card
    assert "\n\n\n" not in card
    assert ModelCard(card).data.library_name == "transformers"

    before = contents(export)
    again = check(*asked)
    assert again.exit_code == 2
    assert "README.md exists, and is not overwritten" in again.stderr
    assert contents(export) == before
    assert check(*asked, "--overwrite").exit_code == 0
    assert "Not evaluated for this card." in (export / "README.md").read_text()


def test_cards_of_other_runs(run_of: RunOf, export: Path, config: Path, tmp_path: Path) -> None:
    planned = check(export, "--config", config, "--card")
    assert planned.exit_code == 0
    card = (export / "README.md").read_text()
    assert "K=4, switch at 3ba, seq_len=None, by the run's configuration; no checkpoint was read" in card
    assert "patch-level training](https://arxiv.org/abs/2407.12665)" in card

    early = shutil.copytree(export_of(run_of("llama"), 2), tmp_path / "early")
    forced = check(early, "--checkpoint", checkpoint_of(run_of("llama"), 2), "--force", "--card")
    assert forced.exit_code == 0
    card = (early / "README.md").read_text()
    assert "**This model is not finished.**" in card
    assert "patches of 4" in card

    mpt = shutil.copytree(export_of(run_of("mpt")), tmp_path / "mpt")
    asked = mpt, "--checkpoint", checkpoint_of(run_of("mpt")), "--card"
    misread = check(*asked)
    assert misread.exit_code == 1
    assert "No card was written: fix the errors first." in misread.stderr
    assert not (mpt / "README.md").exists()
    assert check(*asked, "--fix").exit_code == 0
    assert 'from_pretrained("mpt", trust_remote_code=True)' in (mpt / "README.md").read_text()


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "There is no file"),
        ("{", "is not JSON"),
        ("{}", "holds no results: expected"),
        ('{"results": {"a": 1}}', "holds no results: expected"),
        ('{"results": {"a": {"b": "c", "d": NaN}}}', "holds no numbers"),
    ],
)
def test_results_that_are_none(content: str | None, words: str, export: Path, config: Path) -> None:
    file = export.parent / "results.json"
    if content is not None:
        file.write_text(content)
    result = check(export, "--config", config, "--card", "--results", file)
    assert result.exit_code == 2
    assert words in result.stderr
    assert not (export / "README.md").exists()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--card"], "give --checkpoint, --config or both"),
        (["--overwrite"], "are for a card; add --card"),
    ],
)
def test_options_that_do_not_fit(options: list[str], words: str, export: Path) -> None:
    result = check(export, *options)
    assert result.exit_code == 2
    assert words in result.stderr
