"""Results: as they are written, read again and shown. Reading them needs the standard library alone."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from patch_algorithm.common.tables import table
from patch_algorithm.evaluation.paper import PaperRow, paper_row

__all__ = ["FORMAT", "KIND", "Number", "as_result", "numbers", "read_result", "result_text"]

KIND = "patch-level eval"
"""What tells a result from other JSON."""
FORMAT = 1
_MEASURES = ("loss", "token_perplexity", "word_perplexity", "bits_per_byte")


class Number(NamedTuple):
    """One number of a result.

    Attributes:
        name: The task or the component; ``rows`` or ``documents`` of a text.
        measure: Such as ``bits per byte`` or ``acc_norm``.
        value: The number.
        error: Its standard error; ``None`` where there is none.
        papers: What the paper reports for a model of this size, with tokens only and with patches; ``None``
            where it reports nothing of the kind.
    """

    name: str
    measure: str
    value: float
    error: float | None
    papers: tuple[float, float] | None


def read_result(path: str) -> dict[str, Any]:
    """Reads what ``patch-level eval --out`` has written.

    Raises:
        ValueError: If it is anything else.
    """
    try:
        content = json.loads(Path(path).read_text("utf-8"))
    except FileNotFoundError as error:
        raise ValueError(
            f"There is no result {path}; expected what `patch-level eval --out` wrote."
        ) from error
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} is not JSON ({error}).") from error
    found = as_result(content, path)
    if found is None:
        raise ValueError(f"{path} is not a result of `patch-level eval --out`.")
    return found


def as_result(content: object, path: str) -> dict[str, Any] | None:
    """What a JSON file holds, if it is a result.

    Raises:
        ValueError: If it is one of another version.
    """
    if not isinstance(content, dict) or content.get("kind") != KIND:
        return None
    if content.get("format") != FORMAT or not isinstance(content.get("measures"), list):
        raise ValueError(f"{path} has format {content.get('format')!r}; this version reads format {FORMAT}.")
    return content


def result_text(result: Mapping[str, Any]) -> str:
    """A result as lines for a terminal."""
    model, data = result["model"], result["data"]
    how = (
        f"contexts of at most {result['seq_len']:,} tokens"
        if result.get("tasks")
        else f"windows of {result['seq_len']:,} tokens, stride {result['stride']:,}"
    )
    lines = [
        f"{model['path']}: {model['parameters']:,} parameters"
        + (f"; {t}" if (t := model["training"]) else ""),
        f"{data['path']}, preset {result['preset']}: {how}",
        "",
    ]
    rows = _task_rows(result) if result.get("tasks") else _measure_rows(result)
    return "\n".join([*lines, *table(rows), *(f"\n{note}" for note in result["notes"])])


def _measure_rows(result: Mapping[str, Any]) -> list[tuple[str, ...]]:
    rows = [("", "loss", "token perplexity", "word perplexity", "bits per byte", "scored tokens")]
    return rows + [
        (
            one["name"],
            f"{one['loss']:.4f}",
            f"{one['token_perplexity']:.4g}",
            "–" if one["word_perplexity"] is None else f"{one['word_perplexity']:.4g}",
            f"{one['bits_per_byte']:.4f}",
            f"{one['scored_tokens']:,}",
        )
        for one in result["measures"]
    ]


def _task_rows(result: Mapping[str, Any]) -> list[tuple[str, ...]]:
    row = paper_row(result["model"]["parameters"])
    header = ["", "measure", "value", "error", "items"]
    if row is not None:
        header += [f"paper's {row.name}, tokens", "patches"]
    rows = [tuple(header)]
    for one in result["tasks"]:
        cells = [
            one["task"],
            one["measure"],
            f"{one['value']:.4g}",
            "–" if one["error"] is None else f"{one['error']:.2g}",
            f"{one['items']:,}",
        ]
        if row is not None:
            known = _of_task(row, one, result["tasks"])
            cells += ["–", "–"] if known is None else [f"{value:.3f}" for value in known]
        rows.append(tuple(cells))
    return rows


def numbers(result: Mapping[str, Any]) -> list[Number]:
    """All numbers of a result: of each text and component, of each task."""
    row = paper_row(result["model"]["parameters"])
    found = []
    for one in result["measures"]:
        for measure in _MEASURES:
            if one[measure] is None:
                continue
            # WikiText-103 in rows of the context is what the paper's perplexity is taken to be.
            is_papers = (result["preset"], one["name"], measure) == ("paper", "rows", "token_perplexity")
            papers = (row.tokens_only, row.patches) if row is not None and is_papers else None
            found.append(Number(one["name"], measure.replace("_", " "), one[measure], None, papers))
    scores = result.get("tasks", ())
    for one in scores:
        papers = None if row is None else _of_task(row, one, scores)
        found.append(Number(one["task"], one["measure"], one["value"], one["error"], papers))
    return found


def _of_task(
    row: PaperRow, score: Mapping[str, Any], scores: Sequence[Mapping[str, Any]]
) -> tuple[float, float] | None:
    """The paper's accuracies; it reports one of a task: the normalised one where there are two."""
    measures = {one["measure"] for one in scores if one["task"] == score["task"]}
    known = row.tasks.get(score["task"])
    if known is None or score["measure"] != ("acc_norm" if "acc_norm" in measures else "acc"):
        return None
    return known[0] / 100, known[1] / 100
