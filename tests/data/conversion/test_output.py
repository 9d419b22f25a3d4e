"""What lies at the output, and in the work folder, before a conversion, and what it leaves of that."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from patch_algorithm.data.conversion import conversion
from patch_algorithm.data.conversion.conversion import ConversionError
from patch_algorithm.data.conversion.workdir import WorkDir
from patch_algorithm.data.dataset.description import DatasetInfo
from tests.data.support import DOCUMENTS, files, partial, run, stopped_half_way, stream_tokens


def test_a_finished_dataset_is_not_overwritten(
    converted: Path, pile: list[Path], tokenizer: Path, tmp_path: Path
) -> None:
    out = Path(shutil.copytree(converted, tmp_path / "out"))
    with pytest.raises(ValueError, match="already holds a finished dataset; add --overwrite"):
        run(pile, tokenizer, out)
    assert files(out) == files(converted)


def test_overwriting_keeps_the_old_one_until_the_new_one_is_there(
    converted: Path, pile: list[Path], tokenizer: Path, tmp_path: Path
) -> None:
    out = Path(shutil.copytree(converted, tmp_path / "out"))
    stopped_half_way(pile, tokenizer, out, overwrite=True)
    assert files(out) == files(converted)
    # The same command goes on, and does not begin anew.
    mended = tmp_path / "bad.jsonl"
    mended.write_bytes(pile[1].read_bytes())
    report = run([pile[0], mended], tokenizer, out, val_fraction=0.1, overwrite=True)
    assert report.encoded.documents < DOCUMENTS
    assert (stream_tokens(out, "val") == stream_tokens(converted, "val")).all()
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []
    run(pile[:1], tokenizer, out, overwrite=True)
    assert not (out / "val").exists()


def test_something_else_is_left_alone(pile: list[Path], tokenizer: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("thesis")
    for overwrite in (False, True):
        with pytest.raises(ValueError, match="the folder holds something else"):
            run(pile, tokenizer, tmp_path / "out", overwrite=overwrite)
    assert files(tmp_path) == {"out/mine.txt": b"thesis"}


def test_unfinished_work_on_another_file_system(
    pile: list[Path], tokenizer: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = Path.stat

    def stat(path: Path, **options: Any) -> os.stat_result:
        found = real(path, **options)
        if path != tmp_path / "scratch":
            return found
        return os.stat_result((*found[:2], found.st_dev + 1, *found[3:10]))

    (tmp_path / "scratch").mkdir()
    monkeypatch.setattr(Path, "stat", stat)
    with pytest.raises(ValueError, match="on another file system than --out"):
        run(pile, tokenizer, tmp_path / "out", work_dir=str(tmp_path / "scratch" / "work"))
    assert not (tmp_path / "out").exists()
    assert not any((tmp_path / "scratch").iterdir())


def test_an_empty_folder_is_taken(pile: list[Path], tokenizer: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    run(pile, tokenizer, tmp_path / "out")
    assert (tmp_path / "out" / "dataset.json").exists()


def test_two_conversions_do_not_share_a_folder(pile: list[Path], tokenizer: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    partial(out).mkdir()
    with (
        WorkDir(partial(out), "uint16").locked(),
        pytest.raises(ConversionError, match="another conversion is running"),
    ):
        run(pile, tokenizer, out)
    run(pile, tokenizer, out)


def appearing(monkeypatch: pytest.MonkeyPatch, appear: Callable[[], object]) -> None:
    """Has something happen when all units are finished."""
    total_up = conversion.total_up

    def hooked(*args: Any) -> Any:
        monkeypatch.setattr(conversion, "total_up", total_up)
        appear()
        return total_up(*args)

    monkeypatch.setattr(conversion, "total_up", hooked)


def test_a_work_folder_in_which_something_else_is(
    pile: list[Path], tokenizer: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = tmp_path / "home"
    (home / "data").mkdir(parents=True)
    source = home / "data" / "pile.jsonl"
    source.write_bytes(pile[0].read_bytes())
    monkeypatch.chdir(home)
    before = files(home)
    for overwrite in (False, True):
        with pytest.raises(ValueError, match="but that holds something else; name an empty"):
            run([source], tokenizer, tmp_path / "out", work_dir=".", overwrite=overwrite)
        with pytest.raises(ValueError, match="but that holds something else; name an empty"):
            run([source], tokenizer, tmp_path / "out", work_dir=str(source), overwrite=overwrite)
    assert files(home) == before
    # What comes there afterwards is left as well.
    work = tmp_path / "work"
    appearing(monkeypatch, lambda: (work / "thesis").mkdir())
    run([source], tokenizer, tmp_path / "out", work_dir=str(work))
    assert [path.name for path in work.iterdir()] == ["thesis"]


@pytest.mark.parametrize(
    ("work", "out"), [("w", "w/tokenizer"), ("w", "w/data"), (".", "data"), ("out/w", "out"), ("out", "out")]
)
def test_a_work_folder_and_an_output_within_each_other(
    work: str,
    out: str,
    pile: list[Path],
    tokenizer: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match="is inside the other"):
        run(pile, tokenizer, Path(out), work_dir=work)
    assert not any(tmp_path.iterdir())


def test_overwriting_takes_nothing_but_the_dataset(pile: list[Path], tokenizer: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    run(pile, tokenizer, out)
    (out / "raw").mkdir()
    source = Path(shutil.copy(pile[0], out / "raw"))
    before = files(out)
    with pytest.raises(ValueError, match=r"out holds raw as well as the dataset"):
        run(pile, tokenizer, out, overwrite=True)
    # Half way through a replacement they would not be there any more.
    for sources, own in (([source], tokenizer), (pile, out / "tokenizer")):
        with pytest.raises(ValueError, match=r"is inside --out .*; move it"):
            run(sources, own, out, overwrite=True)
    assert files(out) == before


def test_a_linked_work_folder_is_left_standing(pile: list[Path], tokenizer: Path, tmp_path: Path) -> None:
    (tmp_path / "scratch").mkdir()
    (link := tmp_path / "link").symlink_to("scratch")
    run(pile, tokenizer, tmp_path / "out", work_dir=str(link))
    assert (tmp_path / "out" / "dataset.json").is_file()
    assert link.is_dir()
    assert not any(link.iterdir())
    with pytest.raises(ValueError, match="already holds a finished dataset"):
        run(pile, tokenizer, tmp_path / "out", work_dir=str(link))


def test_links_in_a_circle(pile: list[Path], tokenizer: Path, tmp_path: Path) -> None:
    (tmp_path / "a").symlink_to("b")
    (tmp_path / "b").symlink_to("a")
    with pytest.raises(ValueError, match=r"--out .*/a"):
        run(pile, tokenizer, tmp_path / "a")


def test_what_appears_during_the_conversion_is_left(
    pile: list[Path], tokenizer: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, second = tmp_path / "out", {"work_dir": str(tmp_path / "second"), "row_tokens": 64}
    appearing(monkeypatch, lambda: run(pile[:1], tokenizer, out, **second))
    with pytest.raises(ConversionError, match=r"already holds a finished dataset.* repeat the command"):
        run(pile, tokenizer, out)
    assert DatasetInfo.read(out).row_tokens == {"train": 64}
    report = run(pile, tokenizer, out, overwrite=True)
    assert report.encoded.documents == 0
    assert DatasetInfo.read(out).row_tokens == {"train": 32}

    out = tmp_path / "thesis"
    appearing(monkeypatch, lambda: shutil.copytree(tokenizer, out))
    with pytest.raises(ConversionError, match=r"the folder holds something else.* repeat the command"):
        run(pile, tokenizer, out, overwrite=True)
    assert files(out) == files(tokenizer)
    shutil.rmtree(out)
    assert run(pile, tokenizer, out).encoded.documents == 0


@pytest.mark.parametrize("content", ['{"mine": 1}', '{"format": 7}', "[", "[]"])
def test_another_dataset_json_is_something_else(
    content: str, pile: list[Path], tokenizer: Path, tmp_path: Path
) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "dataset.json").write_text(content)
    with pytest.raises(ValueError, match="the folder holds something else"):
        run(pile, tokenizer, tmp_path / "out", overwrite=True)
    assert files(tmp_path) == {"out/dataset.json": content.encode()}


def test_a_link_to_an_empty_folder(pile: list[Path], tokenizer: Path, tmp_path: Path) -> None:
    disk = tmp_path / "disk" / "out"
    disk.mkdir(parents=True)
    (tmp_path / "link").symlink_to(disk)
    run(pile, tokenizer, tmp_path / "link")
    assert (tmp_path / "link").is_symlink()
    assert (disk / "dataset.json").exists()
    assert [path.name for path in disk.parent.iterdir()] == ["out"]
