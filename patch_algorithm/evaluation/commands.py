"""The command ``patch-level eval``."""

from __future__ import annotations

import difflib
import json
from pathlib import Path
from typing import Annotated

import typer

from patch_algorithm.common.command_line import errors_as_exit_codes, examples
from patch_algorithm.common.options import MODEL, OUTPUT, AsJson, TrustRemoteCode

__all__ = ["add_eval"]

_PRESETS = ("paper", "pile", "zero-shot")
_TEXT, _TASKS = "The text", "Zero-shot tasks"


def add_eval(app: typer.Typer) -> None:
    """Adds the command to ``patch-level``."""
    app.command(
        "eval",
        rich_help_panel="After a run",
        no_args_is_help=True,
        epilog=examples(
            "patch-level eval runs/my-run/huggingface/ba450 --data wikitext103-test.jsonl",
            "patch-level eval runs/my-run/latest-rank0.pt --preset pile --data ./pile-mds --out mine.json",
            "patch-level eval runs/my-run/huggingface/ba450 --preset zero-shot --data ./zero-shot",
            "patch-level eval --compare twin.json mine.json",
            codes=("0 evaluated", "2 bad input; nothing is written", "130 interrupted"),
        ),
    )(evaluate)


def evaluate(
    model: Annotated[
        str | None,
        typer.Argument(
            metavar="[CHECKPOINT|EXPORT]",
            help="An exported folder, or a Composer checkpoint, full or sharded.",
            show_default=False,
        ),
    ] = None,
    data: Annotated[
        str | None,
        typer.Option(
            metavar="FILE|DIR",
            help="Text (.txt, .jsonl, .parquet) for paper; a converted dataset for pile; for zero-shot a "
            "folder with piqa.jsonl and others.",
            rich_help_panel=_TEXT,
        ),
    ] = None,
    preset: Annotated[
        str,
        typer.Option(
            help="paper: perplexity of text. pile: loss and bits per byte of each component. zero-shot: "
            "accuracy by lm-evaluation-harness.",
            rich_help_panel=_TEXT,
        ),
    ] = "paper",
    seq_len: Annotated[
        int | None,
        typer.Option(help="Tokens of a window. [default: the model's context]", rich_help_panel=_TEXT),
    ] = None,
    stride: Annotated[
        int | None,
        typer.Option(help="Tokens from one window to the next. [default: a window]", rich_help_panel=_TEXT),
    ] = None,
    split: Annotated[
        str, typer.Option(help="The split of a converted dataset.", rich_help_panel=_TEXT)
    ] = "val",
    tasks: Annotated[
        str | None,
        typer.Option(
            metavar="A,B",
            help="Tasks, such as piqa,arc_easy. [default: all that --data has]",
            rich_help_panel=_TASKS,
        ),
    ] = None,
    limit: Annotated[
        int | None,
        typer.Option(min=1, help="Score only the first items of each task.", rich_help_panel=_TASKS),
    ] = None,
    batch: Annotated[int, typer.Option(min=1, help="Windows at once.", rich_help_panel=MODEL)] = 4,
    trust_remote_code: TrustRemoteCode = False,
    compare: Annotated[
        tuple[str, str] | None,
        typer.Option(
            metavar="A B",
            help="Compare two results that --out wrote, with bootstrap errors.",
            rich_help_panel=OUTPUT,
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Write the result as JSON to a new file.", rich_help_panel=OUTPUT),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Measure a trained model: perplexity and bits per byte of text, or accuracy in zero-shot tasks.

    Or compare two results. Runs on a GPU if there is one.
    """
    with errors_as_exit_codes("eval"):
        if compare is not None:
            if model is not None or data is not None or out is not None:
                raise ValueError("--compare takes two results, without a model, --data or --out.")
            _compare(*compare, as_json)
            return
        _check(model, data, preset, out)
        _check_options(preset, tasks, limit, stride)
        # Imported here: the help text shall not wait for transformers.
        from transformers.utils import logging

        from patch_algorithm.common.files import write_atomically
        from patch_algorithm.evaluation.evaluate import evaluate as run
        from patch_algorithm.evaluation.results import result_text

        logging.set_verbosity_error()  # advice to the authors of models
        result = run(
            model or "", data or "", preset, names=_names(tasks), limit=limit,
            seq_len=seq_len, stride=stride, split=split, batch=batch, trust_remote_code=trust_remote_code,
        )  # fmt: skip
        content = json.dumps(result, ensure_ascii=False)
        if out is not None:
            write_atomically(out, content + "\n")
        typer.echo(content if as_json else result_text(result))


def _check(model: str | None, data: str | None, preset: str, out: Path | None) -> None:
    if preset not in _PRESETS:
        near = difflib.get_close_matches(preset, _PRESETS, 1)
        meant = f" Did you mean {near[0]!r}?" if near else ""
        raise ValueError(f"There is no preset {preset!r}; there are {', '.join(_PRESETS)}.{meant}")
    if model is None or data is None:
        raise ValueError("Expected a checkpoint or an export, and --data with the text to measure it on.")
    if out is not None and out.exists():
        raise ValueError(f"--out {out} exists, and is not overwritten. Give another file.")
    if out is not None and not out.absolute().parent.is_dir():
        raise ValueError(f"--out {out}: there is no folder {out.parent}.")


def _check_options(preset: str, tasks: str | None, limit: int | None, stride: int | None) -> None:
    zero_shot = preset == "zero-shot"
    given = [name for name, value in (("--tasks", tasks), ("--limit", limit)) if value is not None]
    if given and not zero_shot:
        raise ValueError(f"{' and '.join(given)} are for --preset zero-shot.")
    if zero_shot and stride is not None:
        raise ValueError("--stride does not apply to --preset zero-shot, which reads each text by itself.")


def _names(tasks: str | None) -> list[str]:
    return [name.strip() for name in (tasks or "").split(",") if name.strip()]


def _compare(first: str, second: str, as_json: bool) -> None:
    from patch_algorithm.evaluation.comparison import compare, differences_text
    from patch_algorithm.evaluation.results import read_result

    one = read_result(first)
    found = compare(one, read_result(second))
    if as_json:
        typer.echo(json.dumps([difference._asdict() for difference in found], indent=2))
    else:
        typer.echo(differences_text(first, second, one["preset"], found))
