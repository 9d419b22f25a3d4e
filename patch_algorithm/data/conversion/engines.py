"""Where blocks are worked on: in this process, in processes of this machine, or on a Ray cluster."""

from __future__ import annotations

import multiprocessing
import os
import re
import signal
import socket
import threading
from abc import ABC, abstractmethod
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.connection import wait
from types import TracebackType

from patch_algorithm.data.conversion.documents import BlockEncoder, BlockResult, Task
from patch_algorithm.data.readers.blocks import Block

__all__ = ["Engine", "InProcess", "LocalPool", "RayCluster", "WorkerDied"]

# Blocks beyond one for each worker: a worker that is done finds the next one waiting.
_AHEAD = 2
_LONGEST_WAIT = 10.0  # seconds


class WorkerDied(RuntimeError):
    """A block that no worker came to the end of."""


class Engine(ABC):
    """Works on blocks.

    Attributes:
        slots: How many blocks may be under way, which bounds the memory that they take.
        deaths: The errors that workers which have died show themselves by.
    """

    slots: int = 1
    deaths: tuple[type[Exception], ...] = ()

    @abstractmethod
    def submit(self, block: Block) -> Future[BlockResult]:
        """Starts work on a block."""

    def result(self, future: Future[BlockResult]) -> BlockResult:
        """Waits for what comes of a block.

        Raises:
            WorkerDied: If a worker died over it.
        """
        try:
            return future.result()
        except self.deaths as error:
            # Ray's errors are pages long, and hold the one of the worker.
            reason = getattr(error, "cause", None) or error
            first = str(reason).strip().partition("\n")[0]
            raise WorkerDied(f"{type(reason).__name__}: {first}") from error

    def __enter__(self) -> Engine:
        """Starts nothing: workers are started when they are needed."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Ends the workers, if there are any."""
        del kind, error, trace


class InProcess(Engine):
    """Works in this process, at once; ``tokenizers`` uses its own threads.

    Args:
        task: What is to be done with every block.
    """

    deaths = (MemoryError,)

    def __init__(self, task: Task) -> None:
        self._encoder = BlockEncoder(task)

    def submit(self, block: Block) -> Future[BlockResult]:
        """Works on a block."""
        future: Future[BlockResult] = Future()
        try:
            future.set_result(self._encoder.encode(block))
        except MemoryError as error:
            future.set_exception(error)
        return future


class LocalPool(Engine):
    """Works in processes of this machine, which end when this one does, however it ends.

    Args:
        task: What is to be done with every block.
        workers: How many processes.
    """

    deaths = (BrokenProcessPool, MemoryError)

    def __init__(self, task: Task, workers: int) -> None:
        self.slots = workers + _AHEAD
        self._pool = ProcessPoolExecutor(
            workers,
            # Forked processes would inherit the locks of whatever threads run here.
            mp_context=multiprocessing.get_context("spawn"),
            initializer=_set_up_worker,
            initargs=(task,),
        )

    def submit(self, block: Block) -> Future[BlockResult]:
        """Starts work on a block."""
        try:
            return self._pool.submit(_encode, b"", block)
        except BrokenProcessPool as error:
            return _failed(error)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Ends the workers when they are through with what they have begun."""
        self._pool.shutdown(cancel_futures=True)


class RayCluster(Engine):
    """Works on a Ray cluster; every node needs this package installed, and no shared files.

    Args:
        task: What is to be done with every block.
        workers: Most blocks at work at a time; ``None`` is one for each CPU of the cluster.
        address: The cluster, as for ``ray.init``.

    Raises:
        ValueError: If Ray is not installed or there is no cluster.
    """

    def __init__(self, task: Task, workers: int | None, address: str) -> None:
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
        self._task = ray.put(task)
        self._key = os.urandom(16)
        self._encode = ray.remote(num_cpus=1, scheduling_strategy="SPREAD")(_encode_on_ray)

    def submit(self, block: Block) -> Future[BlockResult]:
        """Starts work on a block; Ray starts it again where a node dies."""
        try:
            return self._encode.remote(self._key, self._task, block).future()
        except self.deaths as error:
            return _failed(error)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Leaves the cluster, if it was joined here."""
        if self._ours:
            self._ray.shutdown()


def _failed(error: Exception) -> Future[BlockResult]:
    future: Future[BlockResult] = Future()
    future.set_exception(error)
    return future


def _knock(address: str) -> None:
    # Ray itself would try for many minutes.
    named = re.fullmatch(r"(?:ray://)?([^/:]+):(\d+)", address)
    if named:
        socket.create_connection((named[1], int(named[2])), _LONGEST_WAIT).close()


def _set_up_worker(task: Task) -> None:
    # Ctrl-C reaches every process of a terminal; the driver decides what it means.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # A worker is one thread: there is one worker for each core.
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    threading.Thread(target=_end_with_parent, daemon=True).start()
    _set_up_encoder(b"", task)


def _end_with_parent() -> None:
    # A pool's workers wait on a pipe that they themselves hold open: a killed driver closes nothing.
    parent = multiprocessing.parent_process()
    if parent is not None:
        wait([parent.sentinel])
        os._exit(1)


# One encoder to a worker: that of the conversion it last worked for.
_encoders: dict[bytes, BlockEncoder] = {}


def _set_up_encoder(key: bytes, task: Task) -> None:
    _encoders.clear()
    _encoders[key] = BlockEncoder(task)


def _encode(key: bytes, block: Block) -> BlockResult:
    return _encoders[key].encode(block)


def _encode_on_ray(key: bytes, task: Task, block: Block) -> BlockResult:
    # Ray's workers know nothing of each other's start, and outlive a conversion.
    if key not in _encoders:
        os.environ["TOKENIZERS_PARALLELISM"] = "false"
        _set_up_encoder(key, task)
    return _encode(key, block)
