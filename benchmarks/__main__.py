"""The whole suite: what patch-level training costs, on this machine, in about 12 minutes on two idle cores.

    OMP_NUM_THREADS=2 python -m benchmarks --out benchmarks/results --docs

Every number is a ratio of two things that were timed in turn in one process, with its 95 % bootstrap
interval. A goal is met if the upper end of the interval is at most the goal, and undecided if the interval
holds the goal.
"""

from __future__ import annotations

import argparse
import datetime
import json
import sys
import time
import warnings
from pathlib import Path
from typing import Any

from benchmarks.parts import PARTS

ROOT = Path(__file__).parents[1]


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", nargs="+", choices=PARTS, metavar="PART", help=f"of {', '.join(PARTS)}")
    parser.add_argument("--quick", action="store_true", help="tiny sizes and few pairs: shows that it runs")
    parser.add_argument("--out", type=Path, help="folder for dated JSON and Markdown; printed if not given")
    parser.add_argument(
        "--docs", action="store_true", help="write docs/benchmarks.md and its pictures from the result"
    )
    parser.add_argument(
        "--render",
        type=Path,
        nargs="+",
        metavar="JSON",
        help="measure nothing: write the docs from results; a later one replaces parts of an earlier",
    )
    return parser


def run_suite(names: list[str], quick: bool) -> dict[str, Any]:
    """Measures the parts named, and returns what is written as JSON."""
    from benchmarks.pairs import command, hardware, versions

    # Trainers that stay in one stage on purpose, and llm-foundry on every model that is made.
    for message in ("The switch at", "alibi or rope is turned on", "patch_level has no effect"):
        warnings.filterwarnings("ignore", message)
    found: dict[str, Any] = {"date": datetime.date.today().isoformat(), "command": command(), "quick": quick}
    parts: dict[str, Any] = {}
    for name in names:
        print(f"== {name}", file=sys.stderr, flush=True)
        start = time.perf_counter()
        comparisons, notes = PARTS[name](quick)
        parts[name] = {
            "seconds": round(time.perf_counter() - start, 1),
            "comparisons": [comparison.to_dict() for comparison in comparisons],
            "notes": notes,
        }
    return found | {"machine": hardware(), "versions": versions(), "parts": parts}


def main() -> None:
    """Measures, writes and prints."""
    parser = build_parser()
    args = parser.parse_args()
    if args.docs and args.quick:
        parser.error("--docs writes what was measured; --quick measures nothing that counts. Leave one out.")
    from benchmarks.pages import markdown, write_docs

    if args.render is not None:
        for path in args.render:
            if not path.is_file():
                parser.error(f"--render: {path} is not a file. Give the JSON of an earlier run.")
        write_docs([json.loads(path.read_text()) for path in args.render], ROOT / "docs")
        return
    found = run_suite([name for name in PARTS if args.only is None or name in args.only], args.quick)
    sys.stdout.write(markdown(found))
    if args.out is not None:
        from benchmarks.pairs import free_path

        path = free_path(args.out, f"{found['date']}-suite", ".json")
        path.write_text(json.dumps(found, indent=1) + "\n")
        path.with_suffix(".md").write_text(f"# Suite, {found['date']}\n\n{markdown(found)}")
        print(f"Written to {path} and .md", file=sys.stderr)
    if args.docs:
        write_docs([found], ROOT / "docs")


if __name__ == "__main__":
    main()
