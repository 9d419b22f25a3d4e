"""Prepares the data that a YAML asks for, then trains with llm-foundry.

usage: composer -m patch_algorithm.train CONFIG.yaml [key=value ...]
       torchrun ... -m patch_algorithm.train CONFIG.yaml [key=value ...]
       patch-level train CONFIG.yaml [key=value ...]            (one process, without a launcher)

In a clone of the repository, `train.py` is the same: composer train.py CONFIG.yaml [key=value ...]

CONFIG.yaml is an llm-foundry training configuration; key=value overrides any of its keys, dotted:
    composer -m patch_algorithm.train run.yaml max_duration=1200ba algorithms.patch_level.k=2

With llm-foundry's own keys it does what llm-foundry's train.py does. The configuration is checked first,
as with `patch-level doctor --here`: an error stops the run before anything is built, with exit code 2.
If it asks for the built-in corpus (variables.builtin_corpus), the corpus is prepared first, and reused
later. If a finished run is started again with autoresume, the command says so and exits with 0.
"""

from __future__ import annotations

import logging
import os
import shlex
import sys
import warnings
from typing import Any

__all__ = ["main"]

# Known to be harmless, and nothing a user of this script could act on. One line each, so that
# whatever is new still shows.
_HARMLESS_WARNINGS = (
    "pkg_resources is deprecated",  # llm-foundry's import
    "To copy construct from a tensor",  # Composer, on every step's loss
    "alibi or rope is turned on",  # llm-foundry, whatever learned_pos_emb is
    "InverseSquareRootWithWarmupScheduler is experimental",  # llm-foundry's only plateau with a decay
    "Cannot split (tensor|list) of length",  # Composer, on a last evaluation batch that is smaller
    "The `use_auth_token` argument is deprecated",  # llm-foundry calling transformers
)


_NOTHING_LEFT = "No training would occur"
"""In Composer's error where a run is resumed at or after its ``max_duration``."""


def main(args: list[str], command: str = "patch_algorithm.train") -> int:
    """Trains; called by ``composer train.py``, ``composer -m patch_algorithm.train`` and the CLI.

    Args:
        args: The configuration's path and the overrides.
        command: What was called, for messages.

    Returns:
        The exit status: 0, 1 for a failed run, 2 for a bad configuration.
    """
    if not args or args[0] in ("-h", "--help"):
        (sys.stdout if args else sys.stderr).write(f"{__doc__}")
        return 0 if args else 2
    _settle_process()
    from patch_algorithm.checks.shown import already_shown
    from patch_algorithm.preflight import check_start, prepare, read_config

    try:
        cfg = read_config(args[0], args[1:])
        findings, known_ids = check_start(cfg, args[0])
        if _show(findings, args, command):
            return 2
        prepare(cfg)
    except (ValueError, OSError) as error:
        return _complain(error, 2, command)
    from llmfoundry.command_utils import train_from_yaml

    from patch_algorithm.monitoring.stage_report import StageReportError

    _announce_idle_gpus(command)
    try:
        with already_shown(known_ids):
            train_from_yaml(args[0], args[1:])
    except StageReportError as error:
        return _complain(error, 1, command)
    except ValueError as error:
        if _NOTHING_LEFT in str(error):
            return _nothing_left(cfg, error, command)
        from patch_algorithm.common.command_line import anchor_of

        if anchor_of(error) is None:
            raise
        return _complain(error, 2, command)
    return 0


def _settle_process() -> None:
    """Sets what has to be set before torch and llm-foundry are imported."""
    for message in _HARMLESS_WARNINGS:
        warnings.filterwarnings("ignore", message=message)
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    # torchrun has another name for the rank of a node than Composer.
    if "GROUP_RANK" in os.environ:
        os.environ.setdefault("NODE_RANK", os.environ["GROUP_RANK"])
    from patch_algorithm.common.machine import usable_cores

    # The launcher leaves this unset, and every process would then start a thread for every core.
    ranks = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, usable_cores() // ranks)))
    # Threads that spin while they wait cost several times the run where anything else uses the cores.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    logging.getLogger("patch_algorithm").setLevel(logging.INFO)


def _show(findings: list[Any], args: list[str], command: str) -> bool:
    """Shows what the checks have found, once; returns whether the run must not start."""
    from patch_algorithm.checks import Severity
    from patch_algorithm.checks.rendering import as_block
    from patch_algorithm.common.redaction import redact

    fatal = any(one.severity is Severity.error for one in findings)
    # What is wrong with one machine may be right on another: errors are shown by each.
    shows = os.environ.get("LOCAL_RANK" if fatal else "RANK", "0") == "0"
    block = as_block(findings, f"{command}: {args[0]}")
    if block and shows:
        sys.stdout.flush()
        advice = "why" if not fatal else "why; nothing was built"
        # With the same overrides: without them the file may be another run.
        run = redact(shlex.join(args))
        sys.stderr.write(f"{block}\n  `patch-level doctor --here {run}` says {advice}.\n")
    return fatal


def _announce_idle_gpus(command: str) -> None:
    import torch

    devices = torch.cuda.device_count()
    if devices > 1 and "WORLD_SIZE" not in os.environ:
        sys.stderr.write(
            f"{command}: one process, so one of this machine's {devices} GPUs. To train on all of them: "
            "composer -m patch_algorithm.train RUN.yaml\n"
        )


def _nothing_left(cfg: Any, error: ValueError, command: str) -> int:
    """Says so. A run queued again after its end has not failed; one loaded by hand was meant to go on."""
    if not cfg.get("autoresume"):
        return _complain(error, 2, command)
    from patch_algorithm.common.announce import announce

    announce(
        f"{command}: this run has already finished: the latest checkpoint in {cfg.get('save_folder')} is at "
        f"its max_duration of {cfg.max_duration}. To continue training, raise max_duration; for a new run, "
        "change run_name."
    )
    return 0


def _complain(error: Exception, status: int, command: str) -> int:
    from patch_algorithm.common.command_line import complaint

    sys.stdout.flush()
    sys.stderr.write(f"{complaint(command, error)}\n")
    return status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
