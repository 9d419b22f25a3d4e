"""A prepared corpus of made-up text."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest

from benchmarks.study.data import prepare_files


@pytest.fixture(scope="session")
def study_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data folder of the study with the corpus ``pile``."""
    folder = tmp_path_factory.mktemp("study")
    draw = random.Random(0)
    words = ["".join(draw.choices("abcdefghij", k=draw.randint(2, 6))) for _ in range(300)]
    for name, documents in (("train", 120), ("held-out", 5)):
        lines = [
            json.dumps({"text": " ".join(draw.choices(words, k=draw.randint(300, 600))), "meta": {}})
            for _ in range(documents)
        ]
        (folder / f"{name}.jsonl").write_text("\n".join(lines) + "\n")
    prepare_files([str(folder / "train.jsonl")], [str(folder / "held-out.jsonl")], folder / "data" / "pile")
    return folder / "data"
