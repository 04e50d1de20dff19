"""Start ranks, collect what they return, end all as soon as one fails; join when torchrun started us."""

from __future__ import annotations

import faulthandler
import gc
import io
import multiprocessing
import os
import pickle
import signal
import socket
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable
from contextlib import closing, suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any, Protocol

from plansim.errors import ExecutionError, PlansimError
from plansim.execute.system import end_with_parent

LOG_TAIL_LINES = 20
CRASH = "Fatal Python error"
"""How Python's report of a crash begins; the innermost call comes first."""
NOISE = "USDT:"
"""How lines of torch's profiler begin that tell a user nothing."""
GRACE_S = 1.0
"""After the first failure, how long the other ranks may still say that they failed first."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rendezvous:
    """Where the ranks of one job meet.

    Attributes
    ----------
    listen_fd : int or None
        The socket that rank 0 answers on, bound before the ranks start so that the port cannot be lost to
        another job.
    joined : bool
        Whether a launcher such as torchrun started the ranks and set the meeting point up.
    """

    rank: int
    world_size: int
    host: str = "127.0.0.1"
    port: int = 0
    listen_fd: int | None = None
    local_rank: int = 0
    joined: bool = False


Worker = Callable[[Rendezvous], Any]


class Place(Protocol):
    """Hosts that ranks are put on, when they do not simply run here (see `plansim.execute.testbed`)."""

    def address(self, rank: int) -> str:
        """Return the address the others reach a rank at."""
        ...

    def listen(self, rank: int, port: int) -> socket.socket:
        """Return a listening socket on a rank's host."""
        ...

    def enter(self, rank: int) -> None:
        """Move the calling process onto a rank's host."""
        ...


def under_torchrun() -> bool:
    """Return whether torchrun (or a like launcher) has already started this process as a rank."""
    return all(name in os.environ for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"))


def rendezvous_from_environment() -> Rendezvous:
    """Return the meeting point that torchrun set up."""
    return Rendezvous(
        rank=int(os.environ["RANK"]),
        world_size=int(os.environ["WORLD_SIZE"]),
        local_rank=int(os.environ.get("LOCAL_RANK", os.environ["RANK"])),
        host=os.environ["MASTER_ADDR"],
        port=int(os.environ["MASTER_PORT"]),
        joined=True,
    )


def launch(
    worker: Worker,
    world_size: int,
    *,
    timeout_s: float,
    port: int = 0,
    fork: bool = True,
    place: Place | None = None,
) -> list[Any]:
    """Return what `worker` returned on every rank of a new job on this machine.

    Parameters
    ----------
    worker : callable
        Called with a `Rendezvous` in a process of its own; its result must pickle.
    world_size : int
        Ranks to start.
    timeout_s : float
        Seconds after which the job is ended.
    port : int
        Port to meet at; 0 chooses a free one.
    fork : bool
        Fork this process (fast: torch is already imported). CUDA, once used here, needs fresh processes
        instead.
    place : Place, optional
        Hosts for the ranks; None runs them all here.

    Raises
    ------
    ExecutionError
        With the first failing rank and the end of its log; no rank is left running.
    """
    host = place.address(0) if place else "127.0.0.1"
    context = multiprocessing.get_context("fork" if fork and hasattr(os, "fork") else "spawn")
    with (
        tempfile.TemporaryDirectory(prefix="plansim-run-") as folder,
        closing(_listen(port, place)) as listener,
    ):
        job = _Job(Path(folder), world_size, place)
        try:
            for rank in range(world_size):
                meet = Rendezvous(
                    rank=rank,
                    world_size=world_size,
                    host=host,
                    port=listener.getsockname()[1],
                    local_rank=rank,
                    listen_fd=listener.fileno() if rank == 0 and fork else None,
                )
                job.start(context, worker, meet)
            if not fork:
                listener.close()
            return job.results(timeout_s)
        finally:
            job.end()


def _listen(port: int, place: Place | None) -> socket.socket:
    if place:
        return place.listen(0, port)
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    try:
        if port:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(("127.0.0.1", port))
        listener.listen(128)
    except OSError as error:
        listener.close()
        raise ExecutionError(
            f"port {port} cannot be used: {error.strerror or error}; leave it out to choose a free one"
        ) from None
    return listener


class _Job:
    """The processes of one job, seen from their parent."""

    def __init__(self, folder: Path, world_size: int, place: Place | None = None) -> None:
        self.folder = folder
        self.place = place
        self.world_size = world_size
        self.processes: list[Any] = []
        self.pipes: list[Connection] = []

    def start(self, context: Any, worker: Worker, meet: Rendezvous) -> None:
        receive, send = context.Pipe(duplex=False)
        process = context.Process(
            target=_rank_main,
            args=(worker, meet, send, str(self._log(meet.rank)), self.place),
            name=f"plansim-rank-{meet.rank}",
            daemon=True,
        )
        with warnings.catch_warnings():
            warnings.simplefilter(
                "ignore", DeprecationWarning
            )  # fork beside threads: the child starts its own
            process.start()
        send.close()
        self.processes.append(process)
        self.pipes.append(receive)

    def results(self, timeout_s: float) -> list[Any]:
        """Wait for every rank's result; raise at the first failure."""
        deadline = time.monotonic() + timeout_s
        found: dict[int, Any] = {}
        while len(found) < self.world_size:
            waiting = {self.pipes[r]: r for r in range(self.world_size) if r not in found}
            ready = wait(list(waiting), timeout=max(0.0, deadline - time.monotonic()))
            if not ready:
                raise self._timed_out(sorted(waiting.values()), timeout_s)
            for pipe in ready:
                rank = waiting[pipe]  # type: ignore[index]
                message = self._receive(rank)
                if message[0] == "failed":
                    raise self._failure(rank, message)
                found[rank] = message[1]
        for process in self.processes:
            process.join(GRACE_S)
        return [found[rank] for rank in range(self.world_size)]

    def _receive(self, rank: int) -> tuple[str, Any, float]:
        try:
            kind, value, when = pickle.loads(self.pipes[rank].recv_bytes())  # noqa: S301  (from our own child)
        except EOFError:
            self.processes[rank].join(GRACE_S)
            return ("failed", _how_it_ended(self.processes[rank].exitcode), float("inf"))
        return kind, value, when

    def _failure(self, rank: int, message: tuple[str, Any, float]) -> BaseException:
        """Return the error of the rank that failed first: a peer's lost connection may speak up before it."""
        failures = {rank: message}
        end = time.monotonic() + GRACE_S
        while time.monotonic() < end:
            waiting = {self.pipes[r]: r for r in range(self.world_size) if r not in failures}
            ready = wait(list(waiting), timeout=end - time.monotonic()) if waiting else []
            if not ready:
                break
            for pipe in ready:
                other = waiting[pipe]  # type: ignore[index]
                received = self._receive(other)
                failures[other] = received
        real = {r: m for r, m in failures.items() if m[0] == "failed"}
        killed = [r for r, m in real.items() if m[2] == float("inf")]
        first = killed[0] if killed else min(real, key=lambda r: real[r][2])
        error = real[first][1]
        if isinstance(error, PlansimError):
            return error
        tail = self._tail(first)
        return ExecutionError(f"rank {first} of {self.world_size} failed: {error}", rank=first, log_tail=tail)

    def _timed_out(self, silent: list[int], timeout_s: float) -> ExecutionError:
        names = ", ".join(str(r) for r in silent[:8]) + (", ..." if len(silent) > 8 else "")
        return ExecutionError(
            f"no result from rank {names} within {timeout_s:g} s (--timeout); the run was ended",
            rank=silent[0],
            log_tail=self._tail(silent[0]),
        )

    def _log(self, rank: int) -> Path:
        return self.folder / f"rank{rank}.log"

    def _tail(self, rank: int) -> str:
        try:
            text = self._log(rank).read_text(errors="replace")
        except OSError:
            return ""
        lines = [line for line in text.splitlines() if not line.startswith(NOISE)]
        crashes = [i for i, line in enumerate(lines) if line.startswith(CRASH)]
        told = lines[crashes[-1] :][:LOG_TAIL_LINES] if crashes else lines[-LOG_TAIL_LINES:]
        return "\n".join(told)

    def end(self) -> None:
        """End every process that is still there."""
        for process in self.processes:
            if process.is_alive():
                process.kill()
        for process in self.processes:
            process.join()
            process.close()
        for pipe in self.pipes:
            pipe.close()


def _how_it_ended(exitcode: int | None) -> str:
    if exitcode is not None and exitcode < 0:
        with suppress(ValueError):
            return f"the process was killed by {signal.Signals(-exitcode).name}"
    return f"the process ended with code {exitcode} before it gave a result"


def _rank_main(
    worker: Worker, meet: Rendezvous, pipe: Connection, log: str, place: Place | None = None
) -> None:
    """Run one rank: output to its log, result or error through the pipe, and never outlive the parent."""
    end_with_parent(signal.SIGKILL)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent hears Ctrl-C and ends us
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    _redirect(log)
    faulthandler.enable(sys.stderr, all_threads=False)  # a crash outside Python leaves the line in the log
    warnings.resetwarnings()  # the parent may turn warnings into errors; ours are only logged
    gc.freeze()  # what the parent has loaded stays: a collection between steps looks at this rank's own
    try:
        if place:
            place.enter(meet.rank)
        if not meet.joined:
            os.environ["LOCAL_WORLD_SIZE"] = str(_ranks_on_host(meet, place))
        message = ("done", worker(meet), time.time())
    except BaseException as error:  # noqa: BLE001  (everything a rank raises is reported by the parent)
        traceback.print_exc()
        sys.stderr.flush()
        message = ("failed", error if isinstance(error, PlansimError) else _one_line(error), time.time())
    pipe.send_bytes(_pickled(message))
    pipe.close()
    os._exit(0 if message[0] == "done" else 1)


def _ranks_on_host(meet: Rendezvous, place: Place | None) -> int:
    """Return how many ranks share a rank's host, as torchrun tells its own."""
    if place is None:
        return meet.world_size
    mine = place.address(meet.rank)
    return sum(place.address(rank) == mine for rank in range(meet.world_size))


def _pickled(message: tuple[str, Any, float]) -> bytes:
    try:
        data = pickle.dumps(message)
        pickle.loads(data)  # noqa: S301  (an error class with its own constructor may not come back)
    except Exception:  # noqa: BLE001
        return pickle.dumps((message[0], str(message[1]), message[2]))
    return data


def _one_line(error: BaseException) -> str:
    text = str(error).strip().splitlines()
    return f"{type(error).__name__}: {text[0] if text else ''}".rstrip(": ")


def _redirect(log: str) -> None:
    out = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    os.dup2(out, 1)
    os.dup2(out, 2)
    os.close(out)
    sys.stdout = io.TextIOWrapper(os.fdopen(1, "wb", closefd=False), line_buffering=True)
    sys.stderr = io.TextIOWrapper(os.fdopen(2, "wb", closefd=False), line_buffering=True)
