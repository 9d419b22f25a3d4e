"""Statements that were wrong once, each with what keeps it right.

=======================================================  ====================================================
statement                                               kept right by
=======================================================  ====================================================
method card: whose ``warmup_stable_decay`` is           ``test_our_scheduler_is_called_ours``
method card: what is refused                            ``test_what_is_refused_is_one_list``, and the tests
                                                        that ``docs/compatibility.md`` names, which exist
README, resuming: "bitwise" and its conditions          ``test_bitwise_has_its_conditions``
data: what becomes of the last partial row              ``test_the_last_partial_row_is_not_kept``
README: what ``patch_monitor`` logs (no "cost")         ``test_the_readme_names_what_is_logged``
README, install: on which machines                      ``test_linux_is_said``
pyproject: "half the compute, the same architecture"    ``test_the_description_is_true``
README: what one sees of the quickstart                 ``test_the_readme_shows_the_recorded_quickstart``
install: wheels of flash-attn                           ``test_flash_attention_is_that_of_the_lock_file``
findings: "no comparison": what was searched, when     ``test_what_was_not_found_says_where_it_was_searched``
figures of a pilot without date or script               ``test_no_figure_of_a_pilot``
README, FAQ, method card, study: the study's figures    ``test_the_studys_figures``
README, method card: the papers' figures                ``test_the_papers_figures``
=======================================================  ====================================================
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import pytest

from patch_algorithm.checks.stage_choice import BREAK_EVEN
from patch_algorithm.planning.verdict_evidence import EQUAL_COMPUTE, EQUAL_DATA, SUPERPOSITION, study_cells

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
SPELLED = dict(enumerate("three four five six seven eight nine ten".split(), 3))
PAGES = [ROOT / "README.md", *sorted(DOCS.glob("*.md"))]
PROJECT = (ROOT / "pyproject.toml").read_text("utf-8")

# In the method card; the row of docs/compatibility.md; the code's message.
REFUSED = (
    ("a second `patch_level`", "a second `patch_level`", "There are two patch_level algorithms"),
    ("`SeqLengthWarmup`", "Composer's `SeqLengthWarmup`", "cannot run together with SeqLengthWarmup"),
    ("`LabelSmoothing`", "Composer's `LabelSmoothing`", "cannot run together with LabelSmoothing"),
    ("`alibi` with shortened rows", "`alibi`, rows shortened", "an Alibi of train_sequence_length_scaling"),
    ("stopping on a train metric", "by a train metric", "watches the train metric"),
    ("second derivatives", "second derivatives", "second derivatives, which the patch loss does not have"),
    ("tensor parallelism", "tensor parallelism", "does not support tensor parallelism"),
    ("prompt tuning", "prompt tuning", "uses prompt tuning"),
)


def words(path: Path) -> str:
    return " ".join(path.read_text("utf-8").split())


README = words(ROOT / "README.md")
CARD = words(DOCS / "method-card.md")


def paragraphs(*paths: Path) -> Iterator[tuple[str, str]]:
    for path in paths:
        for text in re.split(r"\n\s*\n", path.read_text("utf-8")):
            yield path.name, " ".join(text.split())


def compatibility() -> list[list[str]]:
    lines = (DOCS / "compatibility.md").read_text("utf-8").splitlines()
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line[:1] == "|"]


def test_our_scheduler_is_called_ours() -> None:
    (ours,) = entry_points(group="llmfoundry_schedulers", name="warmup_stable_decay")
    assert ours.value.startswith("patch_algorithm.")
    assert "This package's scheduler [`warmup_stable_decay`]" in CARD
    for path in PAGES:
        assert not re.search(r"llm-foundry's (scheduler )?\[?`warmup_stable_decay", words(path)), path.name


def test_what_is_refused_is_one_list() -> None:
    sys.path.insert(0, str(DOCS / "_ext"))
    try:
        from generated_errors import messages  # pyright: ignore[reportMissingImports]
    finally:
        sys.path.pop(0)
    said = [one.text for one in messages()]
    rows = [row[0] for row in compatibility() if row[1].startswith("refused") and "itself" not in row[1]]
    assert len(rows) == len(REFUSED)
    refused = CARD.partition("- **Refused**")[2].partition(" - **")[0]
    listed = re.split(r",\s", refused.partition(": ")[2].rstrip("."))
    assert sorted(listed) == sorted(card for card, _, _ in REFUSED)
    for _, row, message in REFUSED:
        assert sum(row in one for one in rows) == 1, row
        assert any(message in one for one in said), message


def test_tests_that_the_page_names_exist() -> None:
    named = {name for row in compatibility() for name in re.findall(r"`([\w/]+\.py)`", row[-1])}
    assert len(named) > 15
    for name in named:
        assert (ROOT / "tests" / name).is_file(), name
    for row in compatibility():
        if row[1].startswith(("tested", "refused", "GPU test")):
            assert re.search(r"`[\w/]+\.py`|the whole suite", row[2]) or row[0] == "a second `patch_level`", (
                row
            )


def test_bitwise_has_its_conditions() -> None:
    promised = [
        (name, text)
        for name, text in paragraphs(ROOT / "README.md", DOCS / "resume.md", DOCS / "method-card.md")
        if re.search(r"bitwise|bit by bit", text) and re.search(r"resume", text)
    ]
    assert {"README.md", "resume.md"} <= {name for name, _ in promised}
    for name, text in promised:
        for condition in ("fp32", "as many ranks", "deterministic mode", "dropout", "epoch"):
            assert condition in text, f"{name}: {condition}"
    assert "| bitwise, [under conditions](resume.md) |" in words(DOCS / "faq.md")


def test_the_last_partial_row_is_not_kept() -> None:
    assert "Only the last partial row of each stream is left out" in words(DOCS / "data.md")
    for path in PAGES:
        assert not re.search(r"every (document|token) exactly", words(path)), path.name


def test_the_readme_names_what_is_logged() -> None:
    (row,) = re.findall(r"^\| `callbacks: patch_monitor`.*$", (ROOT / "README.md").read_text("utf-8"), re.M)
    assert "cost" not in row
    listed = words(DOCS / "metrics.md")
    for said, metric in (
        ("tokens per second", "patch_monitor/raw_tokens_per_sec"),
        ("FLOPs", "patch_monitor/flops"),
        ("time left", "patch_monitor/seconds_left"),
    ):
        assert said in row
        assert metric in listed, metric


def test_linux_is_said() -> None:
    assert "You need Linux" in README
    assert words(DOCS / "install.md").startswith("# Install Linux and Python")
    for path in PAGES:
        assert "any machine" not in words(path), path.name


def test_the_description_is_true() -> None:
    (said,) = re.findall(r'^description = "(.*)"$', PROJECT, re.M)
    assert said.endswith("half the pre-training compute, the same architecture.")
    k, ratio = 4, 2 / 3
    assert ratio / k + 1 - ratio == pytest.approx(0.5)
    assert "for half the compute on the same data (k = 4, two thirds of the tokens in patches)" in README


def test_the_readme_shows_the_recorded_quickstart() -> None:
    run = json.loads((DOCS / "pictures" / "runs.json").read_text("utf-8"))[0]
    losses = [loss for _, loss in run["losses"]]
    at_switch, at_end = re.findall(r"([\d.]+) at the switch \(batch 300\), ([\d.]+) at the end", README)[0]
    assert min(abs(loss - float(at_switch)) for loss in losses) < 0.001
    assert losses[-1] == pytest.approx(float(at_end), abs=0.001)
    assert f"[batch 300] eval loss (token level) {at_switch}" in README
    few = f"{run['raw_tokens'] / run['parameters']:.1f} tokens per parameter and a single seed"
    assert few in words(DOCS / "quickstart.md")
    for path in (ROOT / "README.md", DOCS / "quickstart.md", DOCS / "index.md", DOCS / "your-config.md"):
        assert "jump" not in words(path), path.name


def test_flash_attention_is_that_of_the_lock_file() -> None:
    page, lock = words(DOCS / "install.md"), (ROOT / "uv.lock").read_text("utf-8")
    (pinned,) = re.findall(r'"flash-attn==([\w.]+);', PROJECT)
    entry = lock.partition('name = "flash-attn"\nversion = ')[2].partition("[[package]]")[0]
    assert entry.startswith(f'"{pinned}"')
    assert f"`flash-attn` {pinned}, the version llm-foundry 0.22 asks for. PyPI has only its sources." in page
    assert "sdist = " in entry
    assert "wheels = " not in entry
    # The release's wheels are of CUDA 12, torch 2.7 and CPython 3.10 to 3.12: as long as these are ours.
    assert "has one for CUDA 12, torch 2.7 and Python 3.10 to 3.12" in page
    assert pinned == "2.7.4.post1"
    assert 'requires-python = ">=3.10,<3.13"' in PROJECT
    assert re.search(r'name = "torch"\nversion = "2\.7\.\d', lock)


def test_what_was_not_found_says_where_it_was_searched() -> None:
    section = words(DOCS / "findings.md").partition("## What neither paper has")[2]
    assert (
        "We searched both papers, the authors' code and issues, and the replications, in November" in section
    )
    for name, text in paragraphs(*PAGES):
        assert not re.search(r"\b(nobody|no one) has\b", text, re.I), name
        if "We found no comparison" in text:
            assert re.search(r"\w+ 20\d\d\)", text), f"{name} says not when it was searched: {text[:60]}"


def test_no_figure_of_a_pilot() -> None:
    texts = [*PAGES, *(ROOT / "patch_algorithm").rglob("*.py"), *(ROOT / "yamls").rglob("*.yaml")]
    for path in texts:
        assert not re.search(r"\b(our|a|the) pilot\b", path.read_text("utf-8"), re.I), path.name


def test_the_studys_figures() -> None:
    cells = {cell.tokens_per_parameter: cell for cell in study_cells() if cell.hold == "positions"}
    at = {tokens: f"{abs(cells[tokens].bits_per_byte):.3f}" for tokens in (20, 40, 80, 160, 320)}
    assert [cells[tokens].low > 0 for tokens in (20, 40)] == [True, True]
    assert all(cells[tokens].high < 0 for tokens in (80, 160, 320))
    seeds = [cells[tokens].seeds for tokens in at]
    assert f"equal compute, {SPELLED[min(seeds)]} to {SPELLED[max(seeds)]} seeds per point" in README
    assert f"{at[20]} bits per byte above token-only training at 20 tokens per parameter" in README
    ends = [f"{-cells[tokens].high:.3f} to {-cells[tokens].low:.3f}" for tokens in (80, 160, 320)]
    assert (
        f"and {at[40]} above at 40. They ended {at[80]} below it at 80 (95 % interval {ends[0]})," in README
    )
    assert f"{at[160]} below at 160 ({ends[1]}) and {at[320]} below at 320 ({ends[2]})." in README
    few = "at 20 and 40 tokens per parameter,"
    lost = f"patches lost {few} gained a little at 80, and more at 160 and 320"
    assert lost in README
    assert lost in CARD
    assert lost in words(DOCS / "plan.md")
    answer = f"{few} with a slightly lower loss at 80, and with a lower loss at 160 and 320"
    assert answer in words(DOCS / "faq.md")
    page = words(DOCS / "study.md")
    assert lost in page
    falls = f"from {cells[20].bits_per_byte:+.3f} bits per byte at 20 tokens per parameter through −{at[80]}"
    assert page.count(f"{falls} at 80 to −{at[160]} at 160 and −{at[320]} at 320") == 2
    by = [cells[half].bits_per_byte - cells[2 * half].bits_per_byte for half in (20, 40, 80, 160)]
    assert by == sorted(by, reverse=True)
    assert 0 < by[-1] < 0.01, "from 160 to 320 hardly at all"


def test_the_papers_figures() -> None:
    for point in EQUAL_DATA:
        if point.tokens == 360e9:
            assert f"| {point.token_perplexity:.2f} | {point.patch_perplexity:.2f} |" in README
    few, many = EQUAL_DATA[0].nats, EQUAL_DATA[3].nats
    assert f"{few:+.3f} nats at 370M parameters and 45 billion tokens, −{-many:.3f} at 360 billion" in CARD
    gains = [point.nats for point in EQUAL_COMPUTE if point.parameters >= 1e8]
    assert (round(-max(gains), 2), round(-min(gains), 2)) == (0.04, 0.13)
    conditions = "with k of 4 or 6, 30 % of the compute in patches and the optimizer carried over the switch"
    assert f"in every published pair at equal compute {conditions}, the patch run" in README
    assert "the patch run ended 0.04 to 0.13 nats lower" in README
    large = [point for point in EQUAL_COMPUTE if point.parameters >= 1e8]
    assert ({point.k for point in large}, {point.share for point in large}) == ({4, 6}, {0.3})
    assert sum(point.source == SUPERPOSITION for point in EQUAL_COMPUTE) == 4
    assert "in all four pairs of its table 1 at equal compute" in README
    gained = f"gained {-max(gains):.2f} to {-min(gains):.2f} nats at 270M to 3B parameters"
    assert f"{gained}. All of these are single runs." in CARD
    assert round(EQUAL_DATA[0].tokens_per_parameter) == 122
    assert f"costs {few:.2f} nats at 122 tokens per parameter" in README
    assert f"nothing at about {BREAK_EVEN}" in README


def study_rows() -> list[dict[str, Any]]:
    rows = (ROOT / "benchmarks" / "study" / "results" / "runs.jsonl").read_text("utf-8").splitlines()
    return [row for row in map(json.loads, rows) if row["settings"]["size"] == "0.16M"]


def test_what_a_quarter_of_the_batch_changes() -> None:
    bits: dict[tuple[bool, bool], dict[int, float]] = {}
    for row in study_rows():
        one = row["settings"]
        quarter = one.get("positions") == 1024
        if one["tokens_per_parameter"] == 20 and one["rate"] == (0.004 if quarter else 0.002):
            if not {"nudge", "replica"} & one.keys():
                bits.setdefault((quarter, "stages" in one), {})[one["seed"]] = row["bits_per_byte"]
    for quarter in (True, False):
        assert bits[quarter, False].keys() == bits[quarter, True].keys()
    mean = {arm: sum(of.values()) / len(of) for arm, of in bits.items()}
    number = {SPELLED[len(of)] for of in bits.values()}
    assert len(number) == 1
    page = words(DOCS / "study.md")
    small, large = mean[True, False], mean[False, False]
    better = f"({small:.3f} against {large:.3f}, {number.pop()} seeds each)"
    assert f"{large - small:.2f} bits per byte better {better}" in page
    lost = [mean[quarter, True] - mean[quarter, False] for quarter in (False, True)]
    assert f"what patches lose falls from {lost[0]:.3f} to {lost[1]:.3f}" in page


def test_how_often_the_study_reads_its_text() -> None:
    times: dict[tuple[bool, bool], float] = {}
    for row in study_rows():
        arm = (row["settings"]["tokens_per_parameter"] == 320, "stages" in row["settings"])
        times[arm] = max(times.get(arm, 0.0), row["epochs"])
    most = (
        f"read our text {times[True, True]:.1f} times and the token-only runs {times[True, False]:.1f} times"
    )
    other = f"no other run read it more than {max(times[False, True], times[False, False]):.2f} times"
    assert f"the patch runs {most}; {other}" in words(DOCS / "study.md")


def test_only_a_finished_sweep_has_a_best_rate() -> None:
    from benchmarks.study.cells import plan
    from benchmarks.study.report import load
    from benchmarks.study.verdict import RESULTS

    rows, _ = load(RESULTS)
    page = (DOCS / "study.md").read_text("utf-8").partition("begin: study sweep")[2].partition("<!-- end")[0]
    for cell in plan(rows):
        if cell.name.startswith("rate sweep"):
            name = cell.name.removeprefix("rate sweep").lstrip(", ")
            best = [line for line in page.splitlines() if line.startswith(f"| {name} |") and "**" in line]
            assert len(best) == all(run.identity in rows for run in cell.runs), name


def test_how_far_seeds_of_the_study_lie_apart() -> None:
    runs: dict[float, list[float]] = {}
    for row in study_rows():
        one = row["settings"]
        if one["rate"] == 0.002 and not {"stages", "positions", "nudge", "replica"} & one.keys():
            runs.setdefault(one["tokens_per_parameter"], []).append(row["bits_per_byte"])
    far = {tokens: max(abs(bit - sum(bits) / len(bits)) for bit in bits) for tokens, bits in runs.items()}
    page = words(DOCS / "study.md")
    assert f"by up to {far.pop(20):.3f} at 20 tokens per parameter and by less than 0.008 from 40 on" in page
    assert 0.006 < max(far.values()) < 0.008
