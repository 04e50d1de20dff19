"""Where scenarios run: here, on all cores, or on Ray; one small interface."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from itertools import islice
from multiprocessing import get_context
from typing import Any, Protocol, TypeVar

from plansim.errors import ExecutionError, MissingExtraError

T = TypeVar("T")
R = TypeVar("R")

AHEAD = 4
"""Tasks handed out per worker before one comes back: keeps all busy and memory flat."""


class Executor(Protocol):
    """Runs a function over tasks and yields results as they finish, in any order."""

    def run(self, function: Callable[[T], R], tasks: Iterable[T]) -> Iterator[R]:
        """Yield ``function(task)`` for every task."""


class Serial:
    """One after the other, in this process."""

    def run(self, function: Callable[[T], R], tasks: Iterable[T]) -> Iterator[R]:
        """Yield results in order."""
        yield from map(function, tasks)


class Processes:
    """A pool of processes on this machine."""

    def __init__(self, workers: int | None = None) -> None:
        self.workers = workers or len(os.sched_getaffinity(0))

    def run(self, function: Callable[[T], R], tasks: Iterable[T]) -> Iterator[R]:
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
                "a worker process died (out of memory?); the results so far are kept, "
                "the same command goes on from them; --workers 1 needs least memory"
            ) from None
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


class Ray:
    """Ray: an existing cluster when there is an address, one embedded in this process otherwise."""

    def __init__(self, workers: int | None = None, address: str | None = None) -> None:
        self.workers, self.address = workers, address

    def run(self, function: Callable[[T], R], tasks: Iterable[T]) -> Iterator[R]:
        """Yield results as they finish."""
        ray = _import_ray()
        here = not ray.is_initialized()
        if here:
            address = self.address or os.environ.get("RAY_ADDRESS")
            settings: dict[str, Any] = {} if address else {"num_cpus": self.workers}
            ray.init(address=address, include_dashboard=False, log_to_driver=False, **settings)
        try:
            remote = ray.remote(max_retries=2)(function)
            queue = iter(tasks)
            ahead = AHEAD * max(1, int(ray.cluster_resources().get("CPU", 1)))
            running = [remote.remote(task) for task in islice(queue, ahead)]
            while running:
                done, running = ray.wait(running, num_returns=1)
                for reference in done:
                    yield ray.get(reference)
                    running += [remote.remote(task) for task in islice(queue, 1)]
        finally:
            if here:
                ray.shutdown()


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
