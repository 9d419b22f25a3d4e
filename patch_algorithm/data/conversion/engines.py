"""Where units are made: in this process, in processes of this machine, or on a Ray cluster."""

from __future__ import annotations

import multiprocessing
import os
import re
import signal
import socket
import tempfile
import threading
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.connection import wait
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from typing_extensions import Self

from patch_algorithm.common.files import write_whole
from patch_algorithm.data.conversion.documents import BadDocument
from patch_algorithm.data.conversion.records import ConversionError, UnitRecord
from patch_algorithm.data.conversion.units import Task, Unit, UnitMaker
from patch_algorithm.data.conversion.workdir import WorkDir

__all__ = ["Engine", "LocalPool", "RayCluster", "WorkerDied"]

# Units beyond one for each worker: a worker that is done finds the next one waiting.
_AHEAD = 1
_LONGEST_WAIT = 10.0  # seconds


class WorkerDied(RuntimeError):
    """A worker died before it finished its unit."""


class Engine:
    """Makes units in this process, at once; ``tokenizers`` uses its own threads.

    Args:
        task: What is done with every unit.
        workdir: Where units are kept.

    Attributes:
        slots: How many units may be under way, which bounds the memory that their text takes.
        deaths: The errors that show that a worker has died.
    """

    slots: int = 1
    deaths: tuple[type[Exception], ...] = (MemoryError,)

    def __init__(self, task: Task, workdir: WorkDir) -> None:
        self._maker = UnitMaker(task, workdir)

    def submit(self, unit: Unit) -> Future[Any]:
        """Starts work on a unit."""
        future: Future[Any] = Future()
        try:
            future.set_result(self._maker.make(unit))
        except (MemoryError, OSError, ConversionError) as error:
            future.set_exception(error)
        return future

    def result(self, future: Future[Any]) -> Any:
        """Waits for a unit, which is final then, and returns its record, or its first bad document.

        Raises:
            WorkerDied: If a worker died over it.
            ConversionError: As :meth:`patch_algorithm.data.conversion.units.UnitMaker.make`.
        """
        try:
            return future.result()
        except self.deaths as error:
            # Ray's errors are pages long, and hold the one of the worker.
            reason = getattr(error, "cause", None) or error
            if isinstance(reason, ConversionError):
                raise reason from error
            first = str(reason).strip().partition("\n")[0]
            raise WorkerDied(f"{type(reason).__name__}: {first}") from error

    def __enter__(self) -> Self:
        """Starts nothing: workers are started when they are needed."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Ends the workers, if there are any."""
        del kind, error, trace


class LocalPool(Engine):
    """Works in processes of this machine, which end when this process ends for any reason.

    Args:
        task: What is done with every unit.
        workdir: Where units are kept.
        workers: How many processes.
        threads: Threads of ``tokenizers`` in each, for sources of fewer units than cores.

    Raises:
        ConversionError: If no process starts.
    """

    deaths = (BrokenProcessPool, MemoryError)

    def __init__(self, task: Task, workdir: WorkDir, workers: int, threads: int = 1) -> None:
        self.slots = workers + _AHEAD
        # Forked from a process without threads that has imported what they need, and shares it with them.
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(["patch_algorithm.data.conversion.engines", "streaming"])
        self._stop = context.Event()
        self._pool = ProcessPoolExecutor(
            workers,
            mp_context=context,
            initializer=_set_up_worker,
            initargs=(task, workdir, threads, self._stop, dict(os.environ)),
        )
        try:
            self._pool.submit(os.getpid).result()
        except BrokenProcessPool as error:
            raise ConversionError(
                "no worker process could be started; see the workers' messages on standard error. A script "
                "must call convert() under `if __name__ == '__main__':`, because each worker imports it."
            ) from error

    def submit(self, unit: Unit) -> Future[Any]:
        """Starts work on a unit."""
        try:
            return self._pool.submit(_make, unit)
        except BrokenProcessPool as error:
            return _failed(error)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Ends the workers; after an error, at their next block."""
        if error is not None:
            self._stop.set()
        self._pool.shutdown(cancel_futures=True)


class RayCluster(Engine):
    """Works on a Ray cluster; every node needs this package installed, and no shared files.

    A worker uploads shards itself; where the dataset lies in a folder, they come back with the record.

    Args:
        task: What is done with every unit.
        workdir: Where units are kept, on this machine.
        workers: Most units at work at a time; ``None`` is one for each CPU of the cluster.
        address: The cluster, as for ``ray.init``.

    Raises:
        ValueError: If Ray is not installed or there is no cluster.
    """

    def __init__(self, task: Task, workdir: WorkDir, workers: int | None, address: str) -> None:
        # Every node has this package: started with `uv run`, Ray would send them the current folder, with
        # the data in it, and make a new environment for every worker.
        os.environ.setdefault("RAY_ENABLE_UV_RUN_RUNTIME_ENV", "0")
        try:
            import ray
            from ray.exceptions import RayError
        except ImportError as error:
            raise ValueError(
                "--engine ray needs Ray; install it with `pip install 'patch-algorithm[ray]'`."
            ) from error
        self._ray = ray
        self.deaths = (RayError,)
        self._ours = not ray.is_initialized()
        try:
            if self._ours:
                _knock(address)
                ray.init(address=address, log_to_driver=False)
        except (OSError, RuntimeError, ValueError) as error:
            raise ValueError(
                f"--engine ray: no Ray cluster at {address!r} ({error}). Start one with `ray start --head`, "
                "or name it with --ray-address."
            ) from error
        self.slots = (workers or max(1, int(ray.cluster_resources().get("CPU", 1)))) + _AHEAD
        self._workdir = workdir
        self._task = ray.put(task)
        self._make = ray.remote(num_cpus=1, scheduling_strategy="SPREAD")(_make_on_ray)

    def submit(self, unit: Unit) -> Future[Any]:
        """Starts work on a unit; Ray starts it again where a node dies."""
        try:
            return self._make.remote(self._task, unit).future()
        except self.deaths as error:
            return _failed(error)

    def result(self, future: Future[Any]) -> Any:
        """As :meth:`Engine.result`; what came back of the unit is kept here."""
        name, made, tail, files = super().result(future)
        if isinstance(made, UnitRecord):
            self._workdir.clear(name)
            for file, content in files.items():
                target = self._workdir.data / file
                target.parent.mkdir(parents=True, exist_ok=True)
                write_whole(target, content)
            self._workdir.commit(name, made, [tail])
        return made

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Leaves the cluster, if it was joined here."""
        if self._ours:
            self._ray.shutdown()


def _failed(error: Exception) -> Future[Any]:
    future: Future[Any] = Future()
    future.set_exception(error)
    return future


def _knock(address: str) -> None:
    # Ray itself would try for many minutes.
    named = re.fullmatch(r"(?:ray://)?([^/:]+):(\d+)", address)
    if named:
        socket.create_connection((named[1], int(named[2])), _LONGEST_WAIT).close()


_makers: list[UnitMaker] = []  # a worker's own


def _set_up_worker(
    task: Task, workdir: WorkDir, threads: int, stop: Any, environment: dict[str, str]
) -> None:
    # The process it is forked from may be older than what was set since, such as an object store's keys.
    os.environ.update(environment)
    # Ctrl-C reaches every process of a terminal; the driver decides what it means.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.environ["TOKENIZERS_PARALLELISM"] = "false" if threads == 1 else "true"
    os.environ["RAYON_NUM_THREADS"] = str(threads)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    _makers[:] = [UnitMaker(task, workdir, stop.is_set)]


def _end_with_parent() -> None:
    # A pool's workers wait on a pipe that they themselves hold open: a killed driver closes nothing.
    parent = multiprocessing.parent_process()
    if parent is not None:
        wait([parent.sentinel])
        os._exit(1)


def _make(unit: Unit) -> UnitRecord | BadDocument:
    return _makers[0].make(unit)


def _make_on_ray(
    task: Task, unit: Unit
) -> tuple[str, UnitRecord | BadDocument, np.ndarray | None, dict[str, bytes]]:
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    os.environ["RAYON_NUM_THREADS"] = "1"
    with tempfile.TemporaryDirectory() as folder:
        workdir = WorkDir(Path(folder), task.encoding.dtype)
        made = UnitMaker(task, workdir).make(unit)
        if isinstance(made, BadDocument):
            return unit.name, made, None, {}
        kept = [] if made.uploaded else [file for part in made.parts for file, _ in part.files()]
        files = {file: (workdir.data / file).read_bytes() for file in kept}
        return unit.name, made, workdir.tail(unit.name), files
