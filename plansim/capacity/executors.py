"""Where scenarios run: here, on all cores, or on Ray; one small interface."""

from __future__ import annotations

import logging
import os
import socket
import threading
import time
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from itertools import chain, islice
from multiprocessing import get_context
from typing import Any, Protocol, TypeVar

from plansim.errors import ExecutionError, MissingExtraError

T = TypeVar("T")
R = TypeVar("R")

AHEAD = 4
"""Tasks handed out per worker before one comes back: keeps all busy and memory flat."""

KEPT = "the results so far are kept, the same command goes on from them"


class Executor(Protocol):
    """Runs a function over tasks and yields results as they finish, in any order."""

    def run(self, function: Callable[[T], R], tasks: Iterable[T]) -> Generator[R]:
        """Yield ``function(task)`` for every task; `close` ends what was started for it."""
        ...


class Serial:
    """One after the other, in this process."""

    def run(self, function: Callable[[T], R], tasks: Iterable[T]) -> Generator[R]:
        """Yield results in order."""
        yield from map(function, tasks)


class Processes:
    """A pool of processes on this machine."""

    def __init__(self, workers: int | None = None) -> None:
        self.workers = workers or len(os.sched_getaffinity(0))

    def run(self, function: Callable[[T], R], tasks: Iterable[T]) -> Generator[R]:
        """Yield results as they finish; leaving early cancels what has not begun."""
        queue = iter(tasks)
        pool = ProcessPoolExecutor(
            self.workers, mp_context=get_context("spawn"), initializer=_begin, initargs=(os.getpid(),)
        )
        try:
            running: set[Future[R]] = {
                pool.submit(function, task) for task in islice(queue, AHEAD * self.workers)
            }
            while running:
                done, running = wait(running, return_when=FIRST_COMPLETED)
                for future in done:
                    yield future.result()
                    running |= {pool.submit(function, task) for task in islice(queue, 1)}
        except BrokenProcessPool:
            raise ExecutionError(
                f"a worker process died (out of memory?); {KEPT}; --workers 1 needs least memory"
            ) from None
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


class Ray:
    """Ray: an existing cluster when there is an address, one embedded in this process otherwise.

    An embedded cluster ends with the sweep. After ``kill -9`` Ray's own processes notice within a minute.
    """

    def __init__(self, workers: int | None = None, address: str | None = None) -> None:
        self.workers, self.address = workers, address

    def run(self, function: Callable[[T], R], tasks: Iterable[T]) -> Generator[R]:
        """Yield results as they finish; without a task nothing is started."""
        ray = _import_ray()
        queue = iter(tasks)
        first = list(islice(queue, 1))
        if not first:
            return
        here = not ray.is_initialized()
        if here:
            self._start(ray)
        try:
            remote = ray.remote(max_retries=2)(function)
            ahead = AHEAD * max(1, int(ray.cluster_resources().get("CPU", 1)))
            running = [remote.remote(task) for task in chain(first, islice(queue, ahead - 1))]
            while running:
                done, running = ray.wait(running, num_returns=1)
                for reference in done:
                    yield ray.get(reference)
                    running += [remote.remote(task) for task in islice(queue, 1)]
        except _losses(ray) as error:
            raise ExecutionError(f"Ray gave a task up ({_last_line(error)}); {KEPT}") from None
        finally:
            if here:
                ray.shutdown()

    def _start(self, ray: Any) -> None:  # noqa: ANN401  (a module)
        """Join the cluster at the address, or start one here that reports nothing to anybody."""
        address = self.address or os.environ.get("RAY_ADDRESS")
        settings: dict[str, Any] = {} if address else {"num_cpus": self.workers}
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        try:
            _knock(address)  # Ray itself would wait for minutes
            ray.init(
                address=address,
                include_dashboard=False,
                log_to_driver=False,
                logging_level=logging.ERROR,
                **settings,
            )
        except (OSError, ValueError, RuntimeError) as error:
            where = f"the Ray cluster at {address}" if address else "Ray on this machine"
            raise ExecutionError(
                f"{where} cannot be reached ({_last_line(error)}); "
                "unset RAY_ADDRESS for an embedded one, or use --executor processes"
            ) from None


def _losses(ray: Any) -> tuple[type[Exception], ...]:  # noqa: ANN401  (a module)
    """Return what is raised when a worker or a node is gone for good."""
    e = ray.exceptions
    return (e.WorkerCrashedError, e.NodeDiedError, e.OutOfMemoryError, e.ObjectLostError, e.RaySystemError)


def _knock(address: str | None) -> None:
    """Open and close a connection to ``host:port``; other kinds of address are left to Ray."""
    host, _, port = (address or "").rpartition(":")
    if host and "/" not in host and port.isdigit():
        socket.create_connection((host, int(port)), timeout=10.0).close()


def _last_line(error: Exception) -> str:
    """Return what an error says; above it Ray prints the worker's stack."""
    return (str(error).strip().splitlines() or [type(error).__name__])[-1].strip()


def _import_ray() -> Any:  # noqa: ANN401  (ray ships no annotations of its own)
    try:
        import ray
    except ImportError:
        raise MissingExtraError("--executor ray", "ray", "ray") from None
    return ray


def _begin(parent: int) -> None:
    """Keep a worker's linear algebra on its own core, and end it when its parent is killed."""
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ.setdefault(name, "1")

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1.0)
        os._exit(1)  # nobody is left to hand results to

    threading.Thread(target=watch, daemon=True).start()


EXECUTORS: dict[str, Callable[..., Executor]] = {
    "processes": Processes,
    "serial": lambda _workers=None: Serial(),
    "ray": Ray,
}
"""Name -> what makes it from a number of workers."""
