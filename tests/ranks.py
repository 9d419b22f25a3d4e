"""Starting a module of the tests on several ranks, and getting back what each of them found."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from composer.utils import dist

__all__ = ["on_ranks", "write_down"]

ROOT = Path(__file__).parents[1]
# What a test before this one has said about its own single process must not reach the launcher.
_OF_ONE_PROCESS = {
    "RANK",
    "WORLD_SIZE",
    "LOCAL_RANK",
    "LOCAL_WORLD_SIZE",
    "NODE_RANK",
    "MASTER_ADDR",
    "MASTER_PORT",
}


def on_ranks(
    number: int, module: str, folder: Path, *arguments: str, timeout: float = 600, **environment: str
) -> list[Any]:
    """Starts ``python -m module OUTPUT ARGUMENT...`` on ranks under the composer launcher (gloo, CPU).

    Args:
        number: How many ranks.
        module: A module that calls :func:`write_down` with its first argument.
        folder: Where the ranks' files go.
        arguments: What follows the output.
        timeout: In seconds.
        environment: Further variables.

    Returns:
        What each rank has written down.
    """
    command = [str(Path(sys.executable).with_name("composer")), "-n", str(number)]
    command += ["--stdout", str(folder / "rank{rank}.out"), "--stderr", str(folder / "rank{rank}.err")]
    command += ["-m", module, str(folder / "found.json"), *arguments]
    env = {name: value for name, value in os.environ.items() if name not in _OF_ONE_PROCESS}
    env |= {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"} | environment
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=timeout)
    errors = "".join(file.read_text()[-3000:] for file in sorted(folder.glob("rank*.err")))
    assert done.returncode == 0, f"{done.stdout[-2000:]}\n{done.stderr[-2000:]}\n{errors}"
    return [json.loads((folder / f"found.rank{rank}").read_text()) for rank in range(number)]


def write_down(output: str, found: Any) -> None:
    """What this rank has found; called by the module that was started."""
    Path(output).with_suffix(f".rank{dist.get_global_rank()}").write_text(json.dumps(found))
