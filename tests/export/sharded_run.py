"""Trains a run of ``tests.export.runs`` in FSDP2, on two ranks.

Started by the launcher as ``python -m tests.export.sharded_run OUTPUT CORPUS FOLDER KIND NAME...``.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from tests.export.runs import run_config
from tests.ranks import write_down
from tests.support import train


def main() -> None:
    """Trains every model that is named."""
    output, corpus, folder, kind, *names = sys.argv[1:]
    os.environ["FSDP_VERSION"] = "2"
    fsdp = {"sharding_strategy": "FULL_SHARD", "mixed_precision": "PURE", "state_dict_type": kind}
    for name in names:
        run = Path(folder) / name
        cfg = run_config(name, Path(corpus), run, fsdp_config=fsdp, device_train_microbatch_size=2)
        # Ranks share the folder of a run, and not that of a Hugging Face model's config.
        train(cfg).close()
    write_down(output, names)


if __name__ == "__main__":
    main()
