"""The most memory that the processes of a conversion hold: for one large file, and for one large document.

Every process's peak is read from the kernel while `patch-level data convert` runs, the driver's and each
worker's apart. The text is the built-in corpus, over and over:

    python -m benchmarks.convert_memory --out benchmarks/results
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Iterator
from itertools import cycle
from pathlib import Path

import psutil

from benchmarks.pairs import write_report


def peak_mb(process: psutil.Process) -> float:
    """The most resident memory that a process has held so far."""
    try:
        status = Path(f"/proc/{process.pid}/status").read_text()
        return next(int(line.split()[1]) / 1e3 for line in status.splitlines() if line.startswith("VmHWM"))
    except (OSError, StopIteration):  # it has ended, or this is not Linux
        try:
            return process.memory_info().rss / 1e6
        except psutil.Error:
            return 0.0


def private_mb(process: psutil.Process) -> float:
    """The memory that a process shares with no other now."""
    try:
        return process.memory_full_info().uss / 1e6
    except psutil.Error:
        return 0.0


def watched(command: list[str]) -> tuple[float, list[tuple[float, float]], float]:
    """Runs a command; returns the peaks of its own process and of its children, and its seconds.

    Those of children are resident and private memory, the latter as far as looking every 0.2 s shows it.
    """
    start = time.perf_counter()
    own, children = 0.0, dict[int, tuple[float, float]]()
    with tempfile.TemporaryFile("w+") as said:
        running = psutil.Popen(command, stdout=said, stderr=said)
        while running.poll() is None:
            own = max(own, peak_mb(running))
            for child in running.children(recursive=True):
                resident, private = children.get(child.pid, (0.0, 0.0))
                children[child.pid] = max(resident, peak_mb(child)), max(private, private_mb(child))
            time.sleep(0.2)
        if running.returncode:
            said.seek(0)
            raise RuntimeError(said.read()[-3000:])
    return own, sorted(children.values(), reverse=True), time.perf_counter() - start


def texts_up_to(texts: list[str], megabytes: float) -> Iterator[str]:
    """The texts, over and over, until there are that many megabytes."""
    size = 0
    for text in cycle(texts):
        if size >= megabytes * 1e6:
            return
        size += len(text.encode())
        yield text


def main() -> None:
    """Measures both."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--file-megabytes", type=float, default=1000.0)
    parser.add_argument("--document-megabytes", type=float, default=50.0)
    parser.add_argument("--tokenizer", help="a tokenizer's folder; default: one of 32,000 entries is trained")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--out", type=Path, help="where to write the report")
    args = parser.parse_args()
    from patch_algorithm.data.corpus.gather import gather
    from patch_algorithm.data.corpus.tokenizer import train_tokenizer

    texts = gather(("stdlib", "torch", "transformers", "numpy"), 30.0)
    notes = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if not args.tokenizer:
            train_tokenizer(texts, 32_000, folder / "tokenizer")
        documents = {
            f"a file of {args.file_megabytes:.0f} MB": texts_up_to(texts, args.file_megabytes),
            f"a document of {args.document_megabytes:.0f} MB": iter(
                ["\n".join(texts_up_to(texts, args.document_megabytes))]
            ),
        }
        for what, source in documents.items():
            with (folder / "text.jsonl").open("w") as lines:
                lines.writelines(json.dumps({"text": text}) + "\n" for text in source)
            command = [str(Path(sys.executable).with_name("patch-level")), "data", "convert"]
            command += ["--source", str(folder / "text.jsonl"), "--out", str(folder / "out"), "--overwrite"]
            command += ["--tokenizer", args.tokenizer or str(folder / "tokenizer")]
            own, children, seconds = watched([*command, "--workers", str(args.workers)])
            found = (f"{peak:.0f} MB ({private:.0f} private)" for peak, private in children[: args.workers])
            workers = ", ".join(found)
            notes.append(f"{what}: {own:.0f} MB in the driver, {workers} in the workers; {seconds:.0f} s")
            sys.stderr.write(f"{notes[-1]}\n")
    write_report("convert-memory", [], notes, args.out)


if __name__ == "__main__":
    main()
