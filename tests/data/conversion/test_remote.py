"""Written to an object store: the same objects, and the record of them last of all."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import boto3
import pytest
from boto3.exceptions import S3UploadFailedError
from streaming.base.storage.download import CloudDownloader
from streaming.base.storage.upload import CloudUploader, S3Uploader

from patch_algorithm.data.conversion import conversion
from patch_algorithm.data.conversion.conversion import ConversionError, convert
from patch_algorithm.data.conversion.upload import Uploader
from patch_algorithm.data.conversion.workdir import WorkDir
from patch_algorithm.data.dataset.description import DatasetInfo
from tests.data.loader.store import BUCKET, serving
from tests.data.support import DOCUMENTS, files, options

# Importing streaming and starting a server is what takes the time.
pytestmark = pytest.mark.slow

SHARD = 1 << 16


@pytest.fixture(scope="module")
def store() -> Iterator[Any]:
    with serving():
        yield boto3.client("s3")


@pytest.fixture(scope="module")
def local(pile: list[Path], tokenizer: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """What the same conversion writes into a folder."""
    out = tmp_path_factory.mktemp("local") / "out"
    convert(options(pile, tokenizer, out, val_fraction=0.1, shard_bytes=SHARD))
    return files(out)


def objects(store: Any, name: str) -> dict[str, bytes]:
    listed = store.list_objects_v2(Bucket=BUCKET, Prefix=f"{name}/").get("Contents", [])
    keys = [entry["Key"] for entry in listed]
    return {k.removeprefix(f"{name}/"): store.get_object(Bucket=BUCKET, Key=k)["Body"].read() for k in keys}


def run(pile: list[Path], tokenizer: Path, name: str, **changes: Any) -> int:
    asked = options(pile, tokenizer, Path("unset"), val_fraction=0.1, shard_bytes=SHARD, **changes)
    report = convert(replace(asked, out=f"s3://{BUCKET}/{name}"))
    return report.encoded.documents


@pytest.fixture
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_same_objects_as_files(
    store: Any, pile: list[Path], tokenizer: Path, local: dict[str, bytes], work: Path
) -> None:
    run(pile, tokenizer, "whole", workers=2)
    assert objects(store, "whole") == local
    assert list(work.iterdir()) == []
    with pytest.raises(ValueError, match=r"s3://rows/whole already holds a finished dataset"):
        run(pile, tokenizer, "whole")
    assert list(work.iterdir()) == []


def break_off_at(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    upload, uploaded = Uploader.upload, []

    def broken(self: Uploader, file: str) -> None:
        uploaded.append(file)
        if file.endswith(name) and len(uploaded) > 3:
            raise ConversionError(f"broke off at {file}")
        upload(self, file)

    monkeypatch.setattr(Uploader, "upload", broken)


@pytest.mark.parametrize(
    "name", ["/shard.00000.mds", "val/tails/shard.00000.mds", "train/index.json", "dataset.json"]
)
def test_broken_off_and_continued(
    name: str,
    store: Any,
    pile: list[Path],
    tokenizer: Path,
    local: dict[str, bytes],
    work: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    folder = name.replace("/", "-")
    with monkeypatch.context() as patch:
        break_off_at(patch, name)
        with pytest.raises(ConversionError, match="broke off"):
            run(pile, tokenizer, folder)
    assert DatasetInfo.find(f"s3://{BUCKET}/{folder}") is None
    there = list((work / f".{folder}.partial" / "data").rglob("*.mds"))
    assert len(there) <= 2, "what is uploaded takes no room here"
    done = run(pile, tokenizer, folder)
    assert 0 < done < DOCUMENTS if name == "/shard.00000.mds" else done == 0
    assert objects(store, folder) == local
    assert list(work.iterdir()) == []


def test_one_that_is_being_replaced_is_not_taken_for_a_finished_one(
    store: Any,
    pile: list[Path],
    tokenizer: Path,
    local: dict[str, bytes],
    work: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    run(pile[:1], tokenizer, "replaced")
    with monkeypatch.context() as patch:
        break_off_at(patch, "/shard.00000.mds")
        with pytest.raises(ConversionError, match="broke off"):
            run(pile, tokenizer, "replaced", overwrite=True)
    with pytest.raises(ValueError, match="being replaced"):
        DatasetInfo.read(f"s3://{BUCKET}/replaced")
    run(pile, tokenizer, "replaced", overwrite=True)
    found = objects(store, "replaced")
    assert {name: found[name] for name in local} == local


def test_a_bucket_that_is_not_there(pile: list[Path], tokenizer: Path, work: Path) -> None:
    asked = options(pile, tokenizer, Path("unset"))
    for out, words in (
        ("s3://none/out", "cannot write to 's3://none/out'"),
        ("ftp://a/b", "cannot write to"),
    ):
        with pytest.raises(ValueError, match=words):
            convert(replace(asked, out=out))
    assert list(work.iterdir()) == []


def put(store: Any, key: str, content: bytes) -> None:
    store.put_object(Bucket=BUCKET, Key=key, Body=content)


@pytest.mark.parametrize(
    ("key", "content"),
    [
        ("train/index.json", b'{"version": 2, "shards": []}'),
        ("arxiv/train/index.json", b'{"version": 2, "shards": []}'),
        ("train/shard.00000.mds", b"a shard"),
        ("tokenizer/tokenizer.json", b"{}"),
        ("dataset.json", b'{"format": 7}'),
        ("dataset.json", b"["),
    ],
)
def test_something_else_is_left_alone(
    key: str, content: bytes, store: Any, pile: list[Path], tokenizer: Path, work: Path
) -> None:
    name = f"else-{abs(hash((key, content)))}"
    put(store, f"{name}/{key}", content)
    for overwrite in (False, True):
        with pytest.raises(ValueError, match="the folder holds something else, which is not overwritten"):
            run(pile, tokenizer, name, overwrite=overwrite)
    assert objects(store, name) == {key: content}
    assert list(work.iterdir()) == []


def test_something_else_is_left_alone_where_a_store_cannot_be_listed(
    store: Any, pile: list[Path], tokenizer: Path, work: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(store, "unlisted/val/index.json", b"somebody's")
    monkeypatch.setattr(S3Uploader, "list_objects", CloudUploader.list_objects)  # raises NotImplementedError
    with pytest.raises(ValueError, match=r"the folder holds something else.*it has val/index\.json"):
        run(pile, tokenizer, "unlisted")
    assert objects(store, "unlisted") == {"val/index.json": b"somebody's"}
    assert list(work.iterdir()) == []


def test_what_cannot_be_read_is_not_taken_for_absent(
    store: Any, pile: list[Path], tokenizer: Path, work: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(pile[:1], tokenizer, "unread")
    before = objects(store, "unread")

    def fail(url: str, path: str) -> None:
        raise TimeoutError(f"{url} to {path}")

    with monkeypatch.context() as patch:
        patch.setattr(CloudDownloader, "direct_download", fail)
        with pytest.raises(ValueError, match=r"s3://rows/unread/dataset\.json cannot be read"):
            run(pile, tokenizer, "unread")
    assert objects(store, "unread") == before
    assert list(work.iterdir()) == []


def test_the_later_of_two_conversions_does_not_replace_the_earlier(
    store: Any, pile: list[Path], tokenizer: Path, work: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(pile[:1], tokenizer, "earlier")
    earlier = objects(store, "earlier")["dataset.json"]
    total_up = conversion.total_up

    def hooked(*args: Any) -> Any:
        monkeypatch.setattr(conversion, "total_up", total_up)
        with pytest.raises(ValueError, match="the folder holds something else"):
            run(pile[:1], tokenizer, "both", work_dir=str(work / "other"))
        # As one that began at the same moment would.
        put(store, "both/dataset.json", earlier)
        return total_up(*args)

    monkeypatch.setattr(conversion, "total_up", hooked)
    with pytest.raises(ConversionError, match=r"already holds a finished dataset.* repeat the command"):
        run(pile, tokenizer, "both")
    assert len(DatasetInfo.read(f"s3://{BUCKET}/both").sources) == 1
    assert run(pile, tokenizer, "both", overwrite=True) == 0
    assert len(DatasetInfo.read(f"s3://{BUCKET}/both").sources) == 2


def test_killed_when_all_is_uploaded(
    store: Any,
    pile: list[Path],
    tokenizer: Path,
    local: dict[str, bytes],
    work: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def killed(self: WorkDir) -> None:
        raise KeyboardInterrupt(str(self.root))

    with monkeypatch.context() as patch:
        patch.setattr(WorkDir, "remove", killed)
        with pytest.raises(KeyboardInterrupt):
            run(pile, tokenizer, "last")
    with pytest.raises(ConversionError, match="of another conversion"):
        run(pile[:1], tokenizer, "last")
    assert run(pile, tokenizer, "last") == 0
    assert objects(store, "last") == local
    assert list(work.iterdir()) == []


def test_an_upload_that_fails(
    store: Any,
    pile: list[Path],
    tokenizer: Path,
    local: dict[str, bytes],
    work: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fail(self: S3Uploader, filename: str) -> None:
        raise S3UploadFailedError(f"{filename}: no answer from {self.remote}")

    with monkeypatch.context() as patch:
        patch.setattr(S3Uploader, "upload_file", fail)
        with pytest.raises(
            ConversionError, match=r"shard.*could not be uploaded.*no answer.*repeat the command"
        ):
            run(pile, tokenizer, "failing")
    assert run(pile, tokenizer, "failing") == DOCUMENTS
    assert objects(store, "failing") == local
