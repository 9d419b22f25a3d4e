"""Small runs through both stages that save checkpoints and export, and the command that checks them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from typer.testing import CliRunner, Result

from patch_algorithm.cli import app
from tests.runs.families import CONTEXT, family
from tests.support import config, mpt, train

MPT = {
    # transformers' own MPT takes no other ratio: with another one, a misreading would be an error.
    "mpt": {"expansion_ratio": 4},
    "mpt-of-2023": {
        "expansion_ratio": 4,
        "no_bias": True,
        "attn_config": {"rope": False, "alibi": True},
    },
}


def run_config(name: str, corpus: Path, folder: Path, precision: str = "float32", **changes: Any) -> dict:
    """A run of 3 patch steps and 1 token step, which saves and exports after steps 2 and 4."""
    model = mpt(**MPT[name]) if name in MPT else family(name, folder / "config")
    exporter = {"save_folder": str(folder), "save_interval": "2ba", "precision": precision}
    cfg = config(
        corpus,
        model,
        algorithms={"patch_level": {"k": 4, "ratio": "3ba"}},
        callbacks={"hf_checkpointer": exporter},
        max_duration="4ba",
        save_folder=str(folder),
        save_interval="2ba",
        **changes,
    )
    cfg["tokenizer"]["kwargs"]["model_max_length"] = CONTEXT
    return cfg


def make_run(name: str, corpus: Path, folder: Path, precision: str = "float32") -> Path:
    """Trains, and returns the folder of the run."""
    train(run_config(name, corpus, folder, precision)).close()
    return folder


def export_of(run: Path, batch: int = 4) -> Path:
    return run / "huggingface" / f"ba{batch}"


def checkpoint_of(run: Path, batch: int = 4) -> Path:
    return run / f"ep0-ba{batch}-rank0.pt"


def check(*arguments: object) -> Result:
    return CliRunner().invoke(app, ["check-export", *map(str, arguments), "--trust-remote-code"])


def found(result: Result) -> dict[str, Any]:
    """What ``--json`` printed, with the findings' ids by severity."""
    assert result.exit_code in (0, 1), result.stderr
    content = json.loads(result.stdout)
    ids: dict[str, list[str]] = {}
    for one in content["findings"]:
        ids.setdefault(one["severity"], []).append(one["id"])
    return content | {"ids": ids}


def contents(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and "__pycache__" not in path.parts
    }
