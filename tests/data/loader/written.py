"""Small datasets of the converter's form, and loaders for them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from composer.core import DataSpec
from streaming import MDSWriter
from torch.utils.data import DataLoader
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from patch_algorithm.data.dataset.description import TOKENIZER_JSON, DatasetInfo, StreamInfo, TokenizerInfo
from patch_algorithm.data.tokens.identity import fingerprint

Rows = np.ndarray


def load(corpus: Path) -> PreTrainedTokenizerFast:
    return AutoTokenizer.from_pretrained(corpus / "tokenizer")


def random_rows(rows: int, row_tokens: int, seed: int = 0) -> Rows:
    """Rows of random tokens; no two are the same."""
    rng = np.random.default_rng(seed)
    return rng.integers(0, 94, size=(rows, row_tokens), dtype=np.uint16)


def write_stream(folder: Path, rows: Rows, column: str = "", **options: Any) -> Path:
    columns = {"tokens": column or f"ndarray:{rows.dtype}:{rows.shape[1]}"}
    with MDSWriter(out=str(folder), columns=columns, **({"hashes": ["sha1"]} | options)) as out:
        for row in rows:
            out.write({"tokens": row.tobytes() if column == "bytes" else row})
    return folder


def write_dataset(
    folder: Path,
    tokenizer: PreTrainedTokenizerFast,
    streams: Mapping[tuple[str | None, str], Rows],
    eos: int = 94,
    **options: Any,
) -> Path:
    """Writes the streams of (component, split) and their ``dataset.json``; returns ``folder``."""
    infos: list[StreamInfo] = []
    for (component, split), rows in streams.items():
        path = split if component is None else f"{component.lower().replace(' ', '-')}/{split}"
        if len(rows):
            write_stream(folder / path, rows, **options)
        infos.append(StreamInfo(path, component, split, rows.shape[1], len(rows), 1, rows.size, 0))
    described = TokenizerInfo(fingerprint(tokenizer), "tiny", len(tokenizer), eos, None, "text", True, False)
    DatasetInfo(
        tokenizer=described,
        dtype="uint16",
        row_tokens={info.split: info.row_tokens for info in infos},
        split_by_component=any(info.component for info in infos),
        compression=options.get("compression"),
        streams=tuple(infos),
        components={},
    ).write(folder)
    (folder / TOKENIZER_JSON).parent.mkdir(exist_ok=True)
    (folder / TOKENIZER_JSON).write_text(tokenizer.backend_tokenizer.to_str())
    return folder


def build(tokenizer: PreTrainedTokenizerFast, batch: int = 4, workers: int = 0, **dataset: Any) -> DataSpec:
    """The pile loader as llm-foundry builds it from a configuration."""
    from llmfoundry.data.dataloader import build_dataloader

    dataset = {"split": "train", "shuffle": False} | dataset
    cfg = {"name": "pile", "dataset": dataset, "drop_last": False, "num_workers": workers}
    # Workers that persist take streaming ten seconds to end.
    return build_dataloader(cfg | {"pin_memory": False, "persistent_workers": False}, tokenizer, batch)


def torch_loader(spec: DataSpec) -> DataLoader[Any]:
    assert isinstance(spec.dataloader, DataLoader)
    return spec.dataloader


def batches(spec: DataSpec) -> list[torch.Tensor]:
    """The ids of each batch."""
    return [batch["input_ids"] for batch in spec.dataloader]


def rows_of(spec: DataSpec) -> list[list[int]]:
    return torch.cat(batches(spec)).tolist()
