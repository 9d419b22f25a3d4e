"""Whether a dataset may be written to its place, so that nothing else there is lost."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from patch_algorithm.common.files import write_whole
from patch_algorithm.data.conversion.options import Conversion
from patch_algorithm.data.conversion.records import ConversionError
from patch_algorithm.data.conversion.upload import Uploader
from patch_algorithm.data.conversion.workdir import WorkDir
from patch_algorithm.data.conversion.writing import TOKENIZER
from patch_algorithm.data.dataset.description import DATASET_JSON, INDEX, DatasetInfo, read_text
from patch_algorithm.data.dataset.remote import is_url

__all__ = ["check_out", "check_out_again", "withdraw"]

_MARK = '{"format": "being replaced"}\n'


def check_out(options: Conversion) -> Literal["absent", "finished"]:
    """Checks the place of the dataset and the place of unfinished work.

    Raises:
        ValueError: If something is there that must not be replaced, or a place is not writable.
    """
    workdir = WorkDir(options.work_folder, "uint16")
    if is_url(options.out):
        # It says now, and not after hours, if it cannot be written to.
        uploader = Uploader(workdir.data, options.out)
        found = _found_at(options.out)
        # An unfinished conversion of ours is told from other data by the work folder alone.
        if found is None and not workdir.is_for(options.out):
            _check_nothing_there(options, uploader)
    else:
        _check_apart(options)
        found = _found_in(options.out_folder)
        if found is not None and options.overwrite:
            _check_nothing_else(options.out_folder, found)
        if _device(options.work_folder) != _device(options.out_folder):
            raise ValueError(
                f"unfinished work would be kept in {options.work_folder}, on another file system than "
                f"--out {options.out}, so the finished dataset could not be renamed to its place; choose "
                "--work-dir and --out on one file system."
            )
    if found is not None and not options.overwrite and not _is_published(found, options, workdir):
        workdir.remove_if_empty()
        raise ValueError(
            f"--out {options.out} already holds a finished dataset; add --overwrite to replace it, or name "
            "another folder."
        )
    workdir.check_ours()
    return "absent" if found is None else "finished"


def _found_in(out: Path) -> DatasetInfo | None:
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return None
    try:
        return DatasetInfo.read(out)
    except ValueError as error:
        raise _something_else(out, error) from error


def _check_apart(options: Conversion) -> None:
    """Makes sure that moving datasets to and from ``--out`` moves nothing else, and the reverse."""
    out, work = options.out_folder, options.work_folder.resolve()
    if out.is_relative_to(work) or work.is_relative_to(out):
        raise ValueError(
            f"one of --work-dir {options.work_folder} and --out {options.out} is inside the other; name two "
            "separate folders."
        )
    for name in (*options.sources, options.tokenizer):
        if isinstance(name, str) and Path(name).exists() and Path(name).resolve().is_relative_to(out):
            raise ValueError(f"{name} is inside --out {options.out}; move it, or name another folder.")


def _check_nothing_else(out: Path, found: DatasetInfo) -> None:
    ours = {DATASET_JSON, TOKENIZER, *(stream.path.partition("/")[0] for stream in found.streams)}
    if others := sorted({path.name for path in out.iterdir()} - ours):
        raise ValueError(
            f"--out {out} holds {', '.join(others)} as well as the dataset to be replaced; move that "
            "elsewhere first."
        )


def _check_nothing_there(options: Conversion, uploader: Uploader) -> None:
    if uploader.holds_anything():
        raise _something_else(options.out, f"there are objects, but no {DATASET_JSON}")
    # Not every store can be asked for what it holds.
    for split in options.row_lengths():
        try:
            read_text(options.out, f"{split}/{INDEX}")
        except FileNotFoundError:
            continue
        raise _something_else(options.out, f"it has {split}/{INDEX}, but no {DATASET_JSON}")


def _found_at(url: str) -> DatasetInfo | None:
    try:
        return DatasetInfo.find(url)
    except ValueError as error:
        if read_text(url, DATASET_JSON) != _MARK:
            raise _something_else(url, error) from error
        return None


def _something_else(out: str | Path, reason: object) -> ValueError:
    return ValueError(
        f"--out {out}: the folder holds something else, which is not overwritten; name another folder, or "
        f"remove it first. ({reason})"
    )


def _is_published(found: DatasetInfo, options: Conversion, workdir: WorkDir) -> bool:
    # Renamed, or uploaded, in an earlier call that could not clean up any more.
    if not workdir.is_publishing():
        return False
    left = DatasetInfo.find(workdir.data)
    return left is None or (is_url(options.out) and left == found)


def _device(path: Path) -> int:
    path = path.absolute()
    while not path.exists():
        path = path.parent
    return path.stat().st_dev


def withdraw(url: str, workdir: WorkDir) -> None:
    """Removes the record of a dataset that is being replaced: the first new shard makes it incomplete."""
    folder = workdir.root / "withdrawn"
    folder.mkdir(exist_ok=True)
    write_whole(folder / DATASET_JSON, _MARK.encode())
    Uploader(folder, url).upload(DATASET_JSON)


def check_out_again(options: Conversion, workdir: WorkDir) -> Literal["absent", "finished"]:
    """As :func:`check_out`, after hours in which others may have written there.

    Raises:
        ConversionError: If something is there now.
    """
    try:
        return check_out(options)
    except ValueError as error:
        raise ConversionError(
            f"{error} Finished work is kept in {workdir.root}: resolve this, then repeat the command."
        ) from error
