"""Findings on what is read, and into which split and component it goes."""

from __future__ import annotations

import gzip
import json
import lzma
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.findings.finding import Now, Place, as_lines, finding, refusal, some_texts
from patch_algorithm.data.conversion import Report
from patch_algorithm.data.readers import Block, LineSource

__all__ = ["documents_by_split"]

FIND, FIELDS = "data/readers/test_find.py", "data/readers/test_fields.py"
CONTINUED = "data/conversion/test_continued.py"


def documents_by_split(report: Report) -> dict[str, int]:
    """How many documents each split of a conversion has."""
    found: dict[str, int] = {}
    for splits in report.info.components.values():
        for split, counts in splits.items():
            found[split] = found.get(split, 0) + counts.documents
    return found


def table(path: Path, texts: list[str], column: str = "text") -> None:
    """Writes texts as Parquet."""
    pq.write_table(pa.table({column: texts}), path)


@finding(
    "1",
    "a folder: `.jsonl`, `.json.gz`, `.json` (array), `.ndjson`, `.JSONL`, `.jsonl.xz`, 5 documents in each",
    "6 of 30 documents, exit 0",
    f"{FIND}::test_every_form_and_compression_is_read",
)
def other_endings(place: Place) -> Now:
    folder = place.write("pile/a.jsonl", some_texts(5)).parent
    for index, name in enumerate(("b.json.gz", "c.json", "d.ndjson", "e.JSONL", "f.jsonl.xz"), 1):
        data = as_lines(some_texts(5, seed=index))
        if name == "c.json":
            data = json.dumps([{"text": text} for text in some_texts(5, seed=index)]).encode()
        packed = {".gz": gzip.compress, ".xz": lzma.compress}.get(Path(name).suffix, bytes)(data)
        (folder / name).write_bytes(packed)
    report = place.convert(folder)
    said = re.search(r"\d+ sources were read", str(report))
    read = documents_by_split(report)["train"]
    return Now(f"{read} of 30; `{said[0] if said else 'nothing said'}`", read == 30 and said is not None)


@finding(
    "1",
    "a folder with a `.txt` beside a `.jsonl`",
    "passed over without a word",
    f"{FIND}::test_what_a_folder_holds_besides_is_named",
)
def passed_over(place: Place) -> Now:
    folder = place.write("pile/a.jsonl", some_texts(20)).parent
    (folder / "more.txt").write_text("text")
    found = refusal(lambda: place.convert(folder), ["would be passed over (1): more.txt", "--on-error skip"])
    read = documents_by_split(place.convert(folder, on_error="skip"))["train"]
    return Now(f"{found.told}; with --on-error skip {read} of 20", found.right and read == 20)


@finding(
    "1",
    "a folder with a link to nowhere",
    "passed over without a word",
    f"{FIND}::test_links_are_followed_and_broken_ones_are_errors",
)
def broken_link(place: Place) -> Now:
    folder = place.write("pile/a.jsonl", some_texts(20)).parent
    (folder / "b.jsonl").symlink_to(folder / "gone.jsonl")
    return refusal(lambda: place.convert(folder), ["is a link to", "which is not there"])


@finding(
    "2",
    "a hub snapshot: `train-0.parquet`, `validation-0.parquet`, `test-0.parquet`, 30, 20 and 10 documents",
    "60 documents in `train`",
    f"{FIND}::test_files_named_for_validation_and_test_are_splits_of_their_own",
)
def hub_snapshot(place: Place) -> Now:
    for index, (name, number) in enumerate((("train", 30), ("validation", 20), ("test", 10))):
        (place.folder / "data").mkdir(exist_ok=True)
        table(place.folder / "data" / f"{name}-0.parquet", some_texts(number, seed=index))
    found = documents_by_split(place.convert(place.folder / "data"))
    return Now(str(found), found == {"train": 30, "val": 20, "test": 10})


@finding(
    "2",
    "the Pile's own `train/`, `val.jsonl` and `test.jsonl`; and its val named with `--source val=PATH`",
    "val and test in `train`",
    f"{FIND}::test_a_split_can_be_given",
)
def the_piles_files(place: Place) -> Now:
    train = place.write("pile/train/00.jsonl", some_texts(30))
    for index, name in enumerate(("val", "test"), 1):
        place.write(f"pile/{name}.jsonl", some_texts(20, seed=index))
    whole = documents_by_split(place.convert(place.folder / "pile"))
    named = documents_by_split(
        place.convert(train.parent, f"val={place.folder / 'pile' / 'val.jsonl'}", out="named")
    )
    right = whole == {"train": 30, "val": 20, "test": 20} and named == {"train": 30, "val": 20}
    return Now(f"{whole}; {named}", right)


@finding(
    "2",
    "`val.jsonl` beside files that are not named for training",
    "in `train`",
    f"{FIND}::test_where_none_is_named_for_training_the_command_asks",
)
def no_train_beside(place: Place) -> Now:
    folder = place.write("pile/a.jsonl", some_texts(20)).parent
    place.write("pile/val.jsonl", some_texts(20, seed=1))
    return refusal(lambda: place.convert(folder), ["are named for validation or test", "--splits by-name"])


@dataclass(frozen=True)
class _Changing(LineSource):
    """A file that something else writes to when two blocks of it have been read."""

    new: bytes = b""

    def blocks(self, start: Any, reading: Any) -> Iterator[Block]:
        for number, block in enumerate(super().blocks(start, reading), 1):
            yield block
            if number == 2 and start.number == 0:
                self.path.write_bytes(self.new)


@finding(
    "4",
    "a file of 10,000 lines, overwritten in place, or cut short at the end of a line, at its second block",
    "old and new lines mixed; fewer documents; no warning",
    f"{CONTINUED}::test_a_source_that_changes_while_it_is_read",
)
def changed_meanwhile(place: Place) -> Now:
    old, words = some_texts(10_000), ["changed while it was read", "repeat the command"]
    for name, new in (("new", some_texts(10_000, seed=2)), ("short", old[:5000])):
        path = place.write(f"{name}.jsonl", old)
        source = _Changing(path, str(path), new=as_lines(new))
        found = refusal(lambda source=source, name=name: place.convert(source, out=name), words)
        report = place.convert(LineSource(path, str(path)), out=name)
        if not found.right or documents_by_split(report)["train"] != len(new):
            return Now(f"{name}: {found.told}", False)
    return Now("stops, both: the file changed while it was read; repeated, it has the new text alone", True)


@finding(
    "5",
    "a document nested 985 deep among 3, without a worker and with one",
    "3 documents in-process; 2 and one `not JSON` in a worker",
    f"{CONTINUED}::test_the_number_of_workers_says_nothing_about_nested_json",
)
def nested(place: Place) -> Now:
    deep = b'{"text": "deep", "meta": ' + b'{"a": ' * 985 + b"1" + b"}" * 986 + b"\n"
    path = place.folder / "a.jsonl"
    path.write_bytes(as_lines(some_texts(2)) + deep)
    found = []
    for workers in (0, 1):
        report = place.convert(path, out=f"out{workers}", workers=workers, on_error="skip")
        found.append((documents_by_split(report)["train"], report.info.skipped))
    return Now(f"{found[0]} and {found[1]}", found[0] == found[1])


@finding(
    "6",
    "a Parquet file of 1,000 rows without the column, skipped",
    "counts as 1",
    f"{FIELDS}::test_a_table_without_the_column_counts_all_its_rows",
)
def no_column(place: Place) -> Now:
    table(place.folder / "a.parquet", some_texts(1000), "body")
    good = place.write("b.jsonl", some_texts(20))
    skipped = place.convert(place.folder / "a.parquet", good, on_error="skip").info.skipped
    return Now(str(skipped), skipped == {"without text": 1000})


@finding(
    "12",
    "`--split-by-component` of documents that name none",
    "one stream `unlabelled`, no word",
    f"{FIELDS}::test_components_that_nobody_names_are_told_at_once",
)
def no_labels(place: Place) -> Now:
    path = place.write("a.jsonl", ({"text": text, "meta": {"subset": "news"}} for text in some_texts(20)))
    words = ["names its component in", "--component-field"]
    found = refusal(lambda: place.convert(path, split_by_component=True), words)
    report = place.convert(path, split_by_component=True, component_field="meta.subset")
    return Now(f"{found.told}; with it {list(report.info.components)}", found.right)


@finding(
    "12",
    "labels of RedPajama (`meta.redpajama_set_name`) and Dolma (`source`)",
    "one stream `unlabelled`, no word",
    f"{FIELDS}::test_components_that_are_known",
)
def known_labels(place: Place) -> Now:
    texts = some_texts(40)
    documents = [{"text": text, "meta": {"redpajama_set_name": "RedPajamaC4"}} for text in texts[:20]]
    documents += [{"text": text, "source": "cc_en_head"} for text in texts[20:]]
    report = place.convert(place.write("a.jsonl", documents), split_by_component=True)
    return Now(
        str(sorted(report.info.components)), set(report.info.components) == {"RedPajamaC4", "cc_en_head"}
    )


@finding(
    "15",
    "`--source data/train`, a typing error",
    "speaks of a hub that cannot be reached",
    f"{FIND}::test_a_mistyped_path_is_no_dataset_of_the_hub",
)
def mistyped(place: Place) -> Now:
    place.write("data/trian/a.jsonl", some_texts(5))
    return refusal(
        lambda: place.convert(place.folder / "data" / "train"), ["no such file or folder", "trian?"]
    )


@finding(
    "15",
    "a Parquet file with two columns `text`",
    "KeyError",
    f"{FIELDS}::test_two_columns_of_one_name_are_told",
)
def two_columns(place: Place) -> Now:
    two = pa.Table.from_arrays([pa.array(["a"]), pa.array(["b"])], names=["text", "text"])
    pq.write_table(two, place.folder / "a.parquet")
    return refusal(lambda: place.convert(place.folder / "a.parquet"), ["2 columns 'text'"])


@finding(
    "17",
    "`--text-field content.body`",
    "not possible",
    f"{FIELDS}::test_fields_within_fields",
)
def dotted_field(place: Place) -> Now:
    path = place.write("a.jsonl", ({"content": {"body": text}} for text in some_texts(20)))
    read = documents_by_split(place.convert(path, text_field="content.body"))["train"]
    return Now(f"{read} of 20 documents", read == 20)
