"""A run whose token stage does not fit in the memory that this process is allowed.

usage: python -m tests.runs.short_of_memory {rehearse,blind}
"""

from __future__ import annotations

import resource
import sys
from pathlib import Path

from patch_algorithm import PatchLevel
from patch_algorithm.algorithm.rehearsal import RehearsalError
from tests.runs.short import make_model, make_rows, make_trainer

ROW = 2048  # tokens: attention over all of them takes 16 times what a quarter of the positions takes
MEGABYTES = 300  # on top of what the process holds before the first step


def main() -> int:
    """Trains three patch steps, then token steps; 3 where the rehearsal stopped it, 4 at the switch."""
    trainer = make_trainer(
        make_rows(16, ROW),
        [PatchLevel(k=4, ratio="3ba", rehearse_switch=sys.argv[1] == "rehearse")],
        model=make_model(max_seq_len=ROW, attn_config={"alibi": False}),
        batch=4,
        max_duration="4ba",
    )
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + MEGABYTES * 2**20
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    try:
        trainer.fit()
    except RehearsalError as error:
        sys.stderr.write(f"batch {trainer.state.timestamp.batch.value}: {error}\n")
        return 3
    except (RuntimeError, MemoryError) as error:
        sys.stderr.write(f"batch {trainer.state.timestamp.batch.value}: {error}\n")
        return 4
    return 0


if __name__ == "__main__":
    sys.exit(main())
