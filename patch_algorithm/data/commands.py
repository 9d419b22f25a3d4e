"""The commands ``patch-level data ...``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from patch_algorithm.common.command_line import errors_as_exit_codes, examples

__all__ = ["app"]

app = typer.Typer(
    help="Convert text to rows of tokens, and inspect the result.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)


@app.command(
    no_args_is_help=True,
    epilog=examples(
        "patch-level data convert --source pile/train --tokenizer EleutherAI/gpt-neox-20b --out ./pile-mds",
        "patch-level data convert --source a.jsonl.zst --tokenizer ./tokenizer --out s3://bucket/a --dry-run",
        codes=("0 converted", "2 bad input", "130 interrupted; repeat the command to continue"),
    ),
)
def convert(
    source: Annotated[
        list[str],
        typer.Option(
            metavar="SRC",
            help="Files (.jsonl, .ndjson or .json, also with .gz, .zst, .xz or .bz2, and .parquet), a folder "
            "or a pattern of them, a Hugging Face dataset OWNER/NAME or hf://NAME_OR_FOLDER, or `builtin`. "
            "val=SRC and test=SRC put all of it into that split. May be given several times.",
        ),
    ],
    tokenizer: Annotated[str, typer.Option(metavar="NAME_OR_DIR", help="The tokenizer.")],
    out: Annotated[str, typer.Option(metavar="DIR_OR_URL", help="Output folder or URL.")],
    more: Annotated[
        list[str] | None,
        typer.Argument(metavar="[SRC]...", help="More sources, for example from an unquoted glob."),
    ] = None,
    row_tokens: Annotated[
        int, typer.Option(min=2, help="Tokens in a training row: a multiple of k * context.")
    ] = 8192,
    val_fraction: Annotated[
        float, typer.Option(help="Share of the documents held out as the split `val`, by their hash.")
    ] = 0.0,
    val_row_tokens: Annotated[
        int, typer.Option(min=2, help="Tokens in a row of the splits `val` and `test`: the model's context.")
    ] = 2048,
    split_by_component: Annotated[
        bool, typer.Option("--split-by-component", help="A stream for each component.")
    ] = False,
    workers: Annotated[
        int | None, typer.Option(min=0, help="Worker processes; 0 uses none. Default: one per core.")
    ] = None,
    on_error: Annotated[
        Literal["stop", "skip"], typer.Option(help="At a bad document: stop, or skip and count it.")
    ] = "stop",
    text_field: Annotated[
        str, typer.Option(help="The field, or column, that holds the text; a dot leads into an object.")
    ] = "text",
    component_field: Annotated[
        str | None,
        typer.Option(
            help="The field, or column, that names a document's component. By default meta.pile_set_name, "
            "meta.redpajama_set_name or source."
        ),
    ] = None,
    splits: Annotated[
        Literal["by-name", "all-train"] | None,
        typer.Option(
            help="Files named for validation or test: `by-name` puts them into their own splits, `all-train` "
            "trains on them. Default: `by-name` if there are files named for training; if not, such names "
            "are an error."
        ),
    ] = None,
    eos: Annotated[bool, typer.Option(help="End every document with the EOS token.")] = True,
    bos: Annotated[bool, typer.Option(help="Begin every document with the BOS token.")] = False,
    special_tokens: Annotated[
        Literal["text", "allow"],
        typer.Option(help="How `<|endoftext|>` in a text is read: as text, or as the token."),
    ] = "text",
    encoder: Annotated[
        Literal["auto", "tokenizers", "fast"],
        typer.Option(
            help="The library that makes the token ids: `tokenizers`, or `fast` (fastokens, checked against "
            "tokenizers). The ids are the same. `auto` is `fast` if that is installed and agrees."
        ),
    ] = "auto",
    compression: Annotated[Literal["zstd"] | None, typer.Option(help="Compress the shards.")] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Estimate from a sample; write nothing.")
    ] = False,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace a finished dataset, or other unfinished work.")
    ] = False,
    engine: Annotated[
        Literal["local", "ray"], typer.Option(help="Work on this machine, or on a Ray cluster.")
    ] = "local",
    ray_address: Annotated[str, typer.Option(help="The Ray cluster.")] = "auto",
    work_dir: Annotated[
        str | None,
        typer.Option(
            help="Where unfinished work is kept. Default: next to the output, or in the current folder if "
            "the output is a URL."
        ),
    ] = None,
    hf_config: Annotated[str | None, typer.Option(help="Configuration of a Hugging Face dataset.")] = None,
    hf_split: Annotated[str, typer.Option(help="Split of a Hugging Face dataset.")] = "train",
    builtin_megabytes: Annotated[
        float, typer.Option(help="Text of the source `builtin`, in millions of bytes.")
    ] = 50.0,
    report: Annotated[
        Path | None, typer.Option(help="Also write the report, with times, to this JSON file.")
    ] = None,
) -> None:
    """Convert text in the Pile's format to MDS shards of token rows.

    If it is interrupted, run the same command again: it resumes and writes identical bytes.
    """
    asked: dict[str, Any] = dict(locals())
    asked["sources"] = (*asked.pop("source"), *(asked.pop("more") or ()))
    megabytes = asked.pop("builtin_megabytes")
    asked["hub_config"], asked["hub_split"] = asked.pop("hf_config"), asked.pop("hf_split")
    del asked["dry_run"], asked["report"]
    with errors_as_exit_codes("data convert", when_stopped="stopped; repeat the command to continue."):
        from patch_algorithm.data.conversion.conversion import convert as convert_data
        from patch_algorithm.data.conversion.estimation import estimate
        from patch_algorithm.data.conversion.options import Conversion

        if "builtin" in asked["sources"]:
            from patch_algorithm.data.corpus.gather import builtin_source

            own = builtin_source(megabytes)
            asked["sources"] = tuple(own if name == "builtin" else name for name in asked["sources"])
        options = Conversion(**asked)
        if dry_run and report is not None:
            raise ValueError(
                "--report has no effect with --dry-run, which writes nothing. Give only one of them."
            )
        if report is not None and (report.is_dir() or not report.parent.is_dir()):
            raise ValueError(f"--report {report}: expected a file in an existing folder.")
        if dry_run:
            typer.echo(str(estimate(options)))
            return
        done = convert_data(options)
        typer.echo(str(done))
        if report is not None:
            report.write_text(json.dumps(done.to_json(), indent=2, ensure_ascii=False) + "\n")


@app.command(
    epilog=examples(
        "patch-level data info ./pile-mds",
        codes=("0 sound", "1 shards are missing or damaged", "2 bad input"),
    )
)
def info(
    folder: Annotated[str, typer.Argument(metavar="DIR_OR_URL", help="The dataset.")],
) -> None:
    """Show what a dataset holds, and check its shards against their hashes."""
    with errors_as_exit_codes("data info"):
        from patch_algorithm.data.dataset.inspection import inspect_dataset

        found = inspect_dataset(folder)
        typer.echo(str(found))
        if not found.sound:
            raise typer.Exit(1)


@app.command(
    epilog=examples("patch-level data cat ./pile-mds --row 7", codes=("0 shown", "2 bad input")),
)
def cat(
    folder: Annotated[str, typer.Argument(metavar="DIR_OR_URL", help="The dataset.")],
    row: Annotated[int, typer.Option(help="The row, counted from 0.")] = 0,
    split: Annotated[str, typer.Option(help="`train`, `val` or `test`.")] = "train",
    component: Annotated[str | None, typer.Option(help="The component, if each has its own stream.")] = None,
) -> None:
    """Show a row as text."""
    with errors_as_exit_codes("data cat"):
        from patch_algorithm.data.dataset.inspection import row_text

        typer.echo(row_text(folder, row, split, component))
