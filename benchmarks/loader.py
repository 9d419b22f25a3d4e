"""How fast rows come: the pile loader against the patch stage that consumes them, and the text loader.

Sides take turns in one process, so that whatever else the machine does hits all alike; each turn gives one
ratio. The loaders read rows of 8,192 tokens with two workers; the patch stage is that of the quickstart's
model. Run it on an idle machine:

    OMP_NUM_THREADS=1 python -m benchmarks.loader --out benchmarks/results
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from composer import Trainer
from llmfoundry.data.dataloader import build_dataloader
from llmfoundry.models.mpt.modeling_mpt import ComposerMPTCausalLM
from omegaconf import OmegaConf
from streaming import MDSWriter
from tokenizers import Tokenizer, models
from transformers.tokenization_utils_fast import PreTrainedTokenizerFast

from benchmarks.pairs import Comparison, write_report
from benchmarks.trainer_step import NEVER, StepTimer, loader, trainer
from patch_algorithm import PatchLevel
from patch_algorithm.data.dataset.description import DatasetInfo, StreamInfo, TokenizerInfo
from patch_algorithm.data.tokens.identity import fingerprint

QUICKSTART = Path(__file__).parents[1] / "yamls" / "quickstart.yaml"


def write_data(folder: Path, rows: int, row_tokens: int, vocabulary: int) -> PreTrainedTokenizerFast:
    """Writes random rows as the converter would, and returns a tokenizer of their vocabulary."""
    words = {f"w{i}": i for i in range(vocabulary)}
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordLevel(words, unk_token="w0")), eos_token="w0", pad_token="w1"
    )
    rng = np.random.default_rng(0)
    columns = {"tokens": f"ndarray:uint16:{row_tokens}"}
    with MDSWriter(out=str(folder / "train"), columns=columns, hashes=["sha1"]) as out:
        for _ in range(rows):
            out.write({"tokens": rng.integers(0, vocabulary, size=row_tokens, dtype=np.uint16)})
    written = TokenizerInfo(fingerprint(tokenizer), "random", vocabulary, 0, None, "text", True, False)
    stream = StreamInfo("train", None, "train", row_tokens, rows, 1, rows * row_tokens, 0)
    DatasetInfo(written, "uint16", {"train": row_tokens}, False, None, (stream,), {}).write(folder)
    return tokenizer


def batches(
    name: str, folder: Path, tokenizer: PreTrainedTokenizerFast, args: argparse.Namespace
) -> Iterator:
    """Batches of a loader, enough for the whole measurement without a second epoch."""
    cfg: dict[str, Any] = {
        "name": name,
        "dataset": {
            "local": str(folder),
            "split": "train",
            "shuffle": True,
            "max_seq_len": args.row_tokens,
            "epoch_size": (args.pairs + 2) * args.batches * args.rows,
        },
        "drop_last": True,
        "num_workers": args.workers,
        "pin_memory": False,
        "persistent_workers": False,
    }
    return iter(build_dataloader(cfg, tokenizer, args.rows).dataloader)


def time_rows(source: Iterator, args: argparse.Namespace) -> float:
    """Seconds per row, over a turn's batches."""
    start = time.perf_counter()
    for _ in range(args.batches):
        next(source)
    return (time.perf_counter() - start) / (args.batches * args.rows)


def patch_stage() -> tuple[Trainer, StepTimer, int]:
    """The quickstart's model in its patch stage, and the raw tokens of a step."""
    cfg: Any = OmegaConf.to_container(OmegaConf.load(QUICKSTART), resolve=True)
    model = ComposerMPTCausalLM(
        **{name: value for name, value in cfg["model"].items() if name not in ("name", "init_device")},
        use_train_metrics=False,
        tokenizer=None,
    )
    rows, tokens = cfg["global_train_batch_size"], cfg["variables"]["builtin_corpus"]["row_tokens"]
    algorithm = PatchLevel(k=cfg["algorithms"]["patch_level"]["k"], ratio=NEVER, seq_len=cfg["max_seq_len"])
    made, timer = trainer(model, loader(rows, tokens, cfg["model"]["vocab_size"]), [algorithm])
    return made, timer, rows * tokens


def measure(folder: Path, args: argparse.Namespace) -> tuple[list[Comparison], list[str]]:
    """Takes the turns."""
    tokenizer = write_data(folder, args.data_rows, args.row_tokens, vocabulary=4096)
    ours, stock = (batches(name, folder, tokenizer, args) for name in ("pile", "text"))
    stage, timer, step_tokens = patch_stage()
    seconds: dict[str, list[float]] = {"pile": [], "text": []}
    for pair in range(args.pairs + 1):
        turns = [("pile", ours), ("text", stock)]
        for name, source in turns if pair % 2 else reversed(turns):
            seconds[name].append(time_rows(source, args))
        stage.fit(duration="2ba")
        print(f"\rpair {pair}/{args.pairs}", end="", flush=True)
    print()
    stage.close()
    # The first turn of each warms up.
    pile, text = seconds["pile"][1:], seconds["text"][1:]
    consumed = [step / step_tokens * args.row_tokens for step in timer.seconds[3::2]]
    rows_per_second = [float(1 / np.median(side)) for side in (pile, text, consumed)]
    row = f"a row of {args.row_tokens} tokens"
    notes = [
        f"{name}: {rate:,.1f} rows/s, {rate * args.row_tokens:,.0f} tokens/s (medians)."
        for name, rate in zip(
            ("pile loader", "text loader", "patch stage of the quickstart"), rows_per_second, strict=True
        )
    ]
    notes.append(
        f"Loaders: {args.workers} workers, batches of {args.rows} rows, shuffled, {args.data_rows} rows of "
        f"local MDS, {args.batches} batches a turn. Patch stage: {step_tokens} raw tokens a step."
    )
    return [
        Comparison(f"seconds for {row}: pile loader / patch stage", 0.1, pile, consumed),
        Comparison(f"seconds for {row}: pile loader / text loader", None, pile, text),
    ], notes


def main() -> None:
    """Parses the command line and writes the report."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--pairs", type=int, default=30)
    parser.add_argument("--rows", type=int, default=8, help="rows in a batch")
    parser.add_argument("--row-tokens", type=int, default=8192)
    parser.add_argument("--batches", type=int, default=64, help="batches a loader delivers in a turn")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--data-rows", type=int, default=4096)
    parser.add_argument("--out", type=Path, help="folder for the dated report; printed if not given")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        results, notes = measure(Path(folder), args)
    write_report("loader", results, notes, args.out)


if __name__ == "__main__":
    main()
