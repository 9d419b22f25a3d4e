"""Provokes every finding and prints a table: what came of it before, what comes of it now, right or not.

    python -m benchmarks.findings --out benchmarks/results

Takes about two minutes, and needs nothing that is not installed. Exit status 1 if one is not right.
"""

from __future__ import annotations

import argparse
import datetime
import sys
import tempfile
import warnings
from pathlib import Path

from benchmarks.findings import loading, reading, running
from benchmarks.findings.finding import FINDINGS, Finding, Now, Place, small_tokenizer
from benchmarks.pairs import free_path, hardware, versions

_PROVOKED_BY = (reading, loading, running)


def now(finding: Finding, place: Place) -> Now:
    """Provokes a finding; an error that nobody expected is not right."""
    try:
        told, right = finding.provoke(place)
        return Now(told.replace(f"{place.folder}/", ""), right)
    # Whatever it is, it belongs into the table.
    except Exception as error:
        return Now(f"{type(error).__name__}: {error}", False)


def table(found: list[tuple[Finding, Now]]) -> list[str]:
    """The findings as a Markdown table."""
    lines = ["| # | provoked | before | now | | test |", "|--:|---|---|---|---|---|"]
    for one, (told, right) in found:
        told = told.replace("|", "\\|").replace("\n", " ")
        name = one.test.partition("::")[2]
        lines.append(
            f"| {one.number} | {one.case} | {one.before} | {told} | {'ok' if right else 'NOT'} | `{name}` |"
        )
    return lines


def main() -> int:
    """Provokes all, or those of some numbers."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", nargs="+", metavar="N", help="numbers of findings")
    parser.add_argument("--out", type=Path, help="where to write the table")
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    found: list[tuple[Finding, Now]] = []
    with tempfile.TemporaryDirectory() as name:
        tokenizer = small_tokenizer(Path(name) / "tokenizer")
        chosen = [one for one in FINDINGS if not args.only or one.number in args.only]
        for index, one in enumerate(sorted(chosen, key=lambda one: int(one.number))):
            place = Place(Path(name) / f"finding-{index}", tokenizer)
            place.folder.mkdir()
            found.append((one, now(one, place)))
            sys.stderr.write(f"{one.number}: {found[-1][1]}\n")
    today, right = datetime.date.today().isoformat(), sum(told.right for _, told in found)
    lines = [f"# Findings, {today}", "", "Command: `python -m benchmarks.findings`", ""]
    lines += [
        f"Machine: {hardware()}; {versions()}.",
        "",
        *table(found),
        "",
        f"{right} of {len(found)} are right.",
    ]
    sys.stdout.write("\n".join(lines) + "\n")
    if args.out is not None:
        path = free_path(args.out, f"{today}-findings", ".md")
        path.write_text("\n".join(lines) + "\n")
        sys.stdout.write(f"Written to {path}\n")
    return int(right < len(found))


if __name__ == "__main__":
    sys.exit(main())
