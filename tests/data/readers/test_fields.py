"""Where a document has its text and its component, in every kind of source."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from patch_algorithm.data.readers.blocks import Position, Row, SourceDamage
from patch_algorithm.data.readers.fields import component_of, look_up, parse_json
from patch_algorithm.data.readers.find import find_sources
from patch_algorithm.data.readers.source import Reading
from patch_algorithm.data.readers.tables import TableSource
from tests.data.support import run

TEXT = "some words of a text " * 20


@pytest.mark.parametrize(
    ("document", "component"),
    [
        ({"meta": {"pile_set_name": "ArXiv", "redpajama_set_name": "no"}, "source": "no"}, "ArXiv"),
        ({"meta": {"redpajama_set_name": "RedPajamaC4"}}, "RedPajamaC4"),
        ({"meta": "{}", "source": "stack-dedup"}, "stack-dedup"),
        ({"source": "https://example.org/page"}, None),
        ({"source": "a title " * 20}, None),
        ({"source": 7, "meta": {"pile_set_name": " "}}, None),
    ],
)
def test_components_that_are_known(document: dict[str, Any], component: str | None) -> None:
    assert component_of(document) == component


def test_a_dot_leads_into_an_object() -> None:
    document = {"a": {"b": {"c": 1}, "d.e": 2}, "a.b": 3}
    found = [look_up(document, field) for field in ("a.b.c", "a.b", "a.d.e", "a.x.c", "x")]
    assert found == [1, 3, None, None, None]
    assert component_of({"x": {"kind": "https://y"}}, "x.kind") == "https://y"


@pytest.mark.parametrize("depth", [390, 402, 985, 5000])
def test_deep_json_is_read_alike_whoever_reads_it(depth: int) -> None:
    def verdict(frames: int) -> str:
        if frames:
            return verdict(frames - 1)
        try:
            return str(parse_json(line)["text"])
        except ValueError as error:
            return str(error)

    line = b'{"text": "[{", "deep": ' + b"[" * (depth - 1) + b"]" * (depth - 1) + b"}"
    limit = sys.getrecursionlimit()
    found = {verdict(0), verdict(300)}
    try:
        sys.setrecursionlimit(8000)
        found.add(verdict(0))
    finally:
        sys.setrecursionlimit(limit)
    assert found == {"[{" if depth <= 400 else "nested deeper than 400 levels"}


def test_brackets_in_strings_are_not_deep() -> None:
    text = '[{\\"' * 3000
    assert parse_json(json.dumps({"text": text}).encode())["text"] == text


def documents_of(path: Path, **reading: Any) -> list[Row]:
    return [row for block in TableSource(path).blocks(Position(), Reading(**reading)) for row in block.data]  # type: ignore[misc]


@pytest.mark.parametrize("kind", ["jsonl", "parquet", "hub"])
def test_fields_within_fields(kind: str, tokenizer: Path, tmp_path: Path) -> None:
    found = [
        {"doc": {"body": TEXT}, "text": "no", "info": {"lang": lang}, "meta": {"redpajama_set_name": "C4"}}
        for lang in ("de", "fr", "de")
    ]
    if kind == "jsonl":
        (tmp_path / "a.jsonl").write_text("".join(json.dumps(one) + "\n" for one in found))
    else:
        pq.write_table(pa.Table.from_pylist(found), tmp_path / "a.parquet")
    source = f"hf://{tmp_path}" if kind == "hub" else str(tmp_path)
    report = run([source], tokenizer, tmp_path.parent / f"{tmp_path.name}-out", text_field="doc.body")
    assert {name: splits["train"].documents for name, splits in report.info.components.items()} == {"C4": 3}
    assert sum(s["train"].bytes for s in report.info.components.values()) == 3 * len(TEXT)
    options = {"text_field": "doc.body", "component_field": "info.lang", "split_by_component": True}
    report = run([source], tokenizer, tmp_path.parent / f"{tmp_path.name}-by", row_tokens=8, **options)
    assert {s.component: s.path for s in report.info.streams} == {"de": "de/train", "fr": "fr/train"}


def test_labels_of_tables_are_taken_row_by_row(tmp_path: Path) -> None:
    found = [
        {"text": "a", "meta": {"pile_set_name": "ArXiv"}, "source": "x"},
        {"text": "b", "meta": {"pile_set_name": None}, "source": "y"},
        {"text": "c", "meta": None, "source": "http://z"},
    ]
    pq.write_table(pa.Table.from_pylist(found), tmp_path / "a.parquet")
    assert [row.component for row in documents_of(tmp_path / "a.parquet")] == ["ArXiv", "y", None]
    assert [row.component for row in documents_of(tmp_path / "a.parquet", component_field="source")] == [
        "x",
        "y",
        "http://z",
    ]


def test_a_table_without_the_column_counts_all_its_rows(tokenizer: Path, tmp_path: Path) -> None:
    pq.write_table(pa.table({"body": [TEXT] * 1000}), tmp_path / "a.parquet")
    with pytest.raises(SourceDamage, match="no column 'text', only body") as raised:
        documents_of(tmp_path / "a.parquet")
    assert raised.value.documents == 1000
    (tmp_path / "b.jsonl").write_text(json.dumps({"text": TEXT}) + "\n")
    report = run([tmp_path], tokenizer, tmp_path.parent / "skipped", on_error="skip")
    assert report.info.skipped == {"without text": 1000}


def test_two_columns_of_one_name_are_told(tmp_path: Path) -> None:
    table = pa.Table.from_arrays([pa.array(["a"]), pa.array(["b"])], names=["text", "text"])
    pq.write_table(table, tmp_path / "a.parquet")
    with pytest.raises(SourceDamage, match="2 columns 'text'"):
        documents_of(tmp_path / "a.parquet")


def test_components_that_nobody_names_are_told_at_once(tokenizer: Path, tmp_path: Path) -> None:
    found = {"text": TEXT, "meta": {"subset": "news"}, "id": "1"}
    (tmp_path / "a.jsonl").write_text((json.dumps(found) + "\n") * 5)
    words = r"none of the first 5 documents names its component in meta\.pile_set_name .* They have "
    with pytest.raises(
        ValueError, match=words + r"the fields meta\.subset, id\. Name the right one with --comp"
    ):
        run([tmp_path], tokenizer, tmp_path.parent / "none", split_by_component=True)
    assert not (tmp_path.parent / ".none.partial").exists()
    options = {"split_by_component": True, "component_field": "meta.subset"}
    report = run([tmp_path], tokenizer, tmp_path.parent / "named", **options)
    assert [s.path for s in report.info.streams] == ["news/train"]
    assert len(find_sources([str(tmp_path)])) == 1
