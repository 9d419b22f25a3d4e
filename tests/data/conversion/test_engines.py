"""The same bytes whoever does the work."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable
from concurrent.futures import Future
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

import pytest

from patch_algorithm.data.conversion import conversion, engines
from patch_algorithm.data.conversion.conversion import ConversionError
from patch_algorithm.data.conversion.documents import BadDocument
from patch_algorithm.data.conversion.engines import Engine, LocalPool, _failed
from patch_algorithm.data.conversion.units import Task, Unit
from patch_algorithm.data.conversion.workdir import WorkDir
from patch_algorithm.data.readers.blocks import Block, Position
from patch_algorithm.data.tokens.encoding import load_tokenizer
from tests.data.support import documents, files, lines, options, run, stream_tokens


@pytest.mark.parametrize("workers", [1, 3])
def test_any_number_of_workers_gives_the_same_bytes(
    workers: int, pile: list[Path], tokenizer: Path, converted: Path, tmp_path: Path
) -> None:
    report = run(pile, tokenizer, tmp_path / "out", val_fraction=0.1, workers=workers)
    assert files(tmp_path / "out") == files(converted)
    assert report.encoded.documents == 480


class Hoarding(Engine):
    """Hands results out in reverse, as late as may be; and watches how many units are under way."""

    slots = 5
    most = 0

    def __init__(self, task: Task, workdir: WorkDir, failed: list[int]) -> None:
        super().__init__(task, workdir)
        self.failed = failed
        self.held: list[tuple[Future[Any], Future[Any]]] = []

    def submit(self, unit: Unit) -> Future[Any]:
        promised: Future[Any] = Future()
        result = super().submit(unit)
        if isinstance(made := result.result(), BadDocument):
            self.failed.append(made.number)
        self.held.append((promised, result))
        under_way = sum(not promise.done() for promise, _ in self.held)
        Hoarding.most = max(Hoarding.most, under_way)
        if under_way == self.slots or unit.size < 1 << 14:
            for promise, result in reversed(self.held):
                if not promise.done():
                    promise.set_result(result.result())
        return promised


def test_results_may_come_in_any_order(
    pile: list[Path], tokenizer: Path, converted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(conversion, "_engine", lambda options, task, workdir, _: Hoarding(task, workdir, []))
    run(pile, tokenizer, tmp_path / "out", val_fraction=0.1)
    assert files(tmp_path / "out") == files(converted)
    assert Hoarding.most == Hoarding.slots


def test_of_several_failures_the_first_is_told(
    tokenizer: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = lines(documents(400)).splitlines()
    for index in range(140, 350, 3):
        found[index] = b"{"
    (tmp_path / "a.jsonl").write_bytes(b"\n".join(found))
    failed: list[int] = []
    monkeypatch.setattr(
        conversion, "_engine", lambda options, task, workdir, _: Hoarding(task, workdir, failed)
    )
    with pytest.raises(ConversionError, match=r"a\.jsonl, line 141: not JSON"):
        run([tmp_path / "a.jsonl"], tokenizer, tmp_path / "out")
    assert len(failed) > 1
    assert failed[0] == 141


def test_no_more_units_are_under_way_than_workers_and_one(tokenizer: Path, tmp_path: Path) -> None:
    task = options(["x.jsonl"], tokenizer, tmp_path / "out").task(load_tokenizer(str(tokenizer)))
    data = lines(documents(20))
    unit = Unit("a-000000", {}, Position(), [Block(Position(), Position(len(data), 20), data, len(data))])
    with LocalPool(task, WorkDir(tmp_path / "pool", "uint16"), 3) as pool:
        assert pool.slots == 4
        made = pool.result(pool.submit(unit))
    assert made == Engine(task, WorkDir(tmp_path / "here", "uint16")).submit(unit).result()
    assert files(tmp_path / "pool") == files(tmp_path / "here")


class Dying(LocalPool):
    def submit(self, unit: Unit) -> Future[Any]:
        self._pool.submit(os._exit, 1)
        return super().submit(unit)


def test_a_worker_that_dies_leaves_work_to_continue(
    pile: list[Path], tokenizer: Path, converted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(conversion, "_engine", lambda options, task, workdir, _: Dying(task, workdir, 1))
        with pytest.raises(ConversionError, match="a worker has died"):
            run(pile, tokenizer, tmp_path / "out", val_fraction=0.1)
    run(pile, tokenizer, tmp_path / "out", val_fraction=0.1)
    assert files(tmp_path / "out") == files(converted)


def test_without_a_ray_cluster(pile: list[Path], tokenizer: Path, tmp_path: Path) -> None:
    pytest.importorskip("ray", reason="needs the extra 'ray'")
    with pytest.raises(ValueError, match=r"no Ray cluster at '127\.0\.0\.1:1'.*ray start --head"):
        run(pile, tokenizer, tmp_path / "out", engine="ray", workers=2, ray_address="127.0.0.1:1")


def _without_memory(*args: object) -> None:
    raise MemoryError("none is left")


@pytest.mark.slow
def test_a_ray_cluster_of_two_nodes_gives_the_same_bytes(
    pile: list[Path], tokenizer: Path, converted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("ray", reason="needs the extra 'ray'")
    from ray.cluster_utils import Cluster

    bad = tmp_path / "01.jsonl"
    bad.write_bytes(pile[1].read_bytes() + b"{\n")
    # The names of sockets may not be long.
    folder = tempfile.mkdtemp(prefix="ray", dir="/tmp")
    monkeypatch.setenv("RAY_TMPDIR", folder)
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    try:
        cluster.add_node(num_cpus=1)
        cluster.wait_for_nodes()
        asked = {"val_fraction": 0.1, "engine": "ray", "workers": None, "ray_address": cluster.address}
        run(pile, tokenizer, tmp_path / "out", **asked)
        assert files(tmp_path / "out") == files(converted)
        with pytest.raises(ConversionError, match=r"01\.jsonl, line 241: not JSON"):
            run([pile[0], bad], tokenizer, tmp_path / "continued", **asked)
        bad.write_bytes(pile[1].read_bytes())
        report = run([pile[0], bad], tokenizer, tmp_path / "continued", **asked)
        assert report.encoded.documents < 240
        for split in ("train", "val"):
            assert (stream_tokens(tmp_path / "continued", split) == stream_tokens(converted, split)).all()
        # Whatever goes wrong in a worker comes as Ray's own error.
        monkeypatch.setattr(engines, "_make_on_ray", _without_memory)
        with pytest.raises(ConversionError, match=r"a worker has died.*MemoryError: none is left\)"):
            run(pile, tokenizer, tmp_path / "third", **asked)
    finally:
        cluster.shutdown()
        shutil.rmtree(folder)


def test_an_engine_is_left_whatever_happens() -> None:
    class Left(Engine):
        left = False

        def __init__(self) -> None:
            pass

        def __exit__(self, *args: object) -> None:
            self.left = True

    engine = Left()
    with pytest.raises(KeyError), engine:
        raise KeyError
    assert engine.left


class Killed(LocalPool):
    """Its workers are dead before the next unit is handed out."""

    def submit(self, unit: Unit) -> Future[Any]:
        with pytest.raises(BrokenProcessPool):
            self._pool.submit(os._exit, 1).result()
        return super().submit(unit)


class FullOfMemory(Engine):
    """A worker that has no memory left for one of its units, as Ray tells it."""

    deaths = (RuntimeError,)

    def submit(self, unit: Unit) -> Future[Any]:
        if unit.start.number < 200:
            return super().submit(unit)
        error = RuntimeError("\x1b[36mray::_encode()\n  File 1, line 2\n")
        error.cause = MemoryError("no memory\nis left")  # type: ignore[attr-defined]
        return _failed(error)


@pytest.mark.parametrize(
    ("dead", "words"),
    [
        (lambda task, workdir: Killed(task, workdir, 1), "BrokenProcessPool: A "),
        (FullOfMemory, r"MemoryError: no memory\)"),
    ],
)
def test_why_a_worker_has_died_is_told(
    dead: Callable[[Task, WorkDir], Engine],
    words: str,
    pile: list[Path],
    tokenizer: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(conversion, "_engine", lambda options, task, workdir, _: dead(task, workdir))
    with pytest.raises(ConversionError, match=rf"a worker has died.*{words}.*repeat the command"):
        run(pile, tokenizer, tmp_path / "out")
