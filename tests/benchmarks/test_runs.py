"""Small runs from text to a row of results, through the real trainer."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from benchmarks.study import training, worker
from benchmarks.study.__main__ import main
from benchmarks.study.cells import MAIN
from benchmarks.study.data import load_corpus
from benchmarks.study.evaluation import document_nats, token_nats
from benchmarks.study.settings import Settings
from benchmarks.study.store import append_row, merge_rows, read_rows
from benchmarks.study.worker import run_one, work

PATCH = Settings("test", 1, 1e-2, 1, stages=MAIN, positions=1024)
TOKEN = PATCH.twin()


def pair_only(rows: dict[str, Any], skip: Any = (), corpora: Any = ()) -> tuple[str, Settings] | None:
    """A plan of two runs."""
    return next((("pair", run) for run in (TOKEN, PATCH) if run.identity not in rows), None)


@pytest.fixture(scope="module")
def results(study_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The results of a pair, the first run of which was killed and left a torn line."""
    path = tmp_path_factory.mktemp("results") / "runs.jsonl"
    with pytest.MonkeyPatch.context() as patch:
        steps = iter(range(5))

        def killed(self: Any, state: Any, logger: Any) -> None:
            if next(steps, None) is None:
                raise KeyboardInterrupt

        patch.setattr(training.Ledger, "batch_start", killed)
        with pytest.raises(KeyboardInterrupt):
            work(path, study_data, plan=pair_only)
    assert read_rows(path) == {}
    path.write_text('{"id": "' + TOKEN.identity)
    assert work(path, study_data, plan=pair_only) == 2
    return path


def test_a_killed_run_starts_again_and_ends_as_if_it_had_not_been(results: Path, study_data: Path) -> None:
    rows = read_rows(results)
    assert list(rows) == [TOKEN.identity, PATCH.identity]
    fresh = run_one(TOKEN, load_corpus(study_data / "pile"))
    assert fresh["document_nats"] == rows[TOKEN.identity]["document_nats"]


def test_a_finished_run_is_not_repeated(
    results: Path, study_data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("a finished run was trained again")

    monkeypatch.setattr(worker, "run_one", refuse)
    before = results.read_bytes()
    assert work(results, study_data, plan=pair_only) == 0
    assert results.read_bytes() == before


def test_a_run_that_another_process_is_at_work_on_is_passed_over(study_data: Path, tmp_path: Path) -> None:
    from filelock import FileLock

    (tmp_path / ".running").mkdir()
    skipped: list[set[str]] = []

    def plan(rows: dict[str, Any], skip: Any = (), corpora: Any = ()) -> tuple[str, Settings] | None:
        skipped.append(set(skip))
        return None if TOKEN.identity in skip else ("pair", TOKEN)

    with FileLock(tmp_path / ".running" / f"{TOKEN.identity}.lock"):
        assert work(tmp_path / "runs.jsonl", study_data, plan=plan) == 0
    assert skipped == [set(), {TOKEN.identity}]


def test_arms_have_equal_compute_and_the_patch_arm_reads_more(results: Path) -> None:
    token, patch = read_rows(results).values()
    assert token["steps"] == patch["steps"] == TOKEN.steps
    assert token["positions"] == patch["positions"] == TOKEN.steps * 1024
    assert token["flops"] == patch["flops"]
    assert token["raw_tokens"] == TOKEN.steps * 1024
    assert patch["raw_tokens"] == sum(PATCH.rows_of_step(s) for s in range(PATCH.steps)) * 1024
    assert patch["updates_after_switch"] == PATCH.steps - round(0.3 * PATCH.steps)


def test_runs_learn_and_seeds_differ(results: Path, study_data: Path) -> None:
    corpus = load_corpus(study_data / "pile")
    untrained = document_nats(training.make_model(TOKEN).model, corpus).sum()
    token, patch = read_rows(results).values()
    assert sum(token["document_nats"]) < 0.95 * untrained
    assert sum(patch["document_nats"]) < 0.95 * untrained
    assert token["document_nats"] != patch["document_nats"]
    other = run_one(replace(TOKEN, seed=2), corpus)
    assert other["document_nats"] != token["document_nats"]


def test_every_held_out_token_is_scored_once(study_data: Path) -> None:
    corpus = load_corpus(study_data / "pile")
    model = training.make_model(TOKEN).model
    nats = token_nats(model, corpus.held_out)
    assert len(nats) == len(corpus.held_out) - 1 == sum(corpus.documents["tokens"])
    place = 128 * 3 + 40  # the 41st target of the fourth window
    window = torch.from_numpy(corpus.held_out[128 * 3 : place + 1].astype(np.int64))[None]
    with torch.no_grad():
        wanted = -model(window).logits[0, -1].log_softmax(-1)[int(corpus.held_out[place + 1])]
    assert nats[place] == pytest.approx(float(wanted), rel=1e-4)
    by_document = document_nats(model, corpus)
    first = corpus.documents["tokens"][0]
    assert by_document[0] == pytest.approx(nats[:first].sum(), rel=1e-5)
    assert by_document.sum() == pytest.approx(nats.sum(), rel=1e-5)


def test_rows_of_another_file_are_merged_once(results: Path, tmp_path: Path) -> None:
    target = tmp_path / "runs.jsonl"
    append_row(target, read_rows(results)[PATCH.identity])
    assert merge_rows(results, target) == 1
    assert merge_rows(results, target) == 0
    assert read_rows(target).keys() == read_rows(results).keys()


def test_another_text_of_the_same_name_is_refused(results: Path, study_data: Path, tmp_path: Path) -> None:
    kept = json.loads((results.parent / "documents-pile.json").read_text())
    (tmp_path / "documents-pile.json").write_text(json.dumps({**kept, "fingerprint": "another"}))
    with pytest.raises(ValueError, match="fingerprint"):
        work(tmp_path / "runs.jsonl", study_data, plan=pair_only)


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["run"], "no prepared corpus"),
        (["again", "nothing"], "no run 'nothing'"),
        (["prepare", "pile"], "needs --train and --held-out"),
        (["prepare", "pile", "--train", "gone.jsonl", "--held-out", "gone.jsonl"], "no such file"),
        (["merge", "gone.jsonl"], "no such file"),
    ],
)
def test_bad_input_ends_with_status_2(
    arguments: list[str], told: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--results", str(tmp_path / "runs.jsonl"), *arguments]) == 2
    assert told in capsys.readouterr().err


def test_the_plan_and_help_are_printed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--results", str(tmp_path / "runs.jsonl"), "plan", "--all"]) == 0
    assert "update cell" in capsys.readouterr().out
    with pytest.raises(SystemExit, match="0"):
        main(["--help"])
    assert "prepare" in capsys.readouterr().out
