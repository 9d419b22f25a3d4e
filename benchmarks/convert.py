"""How much work turning text into MDS rows is: against a bare tokenizer and against llm-foundry.

Every measurement is a process of its own, which loads what it needs and then times the work alone; the sides
take turns, and each turn gives one ratio for each pair of sides. The text is the built-in corpus (docstrings
and sources of installed packages), or any JSON lines given with --jsonl. Run it on an idle machine:

    python -m benchmarks.convert --jsonl pile.jsonl --tokenizer gpt-neox-20b --out benchmarks/results
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
from importlib import import_module
from pathlib import Path
from typing import Literal

from benchmarks.pairs import Comparison, write_report

ROW = 8192
_BARE_BATCH = 64
Run = dict[str, float]


def read_texts(path: Path) -> list[str]:
    """The documents of a file of JSON lines."""
    with path.open() as lines:
        return [json.loads(line)["text"] for line in lines]


def bare(jsonl: Path, tokenizer: str, out: Path) -> Callable[[], None]:
    """A loop of `encode_batch` over text in memory, nothing kept."""
    from tokenizers import Tokenizer

    texts = read_texts(jsonl)
    loaded = Tokenizer.from_file(f"{tokenizer}/tokenizer.json")

    def work() -> None:
        for start in range(0, len(texts), _BARE_BATCH):
            loaded.encode_batch(texts[start : start + _BARE_BATCH], add_special_tokens=False)

    return work


def ours(
    encoder: Literal["fast", "tokenizers"], jsonl: Path, tokenizer: str, out: Path
) -> Callable[[], None]:
    """`patch-level data convert` in one process, with the check of the encoder that belongs to it."""
    from patch_algorithm.data.conversion.conversion import convert
    from patch_algorithm.data.conversion.options import Conversion
    from patch_algorithm.data.tokens.encoding import load_tokenizer

    import_module("streaming")  # Imported where rows are first written; imports are not timed.

    options = Conversion(
        sources=(str(jsonl),),
        tokenizer=tokenizer,
        out=str(out / "ours"),
        row_tokens=ROW,
        encoder=encoder,
        workers=0,
        progress=False,
    )
    loaded = load_tokenizer(tokenizer)
    return lambda: convert(options, loaded) and None


def fast(jsonl: Path, tokenizer: str, out: Path) -> Callable[[], None]:
    """Ours with `fastokens`."""
    return ours("fast", jsonl, tokenizer, out)


def tokenizers(jsonl: Path, tokenizer: str, out: Path) -> Callable[[], None]:
    """Ours with `tokenizers`."""
    return ours("tokenizers", jsonl, tokenizer, out)


def foundry(jsonl: Path, tokenizer: str, out: Path) -> Callable[[], None]:
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


SIDES = {"bare": bare, "fast": fast, "tokenizers": tokenizers, "foundry": foundry}


def measure_here(side: str, jsonl: Path, tokenizer: str) -> Run:
    """Runs one side in this process; its seconds of wall and CPU time, and the most memory it held.

    The CPU time holds that of processes it started and waited for. `loading` is what imports and the
    tokenizer took before, on every side.
    """

    def cpu() -> float:
        both = resource.getrusage(resource.RUSAGE_SELF), resource.getrusage(resource.RUSAGE_CHILDREN)
        return sum(usage.ru_utime + usage.ru_stime for usage in both)

    with tempfile.TemporaryDirectory() as folder:
        os.environ["HF_DATASETS_CACHE"] = f"{folder}/cache"
        work = SIDES[side](jsonl, tokenizer, Path(folder))
        wall, loading = time.perf_counter(), cpu()
        work()
        seconds, spent = time.perf_counter() - wall, cpu() - loading
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    peak_mb = peak / (1e3 if sys.platform == "linux" else 1e6)
    return {"wall": seconds, "cpu": spent, "loading": loading, "peak_mb": peak_mb}


def measure(side: str, jsonl: Path, tokenizer: str) -> Run:
    """Runs one side in a process of its own, with one thread."""
    command = [
        sys.executable,
        "-m",
        "benchmarks.convert",
        "--one",
        side,
        "--jsonl",
        str(jsonl),
        "--tokenizer",
        tokenizer,
    ]
    threads = {"RAYON_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "true", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(command, env=os.environ | threads, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(done.stderr[-3000:])
    run: Run = json.loads(done.stdout.splitlines()[-1])
    sys.stderr.write(f"{side}: {run['cpu']:.1f} s of CPU, {run['wall']:.1f} s\n")
    return run


def compare(runs: dict[str, list[Run]], factor: float) -> list[Comparison]:
    """The ratios that the measured sides allow."""
    questions = (
        ("fast", "bare", "cpu", 1 / factor),
        ("tokenizers", "bare", "wall", 1 / 0.85),
        ("fast", "foundry", "cpu", 1 / 8),
        ("tokenizers", "foundry", "cpu", 1 / 1.3),
    )
    named = {"bare": "bare encode_batch", "foundry": "llm-foundry convert_dataset_json"}
    return [
        Comparison(
            f"conversion with {'fastokens' if left == 'fast' else left} / {named[right]}, {what}",
            round(limit, 3),
            [run[what] for run in runs[left]],
            [run[what] for run in runs[right]],
        )
        for left, right, what, limit in questions
        if left in runs and right in runs
    ]


def write_lines(texts: list[str], path: Path) -> None:
    """Writes JSON lines."""
    with path.open("w") as out:
        for text in texts:
            out.write(json.dumps({"text": text, "meta": {"pile_set_name": "built-in"}}) + "\n")


def prepare(args: argparse.Namespace, folder: Path) -> tuple[Path, str]:
    """The file of the text, and a tokenizer for it."""
    jsonl = Path(args.jsonl) if args.jsonl else folder / "text.jsonl"
    if not args.jsonl:
        from patch_algorithm.data.corpus.gather import gather

        packages = ("stdlib", "torch", "transformers", "numpy", "sympy", "networkx")
        write_lines(gather(packages, args.megabytes), jsonl)
    if args.tokenizer:
        return jsonl, args.tokenizer
    from patch_algorithm.data.corpus.tokenizer import train_tokenizer

    train_tokenizer(read_texts(jsonl), 32_000, folder / "tokenizer")
    return jsonl, str(folder / "tokenizer")


def growth(jsonl: Path, tokenizer: str, side: str, folder: Path) -> list[str]:
    """CPU time and memory for 1, 2, 4 and 8 parts of the text, in one process."""
    texts, rows = read_texts(jsonl), []
    for parts in (1, 2, 4, 8):
        part = texts[: len(texts) * parts // 8]
        write_lines(part, folder / "part.jsonl")
        size = sum(len(text.encode()) for text in part) / 1e6
        run = measure(side, folder / "part.jsonl", tokenizer)
        rows.append(
            f"growth, {side}: {size:.1f} MB: {run['cpu']:.1f} s of CPU, {run['cpu'] / size:.3f} s/MB, "
            f"at most {run['peak_mb']:.0f} MB"
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
    parser.add_argument("--sides", nargs="+", choices=SIDES, default=list(SIDES), help="what is measured")
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument(
        "--factor", type=float, default=6, help="how many times less CPU than a bare loop is the goal"
    )
    parser.add_argument("--growth", action="store_true", help="also measure parts of the text")
    parser.add_argument("--out", type=Path, help="where to write the report")
    parser.add_argument("--one", choices=SIDES, help="measure one side in this process")
    args = parser.parse_args()
    if args.one:
        result = measure_here(args.one, Path(args.jsonl), args.tokenizer)
        sys.stdout.write(json.dumps(result) + "\n")
        return
    with tempfile.TemporaryDirectory() as name:
        jsonl, tokenizer = prepare(args, Path(name))
        runs: dict[str, list[Run]] = {side: [] for side in args.sides}
        for turn in range(args.turns):
            for side in args.sides if turn % 2 else args.sides[::-1]:
                runs[side].append(measure(side, jsonl, tokenizer))
        size = sum(len(text.encode()) for text in read_texts(jsonl)) / 1e6
        notes = [f"text: {size:.1f} MB, one process and one thread on every side"]
        for side, measured in runs.items():
            spent, loading, peak = (
                sorted(run[what] for run in measured)[len(measured) // 2]
                for what in ("cpu", "loading", "peak_mb")
            )
            notes.append(
                f"{side}: {size / spent:.2f} MB of text a second of CPU (median), at most {peak:.0f} MB; "
                f"imports and the tokenizer took a further {loading:.1f} s of CPU"
            )
        if args.growth:
            notes += growth(jsonl, tokenizer, "fast", Path(name))
        write_report(f"convert-{Path(tokenizer).name}", compare(runs, args.factor), notes, args.out)


if __name__ == "__main__":
    main()
