"""The parts of the suite: each measures one thing, in full or, with ``quick``, so that it is seen to run."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from benchmarks.pairs import Comparison

__all__ = ["PARTS"]

Found = tuple[list["Comparison"], list[str]]
PAIRS, QUICK_PAIRS = 30, 2


def _steps(quick: bool, **changes: Any) -> Namespace:
    full = {"rows": 4, "positions": 128, "vocabulary": 8192, "k": 4, "pairs": PAIRS, "steps": 6}
    tiny = {"rows": 2, "positions": 8, "vocabulary": 64, "k": 4, "pairs": QUICK_PAIRS, "steps": 6}
    return Namespace(**((tiny if quick else full) | changes))


def loss(quick: bool) -> Found:
    """The K-target loss against ordinary cross-entropy."""
    from benchmarks.loss import DTYPES, compare

    args = Namespace(k=4, device="cpu", pairs=QUICK_PAIRS if quick else PAIRS, expanded=False, compiled=False)
    # Tensors of up to 32 MiB come from memory that the process already has; larger ones, as in a real batch,
    # from the system each time.
    full = [(32_000, 2**25), (50_257, 2**25), (128_000, 2**25), (50_257, 2**23)]
    found, notes = [], []
    for vocabulary, args.elements in [(64, 2**10)] if quick else full:
        for dtype in DTYPES:
            more, noted = compare(vocabulary, dtype, args)
            found += more
            notes += noted
    return found, notes


def embedding(quick: bool) -> Found:
    """The mean of a patch's embeddings, three ways."""
    from benchmarks.embedding import build_parser, measure

    small = ["--pairs", str(QUICK_PAIRS), "--vocabulary", "64", "--width", "8", "--positions", "8"]
    return measure(build_parser().parse_args(small if quick else ["--pairs", str(PAIRS)]))


def step(quick: bool) -> Found:
    """A patch step against a token step, by k and by model."""
    from benchmarks import trainer_step as of

    cases = [(of.mpt, k) for k in (2, 4, 8, 16)] + [(of.llama, 4), (of.twice, 4)]
    found, notes = [], []
    for make, k in [(of.tiny, 2)] if quick else cases:
        more, noted = of.patch_against_token(make, _steps(quick), k)
        found += more
        notes += noted
    return found, notes


def switch(quick: bool) -> Found:
    """A token step after the switch against stock."""
    from benchmarks import trainer_step as of

    return [of.after_switch(make, _steps(quick)) for make in ([of.tiny] if quick else [of.mpt, of.llama])], []


def runs(quick: bool) -> Found:
    """Whole runs against stock llm-foundry."""
    from benchmarks import trainer_step as of
    from benchmarks.whole_runs import measure

    if quick:
        return measure(of.tiny, _steps(quick))
    # Longer rows than elsewhere: what the optimizer takes for 12M weights should not be what is measured.
    return measure(of.mpt, _steps(quick, positions=256))


def loader(quick: bool) -> Found:
    """The pile loader against the patch stage, and against the text loader."""
    from benchmarks.loader import measure

    args = Namespace(pairs=PAIRS, rows=8, row_tokens=8192, batches=16, workers=2, data_rows=4096)
    if quick:
        args = Namespace(pairs=QUICK_PAIRS, rows=2, row_tokens=64, batches=1, workers=1, data_rows=32)
    with tempfile.TemporaryDirectory() as folder:
        return measure(Path(folder), args)


def growth(quick: bool) -> Found:
    """A patch step with one thing doubled."""
    from benchmarks import trainer_step as of
    from benchmarks.growth import measure

    makes = (of.tiny, of.tiny) if quick else (of.mpt, of.twice)
    return measure(*makes, _steps(quick))


_START = """
import time
import composer, llmfoundry, streaming
start = time.perf_counter()
import patch_algorithm
face = time.perf_counter() - start
from patch_algorithm import PatchLevel
from patch_algorithm.monitoring.patch_monitor import PatchMonitor
print(face, time.perf_counter() - start)
"""


def startup(quick: bool) -> Found:
    """What importing the package adds to a process that has imported the stack."""
    times = []
    for _ in range(1 if quick else 3):
        done = subprocess.run([sys.executable, "-c", _START], capture_output=True, text=True, check=True)
        times.append([float(word) for word in done.stdout.split()[-2:]])
    face, whole = (sorted(column)[len(times) // 2] for column in zip(*times, strict=True))
    return [], [
        f"after composer, llmfoundry and streaming, `import patch_algorithm` takes {face:.3f} s, with the "
        f"algorithm and the monitor {whole:.3f} s (median of {len(times)} processes; goal: under 0.3 s)."
    ]


PARTS: dict[str, Callable[[bool], Found]] = {
    "loss": loss,
    "embedding": embedding,
    "step": step,
    "switch": switch,
    "runs": runs,
    "loader": loader,
    "growth": growth,
    "startup": startup,
}
