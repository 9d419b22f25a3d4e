"""The same bytes whoever does the work."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from concurrent.futures import Future
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

import pytest

from patch_algorithm.data.conversion import conversion, engines
from patch_algorithm.data.conversion.conversion import ConversionError
from patch_algorithm.data.conversion.documents import BlockResult, Task
from patch_algorithm.data.conversion.engines import Engine, InProcess, LocalPool, _failed
from patch_algorithm.data.readers.blocks import Block, Position
from patch_algorithm.data.tokens.encoding import load_tokenizer
from tests.data.support import documents, files, lines, options, run


@pytest.mark.parametrize("workers", [1, 3])
def test_any_number_of_workers_gives_the_same_bytes(
    workers: int, pile: list[Path], tokenizer: Path, converted: Path, tmp_path: Path
) -> None:
    report = run(pile, tokenizer, tmp_path / "out", val_fraction=0.1, workers=workers)
    assert files(tmp_path / "out") == files(converted)
    assert report.encoded.documents == 480


class Hoarding(InProcess):
    """Hands results out in reverse, as late as may be; and watches how many blocks are under way."""

    slots = 5
    most = 0

    def __init__(self, task: Task, failed: list[int]) -> None:
        super().__init__(task)
        self.failed = failed
        self.held: list[tuple[Future[BlockResult], Future[BlockResult]]] = []

    def submit(self, block: Block) -> Future[BlockResult]:
        promised: Future[BlockResult] = Future()
        result = super().submit(block)
        if error := result.result().error:
            self.failed.append(error.number)
        self.held.append((promised, result))
        under_way = sum(not promise.done() for promise, _ in self.held)
        Hoarding.most = max(Hoarding.most, under_way)
        if under_way == self.slots or block.size < 1 << 12:
            for promise, result in reversed(self.held):
                if not promise.done():
                    promise.set_result(result.result())
        return promised


def test_results_may_come_in_any_order(
    pile: list[Path], tokenizer: Path, converted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(conversion, "_engine", lambda options, task: Hoarding(task, []))
    run(pile, tokenizer, tmp_path / "out", val_fraction=0.1)
    assert files(tmp_path / "out") == files(converted)
    assert Hoarding.most == Hoarding.slots


def test_of_several_failures_the_first_is_told(
    tokenizer: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = lines(documents(400)).splitlines()
    for index in range(140, 220, 3):
        found[index] = b"{"
    (tmp_path / "a.jsonl").write_bytes(b"\n".join(found))
    failed: list[int] = []
    monkeypatch.setattr(conversion, "_engine", lambda options, task: Hoarding(task, failed))
    with pytest.raises(ConversionError, match=r"a\.jsonl, line 141: not JSON"):
        run([tmp_path / "a.jsonl"], tokenizer, tmp_path / "out")
    assert len(failed) > 1
    assert failed[0] == 141


def test_no_more_blocks_are_under_way_than_workers_and_two(tokenizer: Path, tmp_path: Path) -> None:
    asked = options(["x.jsonl"], tokenizer, tmp_path / "out").task(load_tokenizer(str(tokenizer)))
    with LocalPool(asked, 3) as pool:
        assert pool.slots == 5
        data = lines(documents(20))
        block = Block(Position(), Position(len(data), 20), data, len(data))
        assert pool.submit(block).result().counts == InProcess(asked).submit(block).result().counts


def test_workers_import_neither_torch_nor_transformers() -> None:
    code = (
        "import sys, patch_algorithm.data.conversion.engines as e, patch_algorithm.data.conversion.documents;"
        "print(sorted({'torch', 'transformers', 'streaming', 'datasets', 'pyarrow'} & set(sys.modules)))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout == "[]\n"


class Dying(LocalPool):
    def submit(self, block: Block) -> Future[BlockResult]:
        self._pool.submit(os._exit, 1)
        return super().submit(block)


def test_a_worker_that_dies_leaves_work_to_continue(
    pile: list[Path], tokenizer: Path, converted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(conversion, "_engine", lambda options, task: Dying(task, 1))
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
            assert files(tmp_path / "continued" / split) == files(converted / split)
        # Whatever goes wrong in a worker comes as Ray's own error.
        monkeypatch.setattr(engines, "_encode_on_ray", _without_memory)
        with pytest.raises(ConversionError, match=r"a worker has died.*MemoryError: none is left\)"):
            run(pile, tokenizer, tmp_path / "third", **asked)
    finally:
        cluster.shutdown()
        shutil.rmtree(folder)


def test_an_engine_is_left_whatever_happens() -> None:
    class Left(Engine):
        left = False

        def submit(self, block: Block) -> Future[BlockResult]:
            raise NotImplementedError

        def __exit__(self, *args: object) -> None:
            self.left = True

    engine = Left()
    with pytest.raises(KeyError), engine:
        raise KeyError
    assert engine.left


class Killed(LocalPool):
    """Its workers are dead before the next block is handed out."""

    def submit(self, block: Block) -> Future[BlockResult]:
        with pytest.raises(BrokenProcessPool):
            self._pool.submit(os._exit, 1).result()
        return super().submit(block)


class FullOfMemory(InProcess):
    """A worker that has no memory left for one of its blocks, as Ray tells it."""

    deaths = (RuntimeError,)

    def submit(self, block: Block) -> Future[BlockResult]:
        if block.start.number < 200:
            return super().submit(block)
        error = RuntimeError("\x1b[36mray::_encode()\n  File 1, line 2\n")
        error.cause = MemoryError("no memory\nis left")  # type: ignore[attr-defined]
        return _failed(error)


@pytest.mark.parametrize(
    ("dead", "words"),
    [
        (lambda task: Killed(task, 1), "BrokenProcessPool: A "),
        (FullOfMemory, r"MemoryError: no memory\)"),
    ],
)
def test_why_a_worker_has_died_is_told(
    dead: Callable[[Task], Engine],
    words: str,
    pile: list[Path],
    tokenizer: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(conversion, "_engine", lambda options, task: dead(task))
    with pytest.raises(ConversionError, match=rf"a worker has died.*{words}.*repeat the command"):
        run(pile, tokenizer, tmp_path / "out")
