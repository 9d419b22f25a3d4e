"""What a report says of the files it reads."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from patch_algorithm.reporting.groups import group_runs
from patch_algorithm.reporting.runs import read_run
from tests.reporting.synthetic import EVAL, SAME_DATA, TOKENS, lines, run, write


def test_a_healthy_run_has_nothing_to_say(tmp_path: Path) -> None:
    found = read_run(run(tmp_path / "patch"))
    assert found.findings == []
    assert (found.name, found.seed, found.state, found.unfinished()) == ("patch", 17, "completed", None)
    assert [(span.k, span.steps, span.label) for span in found.spans] == [
        (4, 80, "patch stage, k=4"),
        (1, 40, "token stage"),
    ]
    assert found.spans[0].positions_per_token == 0.25
    assert found.rate_left == 0
    assert found.final_loss == 5.0
    assert found.end.raw_tokens == 120 * TOKENS


def test_a_resumed_run(tmp_path: Path) -> None:
    folder = tmp_path / "patch"
    run(folder, stop=67)
    again = [dict(line) for line in lines(name="patch") if line.get("step", 0) > 60]
    write(folder, [lines(name="patch")[0] | {"step": 60}, *again])
    found = read_run(str(folder))
    assert found.findings == ["resumed after step 60; 7 steps trained twice are shown once"]
    assert found.completed
    assert [line.at.step for line in found.history.steps] == list(range(1, 121))


def test_a_run_that_went_on_after_the_end_of_a_fit_is_extended_and_not_resumed(tmp_path: Path) -> None:
    folder = tmp_path / "patch"
    run(folder, stop=60)
    write(folder, [{"kind": "end", "step": 60, "share": 1.0}])
    for start in (60, 90):
        write(folder, [lines(name="patch")[0] | {"step": start}])
        write(folder, [line for line in lines(name="patch") if start < line.get("step", 0) <= start + 30])
    assert read_run(str(folder)).findings == ["extended after step 60, resumed after step 90"]


def test_a_run_that_was_resumed_twice_from_one_step_says_so_once(tmp_path: Path) -> None:
    folder = tmp_path / "patch"
    run(folder, stop=67)
    for stop in (65, 120):
        write(folder, [lines(name="patch")[0] | {"step": 60}])
        write(folder, [line for line in lines(name="patch") if 60 < line.get("step", 0) <= stop])
    assert read_run(str(folder)).findings == ["resumed after step 60; 12 steps trained twice are shown once"]


def test_a_run_that_was_changed_when_it_was_resumed(tmp_path: Path) -> None:
    folder = tmp_path / "patch"
    run(folder, stop=60)
    again = [dict(line) for line in lines(name="patch") if line.get("step", 0) > 60]
    write(folder, [lines(name="other", seed=18)[0] | {"step": 60}, *again])
    text = "; ".join(read_run(str(folder)).findings)
    assert "seed changed during the run: 17 -> 18" in text
    assert "run_name changed during the run: patch -> other" in text


def test_a_run_killed_in_the_middle_of_a_line(tmp_path: Path) -> None:
    folder = tmp_path / "patch"
    path = Path(run(folder, stop=70)) / "history.jsonl"
    path.write_text(path.read_text()[:-25])
    number = len(path.read_text().splitlines())
    found = read_run(str(path))
    assert found.findings[0] == f"truncated or damaged lines were left out: line {number}"
    assert "broken off or still running: it has trained 70 steps of 120ba" in found.findings
    assert found.state == "broken off at 58%"
    assert found.unfinished() == "it is broken off at 58%"


def test_a_broken_off_run_with_an_evaluation_at_its_end(tmp_path: Path) -> None:
    assert read_run(run(tmp_path / "patch", stop=110, ends=False)).unfinished() is not None
    longer = read_run(run(tmp_path / "long", SAME_DATA, planned="240ba", ends=False))
    assert longer.unfinished() == "it is broken off at 50%"


def test_two_processes_in_one_file(tmp_path: Path) -> None:
    one, other = lines(name="a"), lines(name="a")[1:]
    mixed = [one[0], *(line for pair in zip(one[1:], other, strict=True) for line in pair)]
    found = read_run(write(tmp_path / "a", mixed))
    assert not found.sound
    assert found.state == "mixed"
    assert any(finding.startswith("mixed: from line 3 on") for finding in found.findings)
    assert found.unfinished() == "its file mixes the lines of several processes"


def test_a_new_run_in_the_place_of_an_old_one(tmp_path: Path) -> None:
    folder = tmp_path / "patch"
    run(folder, stop=30)
    found = read_run(run(folder))
    assert found.findings == ["an older run of 30 steps in the same file was left out"]
    assert len(found.history.steps) == 120


def test_a_file_that_begins_late_and_one_with_lost_lines(tmp_path: Path) -> None:
    late = [line for line in lines() if line["step"] > 40 or line["kind"] == "start"]
    assert (
        "begins at step 41: what came before is in another file"
        in read_run(write(tmp_path / "late", late)).findings
    )
    kept = [line for line in lines() if line["kind"] != "step" or not 31 <= line["step"] <= 40]
    at = next(n for n, line in enumerate(kept) if line["kind"] == "step" and line["step"] == 41)
    kept.insert(at, lines()[0] | {"step": 40})
    assert (
        "steps 31 to 40 are missing, though it went on after step 40"
        in read_run(write(tmp_path / "lost", kept)).findings
    )


def test_runs_without_evaluations(tmp_path: Path) -> None:
    found = read_run(run(tmp_path / "none", every=0))
    assert found.findings == [f"no evaluation with {EVAL} is recorded"]
    assert found.unfinished() == "it has no evaluation at its end"
    early = [line for line in lines() if line["kind"] != "eval" or line["step"] < 100]
    found = read_run(write(tmp_path / "early", early))
    assert found.findings == ["its last evaluation is at step 90, not at its end"]


def test_a_file_of_an_older_version(tmp_path: Path) -> None:
    found = read_run(run(tmp_path / "old", seed=None))
    assert any("written by an older version" in finding for finding in found.findings)
    assert found.state == "end not recorded"
    assert found.unfinished() is None, "its rate has decayed"
    flat = read_run(run(tmp_path / "flat", seed=None, rate=lambda share: 1.0))
    assert flat.unfinished() == "its learning rate is at 100% of the peak at its end"
    bare = lines(seed=None)
    for line in bare:
        line.get("metrics", {}).pop("lr-AdamW/group0", None)
    found = read_run(write(tmp_path / "bare", bare))
    assert found.unfinished() == "its file records neither max_duration nor the learning rate"


def test_stages_8_4_1_and_targets_alone(tmp_path: Path) -> None:
    found = read_run(run(tmp_path / "three", ((8, 40), (4, 40), (1, 40))))
    assert [span.label for span in found.spans] == ["patch stage, k=8", "patch stage, k=4", "token stage"]
    assert [span.positions_per_token for span in found.spans] == [0.125, 0.25, 1.0]
    found = read_run(run(tmp_path / "targets", reads_patches=False))
    assert [span.label for span in found.spans] == ["patch stage, k=4 (reads tokens)", "token stage"]


def test_seeds_form_a_group_and_other_settings_do_not(tmp_path: Path) -> None:
    paths = [run(tmp_path / f"patch-{seed}", seed=seed) for seed in (17, 18, 19)]
    paths += [run(tmp_path / "twin", SAME_DATA), run(tmp_path / "flat", rate=lambda share: 1.0)]
    groups = group_runs([read_run(path) for path in paths])
    assert [(group.name, len(group.runs)) for group in groups] == [("patch", 3), ("twin", 1), ("flat", 1)]
    assert groups[0].seeds == "3 seeds"
    assert group_runs([read_run(f"mine={path}") for path in paths[:2]])[0].name == "mine"
    with pytest.raises(ValueError, match="'mine' differ in their stages"):
        group_runs([read_run(f"mine={path}") for path in paths[2:4]])


@pytest.mark.parametrize(
    ("settings", "groups"),
    [
        ({"on_switch": "carry", "target_weights": "uniform"}, 1),  # what files of older versions do not name
        ({"target_weights": [4, 2, 1, 1]}, 2),
        ({"target_weights": "inverse"}, 2),
        ({"on_switch": "reset"}, 2),
    ],
    ids=str,
)
def test_runs_of_other_settings_are_no_seeds(settings: dict[str, Any], groups: int, tmp_path: Path) -> None:
    paths = [run(tmp_path / "1", seed=1), run(tmp_path / "2", seed=2, **settings)]
    assert len(group_runs([read_run(path) for path in paths])) == groups


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('{"loss": 5}\n', r"history\.jsonl is not a history: .*line 1"),
        (None, r"history\.jsonl is not a history: line 3 is .*step='much'"),
        (b"\xff\xfe\x00", r"history\.jsonl is not a history: line 1 is not UTF-8"),
        ("", "holds no training steps yet"),
        ('{"kind": "start", "step": 0, "run_name": "r"}\n', "holds no training steps yet"),
    ],
)
def test_files_that_are_no_run(text: Any, words: str, tmp_path: Path) -> None:
    path = tmp_path / "history.jsonl"
    if text is None:
        bad = [*lines()[:2], lines()[2] | {"step": "much"}]
        text = "".join(json.dumps(line) + "\n" for line in bad)
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(ValueError, match=words):
        read_run(str(tmp_path))


def test_places_that_hold_no_run(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="is a folder without history"):
        read_run(str(tmp_path))
    with pytest.raises(ValueError, match=r"none does not exist\. Expected a history"):
        read_run(str(tmp_path / "none"))


def test_several_eval_losses_have_to_be_chosen_from(tmp_path: Path) -> None:
    written = lines()
    for line in written:
        if line["kind"] == "eval":
            loss = line["metrics"].pop(EVAL)
            line["metrics"] = {f"metrics/{n}/LanguageCrossEntropy": loss + n for n in (1, 2)}
    folder = write(tmp_path / "two", written)
    with pytest.raises(ValueError, match=r"several eval losses\. Choose one with --metric: metrics/1/"):
        read_run(folder)
    assert read_run(folder, "metrics/2/LanguageCrossEntropy").final_loss == 7.0
