"""How fast text becomes MDS rows: against a bare tokenizer, against llm-foundry, and as text grows.

Every measurement is a process of its own, which loads what it needs and then times the work alone; the sides
of a comparison take turns. The text is the built-in corpus (docstrings and sources of installed packages), or
any JSON lines given with --jsonl. Run it on an idle machine:

    python -m benchmarks.convert --out benchmarks/results
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.pairs import Comparison, write_report

LONG = 100_000  # characters of a document whose speed is reported apart
ROW = 8192
_BARE_BATCH = 64


def read_texts(path: Path) -> list[str]:
    """The documents of a file of JSON lines."""
    with path.open() as lines:
        return [json.loads(line)["text"] for line in lines]


def bare(jsonl: Path, tokenizer: str, workers: int, out: Path) -> Callable[[], None]:
    """A loop of `encode_batch` over text in memory, nothing kept."""
    from tokenizers import Tokenizer

    texts = read_texts(jsonl)
    loaded = Tokenizer.from_file(f"{tokenizer}/tokenizer.json")

    def work() -> None:
        for start in range(0, len(texts), _BARE_BATCH):
            loaded.encode_batch(texts[start : start + _BARE_BATCH], add_special_tokens=False)

    return work


def ours(jsonl: Path, tokenizer: str, workers: int, out: Path) -> Callable[[], None]:
    """`patch-level data convert`, less what it takes to import and to load the tokenizer, as on all sides."""
    from patch_algorithm.data.conversion.conversion import convert
    from patch_algorithm.data.conversion.options import Conversion
    from patch_algorithm.data.tokens.encoding import load_tokenizer

    options = Conversion(
        sources=(str(jsonl),),
        tokenizer=tokenizer,
        out=str(out / "ours"),
        row_tokens=ROW,
        workers=workers,
        progress=False,
    )
    loaded = load_tokenizer(tokenizer)
    return lambda: convert(options, loaded) and None


def foundry(jsonl: Path, tokenizer: str, workers: int, out: Path) -> Callable[[], None]:
    """llm-foundry's own `convert_dataset_json`, concatenating; it works in one process."""
    from llmfoundry.command_utils import convert_dataset_json_from_args

    def work() -> None:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            convert_dataset_json_from_args(
                path=str(jsonl),
                out_root=str(out / "foundry"),
                compression=None,
                concat_tokens=ROW,
                split="train",
                tokenizer=tokenizer,
                eos_text="<|endoftext|>",
            )

    return work


SIDES = {"bare": bare, "ours": ours, "foundry": foundry}


def measure_here(side: str, jsonl: Path, tokenizer: str, workers: int) -> dict[str, float]:
    """Runs one side in this process; its seconds of wall and CPU time, and the most memory it held.

    CPU time is this process's own: of sides with workers only the wall time says something.
    """

    def cpu() -> float:
        usage = resource.getrusage(resource.RUSAGE_SELF)
        return usage.ru_utime + usage.ru_stime

    with tempfile.TemporaryDirectory() as folder:
        os.environ["HF_DATASETS_CACHE"] = f"{folder}/cache"
        work = SIDES[side](jsonl, tokenizer, workers, Path(folder))
        wall, loading = time.perf_counter(), cpu()
        work()
        seconds, spent = time.perf_counter() - wall, cpu() - loading
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    peak_mb = peak / (1e3 if sys.platform == "linux" else 1e6)
    return {"wall": seconds, "cpu": spent, "loading": loading, "peak_mb": peak_mb}


def measure(side: str, jsonl: Path, tokenizer: str, workers: int) -> dict[str, float]:
    """Runs one side in a process of its own."""
    command = [sys.executable, __file__, "--one", side, "--jsonl", str(jsonl)]
    command += ["--tokenizer", tokenizer, "--workers", str(workers)]
    threads = {
        "RAYON_NUM_THREADS": str(max(workers, 1)),
        "TOKENIZERS_PARALLELISM": "true",
        "HF_HUB_OFFLINE": "1",
    }
    done = subprocess.run(command, env=os.environ | threads, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(done.stderr[-3000:])
    return json.loads(done.stdout.splitlines()[-1])


def compare(
    name: str, what: str, limit: float | None, left: tuple[Any, ...], right: tuple[Any, ...], pairs: int
) -> Comparison:
    """Times two sides in turn; ``what`` is ``wall`` or ``cpu``."""
    comparison = Comparison(name, limit, [], [])
    for pair in range(pairs):
        for side in ("left", "right") if pair % 2 else ("right", "left"):
            seconds = measure(*(left if side == "left" else right))[what]
            getattr(comparison, side).append(seconds)
        sys.stderr.write(f"{name}: {comparison.ratios()[-1]:.3f}\n")
    return comparison


def write_lines(texts: list[str], path: Path) -> float:
    """Writes JSON lines; returns megabytes of text."""
    with path.open("w") as out:
        for text in texts:
            out.write(json.dumps({"text": text, "meta": {"pile_set_name": "built-in"}}) + "\n")
    return sum(len(text.encode()) for text in texts) / 1e6


def prepare(args: argparse.Namespace, folder: Path) -> tuple[list[str], str]:
    """The text, and a tokenizer for it."""
    if args.jsonl:
        texts = read_texts(Path(args.jsonl))
    else:
        from patch_algorithm.data.corpus.gather import gather

        texts = gather(("stdlib", "torch", "transformers", "numpy", "sympy", "networkx"), args.megabytes)
    if args.tokenizer:
        return texts, args.tokenizer
    from patch_algorithm.data.corpus.tokenizer import train_tokenizer

    train_tokenizer(texts, 32_000, folder / "tokenizer")
    return texts, str(folder / "tokenizer")


def linearity(texts: list[str], tokenizer: str, folder: Path) -> list[str]:
    """CPU time and memory for 1, 2, 4 and 8 parts of the text, in one process."""
    rows = []
    for parts in (1, 2, 4, 8):
        size = write_lines(texts[: len(texts) * parts // 8], folder / "part.jsonl")
        spent = [measure("ours", folder / "part.jsonl", tokenizer, 0) for _ in range(3)]
        cpu = sorted(run["cpu"] for run in spent)[1]
        loading = sorted(run["loading"] for run in spent)[1]
        rows.append(
            f"{size:.1f} MB of text: {cpu:.1f} s of CPU (median of 3), {cpu / size:.3f} s/MB, at most "
            f"{spent[0]['peak_mb']:.0f} MB in one process that does everything; imports and the tokenizer "
            f"took a further {loading:.1f} s"
        )
    return rows


def main() -> None:
    """Measures everything."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--megabytes", type=float, default=50.0, help="of built-in text")
    parser.add_argument("--jsonl", help="JSON lines instead of the built-in text")
    parser.add_argument("--tokenizer", help="a tokenizer's folder; default: one of 32,000 entries is trained")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--out", type=Path, help="where to write the report")
    parser.add_argument("--one", choices=SIDES, help="measure one side in this process")
    args = parser.parse_args()
    if args.one:
        result = measure_here(args.one, Path(args.jsonl), args.tokenizer, args.workers)
        sys.stdout.write(json.dumps(result) + "\n")
        return
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        texts, tokenizer = prepare(args, folder)
        short = [text for text in texts if len(text) <= LONG]
        # Built-in documents are short: long ones are made by joining them.
        long = ["\n\n".join(short[i : i + 50]) for i in range(0, len(short) // 2, 50)]
        whole, of_short, of_long = (folder / f"{part}.jsonl" for part in ("whole", "short", "long"))
        size = write_lines(texts, whole)
        sizes = write_lines(short, of_short), write_lines(long, of_long)
        comparisons = [
            compare(
                f"{label}, {workers} workers / bare encode_batch, {workers} threads, wall",
                "wall",
                1 / 0.85,
                ("ours", path, tokenizer, workers),
                ("bare", path, tokenizer, workers),
                args.pairs,
            )
            for label, path in (("up to 100 kB", of_short), ("above 100 kB", of_long))
            for workers in dict.fromkeys((1, args.workers))
        ]
        for limit, what, workers in ((1 / 1.3, "cpu", 0), (1 / 2, "wall", args.workers)):
            sides = (("ours", whole, tokenizer, workers), ("foundry", whole, tokenizer, 1))
            label = f"{workers} workers / llm-foundry convert_dataset_json, {what}"
            comparisons.append(compare(label, what, limit, *sides, args.pairs))
        notes = [
            f"text: {size:.1f} MB; up to 100 kB {sizes[0]:.1f} MB, joined to above 100 kB {sizes[1]:.1f} MB"
        ]
        megabytes = {"up to": sizes[0], "above": sizes[1]}
        for comparison in comparisons[:-2]:
            amount = next(v for k, v in megabytes.items() if comparison.name.startswith(k))
            speeds = [amount / s for s in comparison.left]
            notes.append(f"{comparison.name}: {sorted(speeds)[len(speeds) // 2]:.2f} MB/s of text, median")
        write_report("convert", comparisons, notes + linearity(texts, tokenizer, folder), args.out)


if __name__ == "__main__":
    main()
