"""Killed at any moment and started again, a conversion ends in the same bytes."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from patch_algorithm.data.conversion.conversion import ConversionError
from patch_algorithm.data.tokens.encoding import load_tokenizer
from tests.data.support import (
    DOCUMENTS,
    documents,
    files,
    finished_documents,
    in_child,
    lines,
    options,
    partial,
    run,
    stopped_half_way,
    stream_tokens,
)

PARTS = 6  # of the many moments: no test may take ten minutes


def killed_and_continued(pile: list[Path], tokenizer: Path, out: Path, kill_at: int | str) -> int:
    """Returns how many documents were finished when it was killed."""
    conversion = options(pile, tokenizer, out, val_fraction=0.1)
    code, _ = in_child(conversion, kill_at=kill_at)
    assert code == -signal.SIGKILL
    there = finished_documents(out)
    is_there = (out / "dataset.json").exists()
    code, said = in_child(conversion)
    assert code == 0
    left = 0 if is_there or (partial(out) / "publishing").exists() else DOCUMENTS - there
    assert said.endswith(f" {left} documents"), "finished units are not done again"
    return there


@pytest.fixture(scope="module")
def changes(pile: list[Path], tokenizer: Path, tmp_path_factory: pytest.TempPathFactory) -> int:
    """How often a conversion changes the file system: the moments at which it can be killed."""
    out = tmp_path_factory.mktemp("counted") / "out"
    code, said = in_child(options(pile, tokenizer, out, val_fraction=0.1))
    assert code == 0
    return int(said.split()[0])


def check_killed_at(
    moments: Sequence[int | str], pile: list[Path], tokenizer: Path, converted: Path, tmp_path: Path
) -> list[int]:
    there = []
    for index, moment in enumerate(moments):
        out = tmp_path / str(index) / "out"
        out.parent.mkdir()
        there.append(killed_and_continued(pile, tokenizer, out, moment))
        assert files(out) == files(converted), f"killed at change {moment}"
        assert [path.name for path in out.parent.iterdir()] == ["out"]
    return there


def test_killed_at_the_very_last_moment(
    pile: list[Path], tokenizer: Path, converted: Path, changes: int, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    conversion = options(pile, tokenizer, out, val_fraction=0.1)
    assert in_child(conversion, kill_at=changes - 1)[0] == -signal.SIGKILL
    assert partial(out).exists()
    with pytest.raises(ValueError, match="already holds a finished dataset"):
        run(pile, tokenizer, out, val_fraction=0.1)
    assert not partial(out).exists()
    assert files(out) == files(converted)


def test_killed_at_some_moments(
    pile: list[Path], tokenizer: Path, converted: Path, changes: int, tmp_path: Path
) -> None:
    moments = [
        random.Random(0).randrange(30, changes // 3),
        ".tail.partial",
        "/tails",
        "train/.index",
        "publishing.partial",
    ]
    there = check_killed_at([*moments, changes - 2], pile, tokenizer, converted, tmp_path)
    assert 0 < there[0] < DOCUMENTS
    # The first unit's shards are there, and nothing that says that they are whole.
    assert there[1:] == [0, *[DOCUMENTS] * 3, 0]


@pytest.mark.slow
@pytest.mark.parametrize("part", range(PARTS))
def test_killed_at_many_moments(
    part: int, pile: list[Path], tokenizer: Path, converted: Path, changes: int, tmp_path: Path
) -> None:
    moments = sorted({*range(0, changes, 9), *range(changes - 25, changes - 1)})
    there = check_killed_at(moments[part::PARTS], pile, tokenizer, converted, tmp_path)
    assert len(set(there)) > 3


def start(sources: list[Path], tokenizer: Path, out: Path) -> subprocess.Popen[bytes]:
    code = (
        "import sys; from pathlib import Path; from tests.data.support import run\n"
        "if __name__ == '__main__':\n"
        "    *sources, tokenizer, out = map(Path, sys.argv[1:])\n"
        "    run(sources, tokenizer, out, workers=2, val_fraction=0.1)\n"
    )
    script = out.parent / "script.py"
    script.write_text(code)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(Path(__file__).parents[3]), *sys.path])}
    return subprocess.Popen(
        [sys.executable, str(script), *map(str, [*sources, tokenizer, out])], env=environment
    )


def children(process: int) -> list[int]:
    listed = subprocess.run(["ps", "-e", "-o", "pid=,ppid="], capture_output=True, text=True, check=True)
    pairs = [tuple(map(int, line.split())) for line in listed.stdout.splitlines()]
    return [child for child, parent in pairs if parent == process]


def is_alive(process: int) -> bool:
    listed = subprocess.run(
        ["ps", "-o", "stat=", "-p", str(process)], capture_output=True, text=True, check=False
    )
    return listed.stdout.strip() not in ("", "Z")


def wait_for(condition: Any, seconds: float = 120.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.mark.slow
def test_killed_with_workers_which_end_too(tokenizer: Path, tmp_path: Path) -> None:
    sources = []
    for index in range(2):
        sources.append(tmp_path / f"{index}.jsonl")
        sources[-1].write_bytes(lines(documents(2000, seed=index)))
    run(sources, tokenizer, tmp_path / "whole" / "out", val_fraction=0.1)
    for units in (1, 40):
        out = tmp_path / str(units) / "out"
        out.parent.mkdir()
        process = start(sources, tokenizer, out)
        folder = partial(out) / "units"
        wait_for(lambda folder=folder, units=units: len(list(folder.glob("*.json"))) >= units)
        workers = [child for server in children(process.pid) for child in children(server)]
        assert len(workers) >= 2
        process.kill()
        process.wait()
        assert not out.exists()
        wait_for(lambda workers=workers: not any(map(is_alive, workers)))
        there = finished_documents(out)
        report = run(sources, tokenizer, out, val_fraction=0.1, workers=2)
        assert report.encoded.documents == 4_000 - there < 4_000
        assert files(out) == files(tmp_path / "whole" / "out")


def test_a_mended_file_continues(pile: list[Path], tokenizer: Path, converted: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    stopped_half_way(pile, tokenizer, out)
    there = finished_documents(out)
    assert there > 300
    mended = tmp_path / "bad.jsonl"
    mended.write_bytes(pile[1].read_bytes())
    report = run([pile[0], mended], tokenizer, out, val_fraction=0.1)
    assert report.encoded.documents == DOCUMENTS - there
    for split in ("train", "val"):
        assert (stream_tokens(out, split) == stream_tokens(converted, split)).all()


def test_a_changed_file_has_its_changed_units_done_again(tokenizer: Path, tmp_path: Path) -> None:
    source, out = tmp_path / "a.jsonl", tmp_path / "out"
    first, second = documents(seed=0), documents(seed=5)
    source.write_bytes(lines(first) + b"{\n")
    with pytest.raises(ConversionError, match="not JSON"):
        run([source], tokenizer, out)
    changed = [*first[:120], *second[120:]]
    source.write_bytes(lines(changed))
    report = run([source], tokenizer, out)
    assert 120 <= report.encoded.documents < 200
    run([source], tokenizer, tmp_path / "fresh")
    assert files(out) == files(tmp_path / "fresh")


def test_a_file_that_has_become_shorter(tokenizer: Path, tmp_path: Path) -> None:
    source, out = tmp_path / "a.jsonl", tmp_path / "out"
    source.write_bytes(lines(documents(seed=0)) + b"{\n")
    with pytest.raises(ConversionError):
        run([source], tokenizer, out)
    source.write_bytes(lines(documents(seed=0)[:100]))
    run([source], tokenizer, out)
    run([source], tokenizer, tmp_path / "fresh")
    assert files(out) == files(tmp_path / "fresh")


def test_what_was_packed_of_a_file_that_changed_is_packed_again(tokenizer: Path, tmp_path: Path) -> None:
    source, out = tmp_path / "a.jsonl", tmp_path / "out"
    source.write_bytes(lines(documents(seed=0)))
    assert in_child(options([source], tokenizer, out), kill_at="dataset.json")[0] == -signal.SIGKILL
    assert (partial(out) / "data" / "train" / "index.json").exists()
    source.write_bytes(lines(documents(seed=5)))
    run([source], tokenizer, out)
    run([source], tokenizer, tmp_path / "fresh")
    assert files(out) == files(tmp_path / "fresh")


def test_units_whose_files_are_not_whole_are_done_again(
    pile: list[Path], tokenizer: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    stopped_half_way(pile, tokenizer, out)
    tail, short, broken, blank = sorted((partial(out) / "units").glob("*.json"))[1:5]
    before = finished_documents(out)
    os.truncate(tail.with_suffix(".tail"), tail.with_suffix(".tail").stat().st_size - 2)
    os.truncate(next((partial(out) / "data" / "train" / short.stem).iterdir()), 100)
    broken.write_text("{")
    blank.write_bytes(bytes(blank.stat().st_size))  # as a loss of power may leave it
    there = finished_documents(out)
    assert 0 < there < before
    asked = {"val_fraction": 0.1, "on_error": "skip"}
    report = run([pile[0], tmp_path / "bad.jsonl"], tokenizer, out, **asked)
    assert report.encoded.documents == DOCUMENTS - there
    run([pile[0], tmp_path / "bad.jsonl"], tokenizer, tmp_path / "fresh", **asked)
    assert files(out) == files(tmp_path / "fresh")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"row_tokens": 64}, "row_tokens is 32 there and 64 here"),
        ({"split_by_component": True}, "split_by_component is False there and True here"),
    ],
)
def test_another_conversion_does_not_continue_it(
    change: dict[str, Any], words: str, pile: list[Path], tokenizer: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    stopped_half_way(pile, tokenizer, out)
    before = files(partial(out))
    with pytest.raises(ConversionError, match=words) as caught:
        run([pile[0], tmp_path / "bad.jsonl"], tokenizer, out, **({"val_fraction": 0.1} | change))
    assert "--overwrite" in str(caught.value)
    assert files(partial(out)) == before
    report = run(pile, tokenizer, out, overwrite=True, **change)
    assert report.encoded.documents == DOCUMENTS


def test_another_end_of_sequence_is_another_conversion(
    pile: list[Path], tokenizer: Path, tmp_path: Path
) -> None:
    changed = Path(shutil.copytree(tokenizer, tmp_path / "tokenizer"))
    out = tmp_path / "out"
    stopped_half_way(pile, changed, out)
    loaded = load_tokenizer(str(changed)).tokenizer
    loaded.eos_token = loaded.pad_token
    loaded.save_pretrained(str(changed))
    with pytest.raises(ConversionError, match=r"eos_id is \d there and \d here"):
        run([pile[0], tmp_path / "bad.jsonl"], changed, out, val_fraction=0.1)


@pytest.mark.parametrize("changes_left", [2, 3, 4])
def test_killed_while_cleaning_up_another_conversion_does_not_claim_it(
    changes_left: int, pile: list[Path], tokenizer: Path, changes: int, converted: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    asked = options(pile, tokenizer, out, val_fraction=0.1)
    assert in_child(asked, kill_at=changes - changes_left)[0] == -signal.SIGKILL
    assert (partial(out) / "publishing").exists()
    with pytest.raises(ValueError, match="of another conversion: row_tokens is 32 there and 64 here"):
        run(pile, tokenizer, out, row_tokens=64, val_fraction=0.1)
    if changes_left == 2:
        # Both names are gone but one.
        assert not (partial(out) / "plan.json").exists()
        report = run(pile, tokenizer, out, row_tokens=64, val_fraction=0.1, overwrite=True)
        assert report.encoded.documents == DOCUMENTS
        assert report.info.row_tokens["train"] == 64
    else:
        assert run(pile, tokenizer, out, val_fraction=0.1).encoded.documents == 0
        assert files(out) == files(converted)
    assert not partial(out).exists()
