"""From a run's YAML and this machine to the facts that checks are made of."""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path
from typing import Any

from patch_algorithm.checks.data import LoaderFacts, TokenizerFacts
from patch_algorithm.checks.hardware import HardwareFacts
from patch_algorithm.checks.rate_curve import RunClock
from patch_algorithm.checks.rows import BatchFacts, RowFacts
from patch_algorithm.checks.saving import FolderFacts, IntervalFacts
from patch_algorithm.data.dataset.remote import is_url
from patch_algorithm.planning.data_on_disk import DataOnDisk
from patch_algorithm.planning.environment import can_write, gpus, is_installed
from patch_algorithm.planning.parameters import parameter_count
from patch_algorithm.planning.run_clock import steps_of
from patch_algorithm.planning.run_file import Loader, RunFile

__all__ = [
    "batch_facts",
    "folder_facts",
    "hardware_facts",
    "interval_facts",
    "loader_facts",
    "resizes_embedding",
    "row_facts",
    "tokenizer_facts",
]

_CHECKPOINT = re.compile(r"ep\d+-ba(\d+)")
_BYTES_PER_PARAMETER = 12  # weights and two moments, in fp32
_LOADERS_OF_SHARDS = ("text", "pile")
_TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "tokenizer.model", "vocab.json", "vocab.txt")


def row_facts(run: RunFile) -> RowFacts | None:
    """Rows of a run in patches; ``None`` without them, or where their length is not known."""
    if run.algorithm is None or run.T is None or not run.ks:
        return None
    reads_patches = run.algorithm.patch_inputs
    return RowFacts(
        T=run.T,
        L=run.L,
        K=max(run.ks) if reads_patches else 1,
        last_K=run.ks[-1] if reads_patches else 1,
        rehearsed=run.algorithm.rehearse_switch,
        key=f"{run.train_loader.dataset.key}.max_seq_len",
    )


def batch_facts(run: RunFile) -> BatchFacts:
    """Batches of a run, and the processes of the launcher that share them."""
    return BatchFacts(
        run.global_train_batch_size,
        run.device_train_microbatch_size,
        int(os.environ.get("WORLD_SIZE") or 1),
    )


def loader_facts(loader: Loader, is_train: bool, makes_data: bool) -> LoaderFacts:
    """A loader, and what is on disk for it.

    Args:
        loader: The loader.
        is_train: Whether the run trains on it.
        makes_data: Whether ``train.py`` makes the data first.
    """
    data = loader.dataset
    local = data.local is not None and (not data.remote or not is_url(data.remote))
    expected = local and not makes_data and loader.name in _LOADERS_OF_SHARDS
    return LoaderFacts(
        key=data.key,
        name=loader.name,
        is_train=is_train,
        asked=data.row_tokens,
        row_tokens=data.on_disk.row_tokens if data.on_disk else None,
        folder=data.on_disk.folder if data.on_disk else None,
        expected_in=os.path.join(data.remote or data.local or "", data.split or "") if expected else None,
        components=data.on_disk.components if data.on_disk else (),
        fault=data.fault,
        refusal=data.refusal,
    )


def tokenizer_facts(run: RunFile) -> TokenizerFacts | None:
    """The run's tokenizer and that of its data; ``None`` where the YAML names none."""
    from patch_algorithm.planning.known_names import registered

    name = run.tokenizer.name
    if name is None:
        return None
    on_disk = run.train_loader.dataset.on_disk
    written = on_disk.info.tokenizer if on_disk is not None and on_disk.info is not None else None
    is_folder = os.path.isdir(name)
    is_registered = name in registered("tokenizers")
    fault = None if is_registered else _fault(Path(name) / "tokenizer.json")
    compared = written is not None and not is_registered and fault is None
    return TokenizerFacts(
        name=name,
        is_registered=is_registered,
        folder_found=is_folder,
        files_found=is_folder and any((Path(name) / file).is_file() for file in _TOKENIZER_FILES),
        differences=_differences(name, on_disk) if compared else None,
        data_name=None if written is None else written.name,
        fault=fault,
    )


def _fault(file: Path) -> str | None:
    """Why a ``tokenizer.json`` cannot be read; ``None`` where it can, or there is none."""
    from tokenizers import Tokenizer

    if not os.path.isfile(file):
        return None
    try:
        Tokenizer.from_file(str(file))
    # A bare Exception is what the library raises.
    except Exception as error:
        return f"{file} cannot be read: {error}"
    return None


def _differences(name: str, data: DataOnDisk | None) -> tuple[str, ...] | None:
    """Between the data's tokenizer and one that is on this machine; ``None`` for others."""
    from transformers.models.auto.tokenization_auto import AutoTokenizer

    from patch_algorithm.data.loader.tokenizers import tokenizer_differences

    if data is None or data.info is None:
        return None
    try:
        tokenizer = AutoTokenizer.from_pretrained(name, local_files_only=True)
    # Not here, or not readable: that raises all kinds, down to Exception itself from the Rust side.
    except Exception:
        return None
    return tuple(tokenizer_differences(data.info, data.info_folder, tokenizer))


def resizes_embedding(run: RunFile) -> bool:
    """Whether the model's embedding is enlarged to the tokenizer's entries."""
    return run.model.name == "mpt_causal_lm" or bool(run.model.arguments.get("allow_embedding_resizing"))


def hardware_facts(run: RunFile, judge_cpu: bool) -> HardwareFacts:
    """What a run asks of the device, and what this machine has.

    Args:
        run: The run.
        judge_cpu: Whether the run is to start on this machine.
    """
    is_mpt = run.model.name == "mpt_causal_lm"
    loss = run.model.arguments.get("loss_fn", "fused_crossentropy")
    return HardwareFacts(
        has_gpu=bool(gpus()),
        judge_cpu=judge_cpu,
        flash_installed=is_installed("flash-attn"),
        flash_keys=_flash_of_mpt(run.model.arguments) if is_mpt else _flash_of_hf(run.model.arguments),
        is_mpt=is_mpt,
        fused_loss="model.loss_fn=fused_crossentropy" if is_mpt and loss == "fused_crossentropy" else None,
        fused_patch_loss=run.algorithm is not None and run.algorithm.loss_kernel == "triton",
        precision=run.precision,
        microbatch_auto=run.device_train_microbatch_size == "auto",
    )


def _flash_of_mpt(model: Any) -> tuple[str, ...]:
    attention = model.get("attn_config") or {}
    keys = []
    if attention.get("attn_impl", "flash") == "flash":
        default = "" if "attn_impl" in attention else ", the default"
        keys.append(f"model.attn_config.attn_impl=flash{default}")
    if attention.get("rope") and attention.get("rope_impl", "dail") == "dail":
        default = "" if "rope_impl" in attention else ", the default"
        keys.append(f"model.attn_config.rope_impl=dail{default}")
    return tuple(keys)


def _flash_of_hf(model: Any) -> tuple[str, ...]:
    if model.get("use_flash_attention_2"):
        return ("model.use_flash_attention_2=true",)
    if model.get("attn_implementation") == "flash_attention_2":
        return ("model.attn_implementation=flash_attention_2",)
    return ()


def interval_facts(run: RunFile, clock: RunClock | None) -> IntervalFacts:
    """When a run evaluates and saves, in steps."""
    has_evaluators = bool(run.eval_loaders or run.config.get("icl_tasks"))
    return IntervalFacts(
        switch=None if clock is None else clock.switch,
        evaluates=has_evaluators and run.eval_interval is not None,
        eval_every=steps_of(run.eval_interval, clock),
        eval_at_switch=run.algorithm is None or run.algorithm.eval_at_switch,
        saves=run.save_folder is not None and run.save_interval is not None,
        save_every=steps_of(run.save_interval, clock),
        save_at_switch=run.algorithm is None or run.algorithm.checkpoint_at_switch,
    )


def folder_facts(run: RunFile, clock: RunClock | None) -> FolderFacts | None:
    """The folder of the checkpoints; ``None`` where there is none, or it is not on this machine."""
    if run.save_folder is None or is_url(run.save_folder):
        return None
    named = "{run_name}" not in run.save_folder or run.run_name is not None
    folder = Path(run.save_folder.replace("{run_name}", run.run_name or "new-run"))
    writable = can_write(folder)
    parameters = parameter_count(run.model)
    return FolderFacts(
        folder=run.save_folder,
        holds_checkpoints=_later_checkpoints(folder, _first_step(run)) if named else 0,
        resumes=run.autoresume or run.save_overwrite,
        writable=writable,
        free_bytes=_free(folder) if writable else None,
        checkpoint_bytes=None if parameters is None else parameters * _BYTES_PER_PARAMETER,
        kept=_kept(run, clock),
    )


def _first_step(run: RunFile) -> int | None:
    """The step that a run starts at, by the name of the checkpoint it loads; ``None`` if not told."""
    path = run.config.get("load_path")
    if not path or run.config.get("load_weights_only"):  # weights alone leave the run's clock at zero
        return 0
    path = str(path).replace("{rank}", "0").replace("{run_name}", run.run_name or "")
    # `latest-rank0.pt` is a link to the checkpoint.
    steps = _CHECKPOINT.findall(path if is_url(path) else os.path.realpath(path))
    return int(steps[-1]) if steps else None


def _later_checkpoints(folder: Path, step: int | None) -> int:
    """Checkpoints after a step, for which alone Composer refuses a folder."""
    if step is None:
        return 0
    try:
        names = [_CHECKPOINT.match(name) for name in os.listdir(folder)]
    except OSError:  # not there, or not to be read
        return 0
    return sum(name is not None and int(name[1]) > step for name in names)


def _free(folder: Path) -> int:
    while not os.path.exists(folder):
        folder = folder.parent
    return shutil.disk_usage(folder).free


def _kept(run: RunFile, clock: RunClock | None) -> int | None:
    """Checkpoints at the end of the run: those of the interval, at the switch and at the end."""
    every, end = steps_of(run.save_interval, clock), None if clock is None else clock.end
    if clock is None or not every or not end:
        return None
    saved = {*range(every, end + 1, every), end}
    at_switch = run.algorithm is not None and run.algorithm.checkpoint_at_switch
    if clock.switch and clock.switch < end and at_switch:
        saved.add(clock.switch)
    return (
        len(saved)
        if run.save_num_checkpoints_to_keep < 0
        else min(run.save_num_checkpoints_to_keep, len(saved))
    )
