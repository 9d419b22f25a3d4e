"""Reads an epoch on however many ranks there are, and writes down what each of them got.

Started by the launcher as ``python -m tests.data.loader.ranks OUTPUT CORPUS WORK``.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from composer.utils import dist, get_device

from tests.data.loader.written import build, load, rows_of


def main(output: Path, corpus: Path, work: Path) -> None:
    dist.initialize_dist(get_device("cpu"))
    tokenizer = load(corpus)
    place = {"remote": str(work / "data"), "local": str(work / "cache")}
    found: dict[str, object] = {
        "train": rows_of(build(tokenizer, 4, max_seq_len=32, shuffle=True, **place)),
        "val": rows_of(build(tokenizer, 6, split="val", max_seq_len=8, **place)),
    }
    try:
        build(tokenizer, 4, max_seq_len=16, **place | {"local": str(work / "other")})
    except ValueError as error:
        found["refused"] = str(error)
    output.with_suffix(f".rank{dist.get_global_rank()}").write_text(json.dumps(found))


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
