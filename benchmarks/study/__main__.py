"""Command line of the study: ``python -m benchmarks.study --help``."""

from __future__ import annotations

import argparse
import logging
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

RESULTS = Path(__file__).with_name("results") / "runs.jsonl"


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command; bad input ends with status 2 and no traceback."""
    parser = _parser()
    args = parser.parse_args(arguments)
    logging.basicConfig(format="%(asctime)s %(message)s", datefmt="%Y-%m-%d %H:%M:%S", level=logging.WARNING)
    logging.getLogger("benchmarks.study").setLevel(logging.INFO)
    if args.data is None:
        args.data = args.results.parent / "data"
    try:
        args.command(args)
    except (ValueError, OSError) as error:
        print(f"{parser.prog}: {error}", file=sys.stderr)
        return 2
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.study",
        description="Trains the runs of PLAN.md one after another and reports what came out.",
    )
    parser.add_argument(
        "--results", type=Path, default=RESULTS, help="file of results (default: %(default)s)"
    )
    parser.add_argument(
        "--data", type=Path, help="folder of the prepared corpora (default: data, beside the results)"
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    _add_running(lambda name, does: commands.add_parser(name, help=does))
    _add_reading(lambda name, does: commands.add_parser(name, help=does))
    return parser


def _add_running(add: Callable[[str, str], argparse.ArgumentParser]) -> None:
    prepare = add("prepare", "prepare a corpus, once")
    prepare.add_argument(
        "corpus", choices=["pile", "builtin"], help="text in the Pile's format, or built-in text"
    )
    prepare.add_argument(
        "--train", nargs="+", default=[], help="for pile: .jsonl or .jsonl.zst of the training text"
    )
    prepare.add_argument("--held-out", nargs="+", default=[], help="for pile: files of the held-out text")
    prepare.set_defaults(command=_prepare)
    run = add("run", "run what is left; may be killed at any moment and started again")
    run.add_argument("--most-runs", type=int, help="stop after so many runs")
    run.add_argument("--threads", type=int, default=1, help="threads of torch (default: 1)")
    run.set_defaults(command=_run)
    again = add("again", "run one finished run again and compare it")
    again.add_argument("identity", help="its `id` in the file of results")
    again.set_defaults(command=_again)
    overhead = add("overhead", "the trainer's cost beside a bare torch loop, in turn")
    overhead.add_argument("--size", default="0.16M")
    overhead.add_argument("--positions", type=int, default=4096)
    overhead.add_argument("--pairs", type=int, default=15)
    overhead.set_defaults(command=_overhead)


def _add_reading(add: Callable[[str, str], argparse.ArgumentParser]) -> None:
    plan = add("plan", "list the cells, what is left of them, and the hours it takes")
    plan.add_argument("--all", action="store_true", help="also cells that wait for a rate, at the middle one")
    plan.set_defaults(command=_plan)
    merge = add("merge", "append the runs of another file of results that are not here")
    merge.add_argument("source", type=Path)
    merge.set_defaults(command=_merge)
    add("report", "print the tables").set_defaults(command=_report)


def _prepare(args: argparse.Namespace) -> None:
    from benchmarks.study.data import prepare_builtin, prepare_files

    folder = args.data / args.corpus
    if args.corpus == "pile" and not (args.train and args.held_out):
        raise ValueError("prepare pile needs --train and --held-out, files of text in the Pile's format.")
    corpus = (
        prepare_builtin(folder)
        if args.corpus == "builtin"
        else prepare_files(args.train, args.held_out, folder)
    )
    print(
        f"{folder}: {corpus.rows_RT.size:,} training tokens, {len(corpus.held_out) - 1:,} held-out tokens in "
        f"{len(corpus.documents['bytes']):,} documents, fingerprint {corpus.fingerprint}"
    )


def _plan(args: argparse.Namespace) -> None:
    from benchmarks.study.cells import plan
    from benchmarks.study.estimates import hours
    from benchmarks.study.store import read_rows

    rows = read_rows(args.results)
    total = 0.0
    seen: set[str] = set()
    for cell in plan(rows, args.all):
        fresh = [run for run in cell.runs if run.identity not in seen]
        left = [run for run in fresh if run.identity not in rows]
        seen |= {run.identity for run in fresh}
        time = sum(hours(run, rows) for run in left)
        total += time
        print(f"{cell.name:28} {len(cell.runs):3} runs, {len(left):3} left, {time:6.2f} h")
    print(f"{'in all':28} {total:22.2f} h; cells of a size follow when its rate is chosen")


def _run(args: argparse.Namespace) -> None:
    from benchmarks.study.worker import work

    print(f"{work(args.results, args.data, most_runs=args.most_runs, threads=args.threads)} runs finished")


def _again(args: argparse.Namespace) -> None:
    import torch

    from benchmarks.study.settings import Settings
    from benchmarks.study.store import read_rows
    from benchmarks.study.worker import prepared_corpora, run_one

    row = read_rows(args.results).get(args.identity)
    if row is None:
        raise ValueError(f"{args.results} has no run {args.identity!r}.")
    settings = Settings.from_row(row["settings"])
    corpus = prepared_corpora(args.data).get(settings.corpus)
    if corpus is None or corpus.fingerprint != row["corpus"]:
        raise ValueError(
            f"{args.data} does not hold the corpus {settings.corpus!r} of the run ({row['corpus']})."
        )
    torch.set_num_threads(1)
    fresh = run_one(settings, corpus)
    same = fresh["document_nats"] == row["document_nats"]
    print(
        f"{row['bits_per_byte']} then, {fresh['bits_per_byte']} now: {'identical' if same else 'different'}"
    )


def _overhead(args: argparse.Namespace) -> None:
    from benchmarks.study.data import load_corpus
    from benchmarks.study.overhead import measure

    print(measure(args.size, args.positions, load_corpus(args.data / "pile"), args.pairs))


def _merge(args: argparse.Namespace) -> None:
    import shutil

    from benchmarks.study.store import merge_rows

    if not args.source.is_file():
        raise ValueError(f"{args.source}: there is no such file.")
    print(f"{merge_rows(args.source, args.results)} runs appended to {args.results}")
    for documents in args.source.parent.glob("documents-*.json"):
        target = args.results.parent / documents.name
        if not target.exists():
            shutil.copyfile(documents, target)


def _report(args: argparse.Namespace) -> None:
    from benchmarks.study.report import tables

    print(tables(args.results))


if __name__ == "__main__":
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    sys.exit(main())
