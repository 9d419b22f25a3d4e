"""Two processes under the composer launcher share an epoch."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.data.loader.written import load, random_rows, write_dataset

ROOT = Path(__file__).parents[3]

pytestmark = pytest.mark.launcher


def test_two_ranks_share_the_rows(corpus: Path, tmp_path: Path) -> None:
    train, val = random_rows(64, 32), random_rows(14, 32, seed=5)
    write_dataset(tmp_path / "data", load(corpus), {(None, "train"): train, (None, "val"): val})
    command = [str(Path(sys.executable).with_name("composer")), "-n", "2"]
    command += ["--stdout", str(tmp_path / "rank{rank}.out"), "--stderr", str(tmp_path / "rank{rank}.err")]
    command += ["-m", "tests.data.loader.ranks", str(tmp_path / "found.json"), str(corpus), str(tmp_path)]
    # What a test before this one has said about its own single process must not reach the launcher.
    ours = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "NODE_RANK", "MASTER_ADDR", "MASTER_PORT")
    env = {name: value for name, value in os.environ.items() if name not in ours}
    env |= {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=300)
    errors = "".join(file.read_text()[-3000:] for file in sorted(tmp_path.glob("rank*.err")))
    assert done.returncode == 0, f"{done.stdout[-2000:]}\n{done.stderr[-2000:]}\n{errors}"
    first, second = (json.loads((tmp_path / f"found.rank{rank}").read_text()) for rank in (0, 1))
    assert len(first["train"]) == len(second["train"]) == 32
    assert sorted(first["train"] + second["train"]) == sorted(train.tolist())
    assert sorted(first["val"] + second["val"]) == sorted(val.reshape(-1, 8).tolist())
    assert first["refused"] == second["refused"]
    assert "max_seq_len is 16, but the rows have 32 tokens" in first["refused"]
