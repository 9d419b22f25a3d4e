"""Findings on a conversion's run: what it says, what it keeps, where it works."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from importlib.metadata import requires
from pathlib import Path
from typing import Any
from unittest import mock

from typer.testing import CliRunner

from benchmarks.findings.finding import Now, Place, finding, refusal, some_texts
from benchmarks.findings.reading import documents_by_split
from patch_algorithm.cli import app
from patch_algorithm.common import machine

__all__: list[str] = []

EXACT = "data/conversion/test_exact.py"


@finding(
    "9",
    "`--val-fraction` that draws no document, or less than a row, or none of some components",
    "says nothing",
    f"{EXACT}::test_nothing_held_out_is_told",
)
def nothing_held_out(place: Place) -> Now:
    names = ("ArXiv", "Github")
    documents = (
        {"text": text, "meta": {"pile_set_name": names[i % 2]}} for i, text in enumerate(some_texts(200))
    )
    path = place.write("a.jsonl", documents)
    told = []
    for out, changes in {
        "none": {"val_fraction": 1e-9},
        "short": {"val_fraction": 0.02, "val_row_tokens": 4000},
        "components": {"val_fraction": 1e-9, "split_by_component": True},
    }.items():
        found = str(place.convert(path, out=out, **changes)).splitlines()
        told.append([line for line in found if line.startswith("--val-fraction leaves val")])
    return Now(
        f"{told[0]}, {told[1]}, and {len(told[2])} of 2 components named", list(map(len, told)) == [1, 1, 2]
    )


@finding(
    "10",
    "components C, C++ and C#; Github and GitHub; one of 400 letters",
    "refused when everything is tokenised",
    f"{EXACT}::test_components_have_folders_of_their_own",
)
def component_names(place: Place) -> Now:
    names = ["C", "C++", "C#", "Github", "GitHub", "x" * 400]
    documents = (
        {"text": text, "meta": {"pile_set_name": names[i % 6]}} for i, text in enumerate(some_texts(60))
    )
    info = place.convert(place.write("a.jsonl", documents), split_by_component=True).info
    folders = [stream.path.partition("/")[0] for stream in info.streams]
    return Now(", ".join(folder[:24] for folder in folders), len(set(folders)) == len(names))


@finding(
    "11",
    "a new file in the source folder between a stop and its repetition",
    "all work is lost",
    "data/conversion/test_continued.py::test_a_new_file_takes_nothing_from_those_that_were_begun",
)
def new_file(place: Place) -> Now:
    folder = place.write("pile/01.jsonl", some_texts(1000)).parent
    (folder / "02.jsonl").write_text("{\n")
    stopped = refusal(lambda: place.convert(folder), ["not JSON"])
    place.write("pile/02.jsonl", some_texts(100, seed=2))
    place.write("pile/00.jsonl", some_texts(100, seed=3))
    encoded = place.convert(folder).encoded.documents
    return Now(
        f"of 1,200 documents {encoded} are encoded by the repetition", stopped.right and encoded == 200
    )


@finding(
    "15",
    "a CPU quota of half a core",
    "two workers",
    "common/test_machine.py::test_a_container_has_the_cores_that_its_quota_allows",
)
def half_a_core(place: Place) -> Now:
    (place.folder / "cpu.max").write_text("50000 100000\n")
    with mock.patch.object(machine, "_CGROUPS", place.folder):
        cores = machine.usable_cores()
    return Now(f"{cores} worker", cores == 1)


def python(place: Place, *arguments: Any, **options: Any) -> subprocess.CompletedProcess[str]:
    """Runs Python with arguments, and what it writes is kept."""
    paths = [str(Path(__file__).parents[2]), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
    command = [sys.executable, *map(str, arguments)]
    return subprocess.run(
        command, capture_output=True, text=True, check=False, cwd=place.folder, env=environment, **options
    )


@finding(
    "15",
    "the library called without `if __name__ == '__main__':`",
    "a worker has died, perhaps for want of memory",
    "data/conversion/test_continued.py::test_a_script_without_a_main_guard_is_told_so",
)
def no_main_guard(place: Place) -> Now:
    source = place.write("a.jsonl", some_texts(200))
    script = place.folder / "script.py"
    script.write_text(
        "from patch_algorithm.data.conversion import Conversion, convert\n"
        f"convert(Conversion(sources=({str(source)!r},), tokenizer={str(place.tokenizer)!r}, "
        f"out={str(place.folder / 'out')!r}, row_tokens=32, workers=1, progress=False))\n"
    )
    done = python(place, script)
    told = done.stderr.strip().splitlines()[-1] if done.stderr else ""
    return Now(told[-140:], done.returncode != 0 and "under `if __name__ == '__main__':`" in told)


@finding(
    "15",
    "`data cat` of data that is split by component",
    "does not name `--component`",
    "data/dataset/test_inspection.py::test_streams_that_are_not_there_are_refused",
)
def cat_of_components(place: Place) -> Now:
    documents = ({"text": text, "meta": {"pile_set_name": "ArXiv"}} for text in some_texts(50))
    place.convert(place.write("a.jsonl", documents), split_by_component=True)
    done = CliRunner().invoke(app, ["data", "cat", str(place.folder / "out")])
    told = " ".join(done.output.split())
    return Now(f"exit {done.exit_code}: {told[-120:]}", done.exit_code == 2 and "--component" in told)


@finding(
    "15",
    "progress without a terminal",
    "one endless line",
    "common/test_machine.py::test_without_a_terminal_each_state_is_a_line",
)
def progress(place: Place) -> Now:
    source = place.write("a.jsonl", some_texts(2000))
    asked = ["--source", source, "--tokenizer", place.tokenizer, "--out", place.folder / "out"]
    asked += ["--row-tokens", 32, "--workers", 0]
    done = python(place, "-c", "from patch_algorithm.cli import app; app()", "data", "convert", *asked)
    lines = [line for line in done.stderr.splitlines() if line.startswith("converting:")]
    right = done.returncode == 0 and len(lines) >= 2 and "\r" not in done.stderr
    return Now(f"{len(lines)} lines, the longest of {max(map(len, lines), default=0)} characters", right)


@finding(
    "15",
    "3 MB of text in 1,500 files against one file",
    "35 times as long",
    "data/conversion/test_engines.py::test_a_small_file_costs_few_changes_of_the_file_system",
)
def small_files(place: Place) -> Now:
    texts, seconds = some_texts(15_000), {}
    place.write("one/a.jsonl", texts)
    for index in range(1500):
        place.write(f"many/{index:04d}.jsonl", texts[10 * index : 10 * index + 10])
    place.convert(place.folder / "one", out="warm")
    for name in ("one", "many"):
        start = time.perf_counter()
        report = place.convert(
            place.folder / name, out=f"out-{name}", unit_bytes=1 << 22, block_bytes=1 << 20
        )
        seconds[name] = time.perf_counter() - start
        if documents_by_split(report)["train"] != len(texts):
            return Now(f"{name}: documents are missing", False)
    ratio = seconds["many"] / seconds["one"]
    return Now(f"{seconds['many']:.1f} s against {seconds['one']:.1f} s: {ratio:.1f} times", ratio < 10)


@finding(
    "17",
    "a work folder on another file system than the output",
    "fails when the conversion is finished",
    "data/conversion/test_output.py::test_unfinished_work_on_another_file_system",
)
def other_file_system(place: Place) -> Now:
    other = Path("/dev/shm")
    if not other.is_dir() or other.stat().st_dev == place.folder.stat().st_dev:
        return Now("not tried: this machine has one file system alone", True)
    source = place.write("a.jsonl", some_texts(20))
    work = str(other / f"{place.folder.name}.partial")
    return refusal(lambda: place.convert(source, work_dir=work), ["on another file system", "--work-dir"])


@finding(
    "17",
    "Ray's dashboards (CVE-2026-27482)",
    "any Ray",
    "data/conversion/test_engines.py::test_the_extra_asks_for_a_ray_without_the_known_hole",
)
def ray_version(place: Place) -> Now:
    found = [line for line in requires("patch-algorithm") or () if line.startswith("ray")]
    return Now("; ".join(found), any("ray>=2.54" in line for line in found))
