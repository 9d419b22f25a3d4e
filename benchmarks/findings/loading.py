"""Findings on training: the loader ``pile`` and the tokenizer of a run."""

from __future__ import annotations

import json
import tempfile
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from llmfoundry.data.dataloader import build_dataloader
from transformers.models.auto.tokenization_auto import AutoTokenizer
from transformers.models.gpt2.tokenization_gpt2 import GPT2Tokenizer
from transformers.tokenization_utils_base import PreTrainedTokenizerBase
from transformers.tokenization_utils_fast import PreTrainedTokenizerFast

from benchmarks.findings.finding import Now, Place, finding, refusal, some_texts
from patch_algorithm.data.dataset.inspection import inspect_dataset, row_text
from patch_algorithm.data.loader.streams import ShardError

__all__: list[str] = []

LOADER = "data/loader"
TOKENIZERS = f"{LOADER}/test_tokenizers.py"


def loader(tokenizer: Any, batch: int = 4, workers: int = 0, **dataset: Any) -> Any:
    """The loader ``pile`` as llm-foundry builds it."""
    asked = {"split": "train", "shuffle": False} | dataset
    cfg = {"name": "pile", "dataset": asked, "drop_last": False, "num_workers": workers}
    made = build_dataloader(cfg | {"pin_memory": False, "persistent_workers": False}, tokenizer, batch)
    return made.dataloader


def rows(loaded: Any) -> list[list[int]]:
    """All rows that it hands out."""
    return torch.cat([batch["input_ids"] for batch in loaded]).tolist()


def converted(place: Place, number: int = 200, **options: Any) -> tuple[Path, PreTrainedTokenizerBase]:
    """Short texts as rows of 32, and their tokenizer."""
    place.convert(place.write("a.jsonl", some_texts(number)), **options)
    return place.folder / "out", AutoTokenizer.from_pretrained(place.folder / "out" / "tokenizer")


@finding(
    "3",
    "`long_rows: cut`, rows of 512 cut to 128, resumed: 2 workers with batch 4 after 21 batches, batch 16 "
    "after 5; no workers",
    "4 pieces never trained on and 4 twice; 16 and 16; 0",
    f"{LOADER}/test_resuming.py::test_no_piece_is_lost_or_read_twice",
)
def resumed(place: Place) -> Now:
    data, tokenizer = converted(place, 1000, row_tokens=512)
    asked: dict[str, Any] = {"local": str(data), "max_seq_len": 128, "long_rows": "cut", "shuffle": True}
    expected = Counter(map(tuple, rows(loader(tokenizer, **asked))))
    wrong = []
    for workers, batch, done in ((2, 4, 21), (2, 16, 5), (0, 4, 21)):
        stopped, seen = loader(tokenizer, batch, workers, **asked), Counter[tuple[int, ...]]()
        for _, found in zip(range(done), stopped, strict=False):
            seen.update(map(tuple, found["input_ids"].tolist()))
        goes_on = loader(tokenizer, batch, workers, **asked)
        goes_on.dataset.load_state_dict(stopped.dataset.state_dict(done * batch, True))
        seen.update(map(tuple, rows(goes_on)))
        wrong.append(((expected - seen).total(), (seen - expected).total()))
    told = "; ".join(f"{never} and {twice}" for never, twice in wrong)
    return Now(f"never and twice: {told}", not any(sum(pair) for pair in wrong))


def changed(folder: Path, change: Callable[[dict[str, Any]], None], target: Path) -> Path:
    """A tokenizer whose ``tokenizer.json`` is changed."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.save_pretrained(target)
    text = json.loads((target / "tokenizer.json").read_text())
    change(text)
    (target / "tokenizer.json").write_text(json.dumps(text))
    settings = json.loads((target / "tokenizer_config.json").read_text())
    settings["added_tokens_decoder"] = {
        str(token.pop("id")): token for token in [dict(token) for token in text["added_tokens"]]
    }
    (target / "tokenizer_config.json").write_text(json.dumps(settings))
    return target


def _make_holes(text: dict[str, Any]) -> None:
    moved = partial(lambda own: own + 40 if own >= 200 else own)
    text["model"]["vocab"] = {token: moved(own) for token, own in text["model"]["vocab"].items()}
    for token in text["added_tokens"]:
        token["id"] = moved(token["id"])


@finding(
    "7",
    "a tokenizer whose ids have holes",
    "convert, info and cat right; the run stops at batch 6 with advice that does not help",
    f"{TOKENIZERS}::test_ids_with_holes_are_bound_by_the_largest",
)
def holes(place: Place) -> Now:
    folder = changed(place.tokenizer, _make_holes, place.folder / "holes")
    data, tokenizer = converted(place, tokenizer=str(folder))
    found = rows(loader(tokenizer, local=str(data), max_seq_len=32))
    largest, entries = max(map(max, found)), len(tokenizer)
    sound = inspect_dataset(data).sound and row_text(data, 0)[:20] == some_texts(1)[0][:20]
    told = f"{entries} entries, largest id {max(tokenizer.get_vocab().values())}: {len(found)} rows read, "
    return Now(f"{told}ids up to {largest}", sound and largest >= entries)


@finding(
    "8",
    "`eval_subset_num_batches: 4` of a val split by component",
    "the first component alone (7.7138 for ArXiv and for all)",
    f"{LOADER}/test_evaluation.py::test_the_first_batches_hold_every_component",
)
def evaluated(place: Place) -> Now:
    names = ("ArXiv", "Github", "FreeLaw")
    documents = [
        {"text": f"{name} " * 20, "meta": {"pile_set_name": name}} for name in names for _ in range(60)
    ]
    place.write("val.jsonl", documents)
    source = f"val={place.folder / 'val.jsonl'}"
    place.convert(place.write("train.jsonl", documents), source, split_by_component=True)
    data = place.folder / "out"
    tokenizer = AutoTokenizer.from_pretrained(data / "tokenizer")
    asked: dict[str, Any] = {"local": str(data), "split": "val", "max_seq_len": 16}
    texts = [tokenizer.decode(row) for row in rows(loader(tokenizer, **asked))[: 4 * 4]]
    found = {name: sum(name in text for text in texts) for name in names}
    return Now(f"rows of the first 4 batches: {found}", min(found.values()) >= 4)


@finding(
    "13",
    "a run whose tokenizer has an added padding token, or is the slow one",
    "refused as another, although no id differs",
    f"{TOKENIZERS}::test_a_tokenizer_in_python_is_compared_by_its_ids",
)
def same_ids(place: Place) -> Now:
    data, tokenizer = converted(place)
    expected = rows(loader(tokenizer, local=str(data), max_seq_len=32))
    padded = AutoTokenizer.from_pretrained(place.tokenizer)
    padded.add_special_tokens({"pad_token": "<my pad>"})
    model = json.loads((place.tokenizer / "tokenizer.json").read_text())["model"]
    slow = place.folder / "slow"
    slow.mkdir()
    (slow / "vocab.json").write_text(json.dumps(model["vocab"]))
    merges = "\n".join(merge if isinstance(merge, str) else " ".join(merge) for merge in model["merges"])
    (slow / "merges.txt").write_text(f"#version: 0.2\n{merges}\n")
    end = str(tokenizer.eos_token)
    own = GPT2Tokenizer.from_pretrained(slow, eos_token=end, bos_token=end, unk_token=end, pad_token=end)
    found = [rows(loader(one, local=str(data), max_seq_len=32)) for one in (padded, own)]
    return Now("both read the same rows", found == [expected, expected])


@finding(
    "13",
    "a tokenizer two of whose tokens have each other's ids",
    "refused, without naming what differs",
    f"{TOKENIZERS}::test_what_differs_is_named",
)
def other_ids(place: Place) -> Now:
    def swap(text: dict[str, Any]) -> None:
        ids = text["model"]["vocab"]
        ids["a"], ids["b"] = ids["b"], ids["a"]

    data, _ = converted(place)
    folder = changed(place.tokenizer, swap, place.folder / "swapped")
    other = PreTrainedTokenizerFast.from_pretrained(folder)
    return refusal(lambda: loader(other, local=str(data), max_seq_len=32), ["2 of its", "such as 'a'"])


@finding(
    "14",
    "a loader with `remote` alone, started twice",
    "every second start a raw FileExistsError",
    f"{LOADER}/test_shards_at_start.py::test_a_remote_without_a_local_is_cached_and_found_again",
)
def remote_alone(place: Place) -> Now:
    data, tokenizer = converted(place)
    with mock.patch.object(tempfile, "tempdir", str(place.folder)):
        found = [rows(loader(tokenizer, remote=str(data), max_seq_len=32)) for _ in range(3)]
    return Now(f"{len(found)} starts, the same {len(found[0])} rows", found[0] == found[1] == found[2])


@finding(
    "15",
    "a mistake in `eval_loader`",
    "reported as `train_loader`",
    f"{TOKENIZERS}::test_a_loader_is_named_as_far_as_it_is_known",
)
def named_loader(place: Place) -> Now:
    data, tokenizer = converted(place, val_fraction=0.2)
    asked: dict[str, Any] = {"local": str(data), "split": "val", "max_seq_len": 15}
    return refusal(lambda: loader(tokenizer, **asked), ["eval_loader.dataset"])


@finding(
    "16",
    "a bit flipped in a local shard",
    "trained on, while the module says that it checks everything",
    f"{LOADER}/test_shards_at_start.py::test_flipped_bits_of_a_local_shard_are_found_if_asked",
)
def flipped(place: Place) -> Now:
    data, tokenizer = converted(place)
    shard = next((data / "train").rglob("*.mds"))
    content = bytearray(shard.read_bytes())
    content[-6] ^= 1
    shard.write_bytes(content)
    asked: dict[str, Any] = {"local": str(data), "max_seq_len": 32}
    read = len(rows(loader(tokenizer, **asked)))
    try:
        loader(tokenizer, **asked, verify=True)
    except ShardError as error:
        return Now(f"`verify: true`: {str(error)[:90]}... Without it {read} rows, as is documented", True)
    return Now("not noticed with `verify: true`", False)
