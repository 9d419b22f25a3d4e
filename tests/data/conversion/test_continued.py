"""What of the finished work is kept when a conversion is continued, and what has to be done again."""

from __future__ import annotations

import json
import random
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from patch_algorithm.data.conversion import ConversionError
from patch_algorithm.data.dataset.inspection import inspect_dataset, row_text
from patch_algorithm.data.readers.lines import LineSource
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
)


def test_a_new_file_takes_nothing_from_those_that_were_begun(
    pile: list[Path], tokenizer: Path, tmp_path: Path
) -> None:
    folder, out = tmp_path / "pile", tmp_path / "out"
    folder.mkdir()
    (folder / "01.jsonl").write_bytes(pile[0].read_bytes())
    (folder / "02.jsonl").write_bytes(pile[1].read_bytes() + b"{\n")
    (folder / "03.jsonl").write_bytes(lines(documents(30, seed=3)))
    with pytest.raises(ConversionError, match="not JSON"):
        run([folder], tokenizer, out)
    there = finished_documents(out)
    assert 300 < there <= DOCUMENTS
    (folder / "00.jsonl").write_bytes(lines(documents(50, seed=9)))
    (folder / "02.jsonl").write_bytes(pile[1].read_bytes())
    (folder / "03.jsonl").unlink()
    report = run([folder], tokenizer, out)
    assert report.encoded.documents == DOCUMENTS - there + 50
    assert [Path(name).name for name in report.info.sources] == ["00.jsonl", "01.jsonl", "02.jsonl"]
    run([folder], tokenizer, tmp_path / "fresh")
    assert files(out) == files(tmp_path / "fresh")


def test_a_file_that_goes_takes_its_shards_along(pile: list[Path], tokenizer: Path, tmp_path: Path) -> None:
    folder, out = tmp_path / "pile", tmp_path / "out"
    folder.mkdir()
    for index in range(2):
        (folder / f"0{index}.jsonl").write_bytes(pile[index].read_bytes())
    assert in_child(options([folder], tokenizer, out), kill_at="dataset.json")[0] == -signal.SIGKILL
    (folder / "00.jsonl").unlink()
    assert run([folder], tokenizer, out).encoded.documents == 0
    run([folder], tokenizer, tmp_path / "fresh")
    assert files(out) == files(tmp_path / "fresh")


def test_an_older_versions_work_is_refused(pile: list[Path], tokenizer: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    (partial(out) / "units" / "00000").mkdir(parents=True)
    (partial(out) / "uploaded").mkdir()
    plan = {"format": 1, "out": "out", "sources": ["a"], "tokenizer": "b", "row_tokens": 32}
    (partial(out) / "plan.json").write_text(json.dumps(plan))
    before = files(partial(out))
    with pytest.raises(ConversionError, match=r"another version of patch-algorithm began.*--overwrite"):
        run(pile, tokenizer, out)
    assert files(partial(out)) == before | {"lock": b""}
    run(pile, tokenizer, out, overwrite=True)
    assert not partial(out).exists()


def test_a_dataset_of_an_older_version_is_read() -> None:
    folder = Path(__file__).parents[1] / "finished" / "v0_1"
    found = inspect_dataset(folder)
    assert found.sound, str(found)
    assert found.info.streams[0].rows == 395
    assert row_text(folder, 0).startswith(documents(40)[0]["text"][:20])


@pytest.mark.parametrize("moment", [0, 3, 8])
def test_a_source_that_changes_while_it_is_read(
    moment: int, tokenizer: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, out = tmp_path / "a.jsonl", tmp_path / "out"
    source.write_bytes(lines(documents(seed=0)))
    blocks = LineSource.blocks

    def changing(self: LineSource, *where: Any) -> Any:
        for number, block in enumerate(blocks(self, *where)):
            yield block
            if number == moment:
                new = lines(documents(seed=0)[:100] + documents(seed=5)[100:])
                source.write_bytes(new.ljust(source.stat().st_size, b"\n"))

    with monkeypatch.context() as patch:
        patch.setattr(LineSource, "blocks", changing)
        with pytest.raises(ConversionError, match=r"a\.jsonl changed while it was read"):
            run([source], tokenizer, out)
    run([source], tokenizer, out)
    run([source], tokenizer, tmp_path / "fresh")
    assert files(out) == files(tmp_path / "fresh")


def test_the_number_of_workers_says_nothing_about_nested_json(tokenizer: Path, tmp_path: Path) -> None:
    source = tmp_path / "a.jsonl"
    nested = [
        b'{"text": "as deep as it goes", "meta": ' + b'{"a": ' * depth + b"1" + b"}" * (depth + 1) + b"\n"
        for depth in (200, 399, 400, 960, 985, 5000)
    ]
    source.write_bytes(lines(documents(20)) + b"".join(nested))
    for workers in (0, 1):
        report = run([source], tokenizer, tmp_path / str(workers), workers=workers, on_error="skip")
        assert report.info.skipped == {"not JSON": 4}
    assert files(tmp_path / "0") == files(tmp_path / "1")


@pytest.mark.slow
def test_a_script_without_a_main_guard_is_told_so(pile: list[Path], tokenizer: Path, tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        "from patch_algorithm.data.conversion import Conversion, convert\n"
        f"convert(Conversion(sources=({str(pile[0])!r},), tokenizer={str(tokenizer)!r}, "
        f"out={str(tmp_path / 'out')!r}, row_tokens=32, workers=1, progress=False))\n"
    )
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert "under `if __name__ == '__main__':`" in done.stderr
    assert "memory" not in done.stderr


def killed_at_random(seed: int, tokenizer: Path, tmp_path: Path) -> None:
    """A random conversion, killed at random moments until it is finished; its files may change meanwhile."""
    draw = random.Random(seed)
    folder, out = tmp_path / f"{seed}", tmp_path / f"{seed}" / "made" / "out"
    out.parent.mkdir(parents=True)
    sources = [folder / f"{index}.jsonl" for index in range(draw.choice((1, 2, 4)))]
    for index, source in enumerate(sources):
        number = 100 if not index else draw.choice((1, 40, 200))
        source.write_bytes(lines(documents(number, seed=draw.randrange(10**6))))
    asked: dict[str, Any] = {
        "val_fraction": draw.choice((0, 0.2)),
        "split_by_component": draw.random() < 0.5,
        "compression": draw.choice((None, "zstd")),
        "unit_bytes": draw.choice((1 << 12, 1 << 14, 1 << 16)),
        "shard_bytes": draw.choice((1 << 12, 1 << 15)),
    }
    for _ in range(draw.choice((1, 2, 3))):
        conversion = options(sources, tokenizer, out, **asked, workers=draw.choice((0, 0, 2)))
        if in_child(conversion, kill_at=draw.randrange(300))[0] == 0:
            shutil.rmtree(out)
        if draw.random() < 0.3:
            draw.choice(sources).write_bytes(lines(documents(60, seed=draw.randrange(10**6))))
    run(sources, tokenizer, out, **asked, workers=draw.choice((0, 2)), overwrite=out.exists())
    run(sources, tokenizer, folder / "fresh", **asked)
    assert files(out) == files(folder / "fresh"), f"seed {seed}"
    assert [path.name for path in out.parent.iterdir()] == ["out"]
    assert inspect_dataset(out).sound


@pytest.mark.parametrize("seed", range(3))
def test_killed_at_random(seed: int, tokenizer: Path, tmp_path: Path) -> None:
    killed_at_random(seed, tokenizer, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("first", range(100, 140, 10))
def test_killed_at_random_many_times(first: int, tokenizer: Path, tmp_path: Path) -> None:
    for seed in range(first, first + 10):
        killed_at_random(seed, tokenizer, tmp_path)
