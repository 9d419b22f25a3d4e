"""Turns a stock llm-foundry configuration into one for patch-level training.

Letters: k tokens per patch, L the model's context in positions, T raw tokens in a training row.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from composer.core import Time, TimeUnit
from omegaconf import DictConfig, OmegaConf

from patch_algorithm.checks.learning_rate import check_weight_decay
from patch_algorithm.common.arguments import is_number, is_whole, whole_number
from patch_algorithm.data.dataset.description import DatasetInfo
from patch_algorithm.data.dataset.remote import is_url
from patch_algorithm.planning.data_on_disk import id_count
from patch_algorithm.planning.run_file import RunFile
from patch_algorithm.planning.yaml_edits import Document
from patch_algorithm.stages.boundaries import parse_boundary

__all__ = ["InitOptions", "rewrite"]

_TRAIN = ("train_loader", "dataset")
_ONE_SCHEDULE = ("warmup_stable_decay", "per_stage")
_LARGEST_WARMUP = 0.25
_VOCABULARY_MULTIPLE = 128


@dataclass(frozen=True)
class InitOptions:
    """What is asked for.

    Attributes:
        k: Tokens per patch; ``None`` for the file's, or 4.
        ratio: The share of the run that is trained in patches; ``None`` for the file's, or 2/3.
        data: The folder or URL of a converted dataset; ``None`` to keep the data of the stock file.
        per_stage: Whether each stage gets the stock file's schedule, and the optimizer is reset between them,
            as in the paper; otherwise one warm-up, plateau and decay.
    """

    k: int | None = None
    ratio: str | None = None
    data: str | None = None
    per_stage: bool = False


def rewrite(text: str, options: InitOptions) -> Document:
    """Changes a stock configuration.

    Args:
        text: The YAML of an llm-foundry pre-training run.
        options: What is asked for.

    Returns:
        The changed YAML, with a reason for every change.

    Raises:
        ValueError: If it is not such a run, or cannot be made into a good one.
    """
    document = Document(text)
    cfg = OmegaConf.create(text)
    if not isinstance(cfg, DictConfig):
        raise ValueError("the YAML is not a mapping of keys to values.")
    run = RunFile.from_config(cfg)
    k, ratio = _two_lines(run, options)
    L, T_before = _lengths(run)
    info = None if options.data is None else DatasetInfo.read(options.data)
    T = k * L if info is None else _row_tokens(info, str(options.data))
    _variables(document, run)
    _algorithm(document, run, options.per_stage, k, ratio, L)
    _rows(document, options.data, info, k, L, T)
    _batch(document, run, T_before, T)
    _schedule(document, run, options.per_stage, ratio)
    _optimizer(document, run)
    _vocabulary(document, run, info, str(options.data))
    document.set(
        ("loggers", "history"),
        {},
        "every metric over steps, raw tokens, FLOPs and seconds",
        before="callbacks",
    )
    return document


def _two_lines(run: RunFile, options: InitOptions) -> tuple[int, float | str]:
    """Patch size and ratio: what is asked for, else what a file that has `patch_level` already says."""
    given: dict[str, Any] = {"k": 4, "ratio": "2/3"}
    if run.algorithm is not None:
        written = run.config["algorithms"]["patch_level"] or {}
        if more := sorted(set(written) - set(given)):
            raise ValueError(
                f"the file already has algorithms.patch_level, with {', '.join(more)} as well as k and "
                "ratio. Check it with `patch-level doctor`, or remove it first."
            )
        given |= written
    k = whole_number("--k", given["k"] if options.k is None else options.k, 2)
    ratio = given["ratio"] if options.ratio is None else _ratio(options.ratio)
    parse_boundary(ratio, "--ratio")
    return k, ratio


def _ratio(given: str) -> float | str:
    """What the command line gives as the YAML has it: a plain number is no string."""
    try:
        return float(given)
    except ValueError:
        return given


def _variables(document: Document, run: RunFile) -> None:
    """Moves keys of the file's own below ``variables``."""
    from patch_algorithm.planning.known_names import TOP_LEVEL

    for key in [key for key in run.config if key not in TOP_LEVEL]:
        value, why = document.get((key,)), "keys of your own belong under variables"
        document.remove((key,), why)
        document.set(("variables", key), value, why, before="max_seq_len")
        document.replace_text(f"${{{key}}}", f"${{variables.{key}}}", "it has moved to variables")


def _lengths(run: RunFile) -> tuple[int, int]:
    """The model's context, and the rows as they are."""
    if run.train_loader.name not in ("text", "pile"):
        raise ValueError(
            f"train_loader.name is {run.train_loader.name!r}; expected text or pile, the loaders of "
            "pre-training data."
        )
    if run.T is None:
        raise ValueError("train_loader.dataset.max_seq_len is missing: the length of the rows.")
    stated = run.config.get("max_seq_len")
    L = run.model.context or (stated if is_whole(stated) else run.T)
    return L, run.T


def _row_tokens(info: DatasetInfo, folder: str) -> int:
    if "train" not in info.row_tokens:
        raise ValueError(f"--data {folder} has no split 'train'; it has {', '.join(info.row_tokens)}.")
    return info.row_tokens["train"]


def _algorithm(document: Document, run: RunFile, per_stage: bool, k: int, ratio: float | str, L: int) -> None:
    section = ("algorithms", "patch_level")
    follows = run.config.get("max_seq_len") == L
    document.set((*section, "k"), k, "tokens per patch", before="max_duration")
    document.set((*section, "ratio"), ratio, "share of max_duration that is trained in patches")
    document.set(
        (*section, "seq_len"),
        "${max_seq_len}" if follows else L,
        "the model's context L; in the token stage longer rows are cut to it",
    )
    if per_stage:
        document.set((*section, "on_switch"), "reset", "as in the paper, with a warm-up in each stage")


def _rows(document: Document, data: str | None, info: DatasetInfo | None, k: int, L: int, T: int) -> None:
    why = f"rows of k * L = {k} * {L} tokens, so that positions stay {L} in both stages"
    document.set(
        (*_TRAIN, "max_seq_len"),
        T,
        why if info is None or T == k * L else "the length of the data's rows",
    )
    if info is None:
        return
    _data(document, str(data), info)


def _data(document: Document, data: str, info: DatasetInfo) -> None:
    """Lets the loaders read a converted dataset, with the tokenizer that it was written with."""
    place, other = ("remote", "local") if is_url(data) else ("local", "remote")
    loaders = [("train_loader", "train")]
    if isinstance(evals := document.get(("eval_loader",)), list):
        raise ValueError(
            f"eval_loader is a list of {len(evals)}, which would go on reading the data of the stock file, "
            "written with another tokenizer. Before --data, leave one mapping or none; add the others "
            "afterwards, on data of the same tokenizer."
        )
    if isinstance(evals, dict):
        loaders.append(("eval_loader", "val" if "val" in info.row_tokens else "train"))
    for loader, split in loaders:
        document.set((loader, "name"), "pile", "checks rows and tokenizer before the first step")
        document.set((loader, "dataset", place), data, "the converted dataset")
        document.remove((loader, "dataset", other), f"the data is in {place}")
        document.set((loader, "dataset", "split"), split, "a split of this dataset")
        if loader == "eval_loader" and split == "train":
            document.set((loader, "dataset", "long_rows"), "cut", "the rows of train are longer")
        document.remove((loader, "dataset", "tokenizer_name"), "not a key of this loader")
    own = os.path.join(data, "tokenizer")
    document.set(
        ("tokenizer", "name"),
        own if os.path.isdir(own) else info.tokenizer.name,
        "the tokenizer that the data was written with",
    )


def _batch(document: Document, run: RunFile, T_before: int, T: int) -> None:
    rows, micro = run.global_train_batch_size, run.device_train_microbatch_size
    if rows is None:
        raise ValueError("global_train_batch_size is missing.")
    fewer = max(1, round(rows * T_before / T))
    exactly = fewer * T == rows * T_before
    document.set(
        ("global_train_batch_size",),
        fewer,
        f"rows are {T / T_before:.3g} times as long, so a step keeps its {'' if exactly else 'about '}"
        f"{rows * T_before:,} tokens",
    )
    if is_number(micro) and micro > fewer:
        document.set(("device_train_microbatch_size",), fewer, "not more rows than a batch has")
    elif micro == "auto" and run.precision == "fp32":
        document.set(
            ("device_train_microbatch_size",), min(fewer, 8), "auto works only on GPUs; fp32 suggests a CPU"
        )
    length = run.max_duration
    if length is not None and length.unit == TimeUnit.SAMPLE and T != T_before:
        shorter = max(1, round(length.value * T_before / T))
        document.set(("max_duration",), f"{shorter}sp", "the same tokens in longer rows")


def _schedule(document: Document, run: RunFile, per_stage: bool, ratio: float | str) -> None:
    name, arguments = run.scheduler.name, dict(run.scheduler.arguments)
    if name is None or name in _ONE_SCHEDULE:
        return
    if per_stage:
        document.set(("scheduler", "name"), "per_stage", "a schedule for each stage, as in the paper")
        for key, value in {"name": name, **arguments}.items():
            document.set(("scheduler", "scheduler", key), value, "of each stage")
        for key in arguments:
            document.remove(("scheduler", key), "moves below scheduler.scheduler")
        return
    document.set(("scheduler", "name"), "warmup_stable_decay", "the rate stays up over the switch")
    for key in arguments:
        if key not in ("t_warmup", "alpha_f"):
            document.remove(("scheduler", key), "not a key of this scheduler")
    if not _warmup_fits(arguments.get("t_warmup"), run.max_duration):
        document.set(
            ("scheduler", "t_warmup"), "0.05dur", "a twentieth of the run; the old value did not fit"
        )
    document.set(("scheduler", "t_decay"), _decay(ratio), "decay at the end, within the token stage")


def _warmup_fits(t_warmup: Any, length: Time[Any] | None) -> bool:
    try:
        time = Time.from_timestring(t_warmup) if isinstance(t_warmup, str) else None
    except (ValueError, TypeError):
        return False
    if time is None or time.value <= 0:
        return False
    if time.unit == TimeUnit.DURATION:
        return time.value <= _LARGEST_WARMUP
    return length is None or time.unit != length.unit or time.value <= _LARGEST_WARMUP * length.value


def _decay(ratio: float | str) -> str:
    """A tenth of the run, or half the token stage where that is shorter."""
    end = parse_boundary(ratio)
    token_stage = 1 - float(end) if isinstance(end, float | Fraction) else 1.0
    return f"{min(0.1, max(round(token_stage / 2, 3), 0.001)):g}dur"


def _optimizer(document: Document, run: RunFile) -> None:
    decay, lr = (run.optimizer.arguments.get(name) for name in ("weight_decay", "lr"))
    if not is_number(decay) or not is_number(lr):
        return
    if check_weight_decay(run.optimizer.name or "", decay, lr):
        document.set(
            ("optimizer", "weight_decay"),
            decay * lr,
            "this optimizer does not multiply it by lr; equivalent to adamw's",
        )


def _vocabulary(document: Document, run: RunFile, info: DatasetInfo | None, folder: str) -> None:
    entries = run.model.vocab_size
    if info is None or entries is None or entries >= (ids := id_count(info, folder)):
        return
    needed = -(-ids // _VOCABULARY_MULTIPLE) * _VOCABULARY_MULTIPLE
    path = ("model", "config_overrides", "vocab_size") if run.model.hf_config else ("model", "vocab_size")
    document.set(path, needed, f"the ids of the data's tokenizer need {ids:,} entries")
