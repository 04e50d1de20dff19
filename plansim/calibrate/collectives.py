"""What this machine's collectives cost a step, by size and ranks: wall time, and CPU time of each rank."""

from __future__ import annotations

import math
import os
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
import torch.distributed as dist

from plansim.calibrate.alone import fresh_mesh
from plansim.calibrate.ranks import gloo_job
from plansim.calibrate.within import call_cost
from plansim.calibrate.wrapped import Row, wrapped_costs
from plansim.execute.comm_hooks import HOOKS, FlatBucket, make_hook
from plansim.execute.launch import Place, Rendezvous, launch
from plansim.execute.pace import Computing

SIZES = (2**12, 2**15, 2**17, 2**19, 2**20, 2**21, 2**22, 2**24)
COLLECTIVES = (
    "all_reduce", "all_gather", "reduce_scatter", "all_to_all", "broadcast", "reduce", "send_recv",
)  # fmt: skip
ROOTED = ("broadcast", "reduce", "send_recv")
"""Collectives in which ranks do different things."""

COMPRESSED = tuple(HOOKS)
COMPRESSED_SIZES = (2**20, 2**22, 2**24)


@dataclass(frozen=True, slots=True, kw_only=True)
class CollectiveSample:
    """One timed collective.

    Attributes
    ----------
    nbytes : float
        The whole array, as everywhere in the collective costs: what a rank holds before an all-reduce or
        reduce-scatter, after an all-gather; the message of a send.
    wall_s, cpu_s : float
        Wall time and CPU time of one rank, seconds: of the call and of what it does to the computing after it
        (see `plansim.calibrate.within`). The mean over the ranks: who computes faster waits longer, and a
        step is the mean of computing and the mean of waiting. Of calls with a root, the slowest rank's wall
        time.
    """

    collective: str
    ranks: int
    nbytes: float
    wall_s: float
    cpu_s: float


def measure_collectives(
    ranks: tuple[int, ...],
    *,
    sizes: tuple[int, ...] = SIZES,
    wrapped: bool = True,
    pace_s: float | None = None,
    shared_pace: float = 1.0,
    timeout_s: float = 300.0,
    port: int = 0,
    place: Place | None = None,
) -> list[CollectiveSample]:
    """Return timed gloo collectives for every group size, over this machine's loopback or between hosts.

    With `wrapped` also those of torch's wrappers, and compressed ones. With `pace_s` the times are those of a
    machine at this pace (see `plansim.execute.pace`), whose own piece of computing takes `shared_pace` times
    as long where ranks share a core.
    """
    found: list[CollectiveSample] = []
    for world in ranks:
        rows = launch(partial(_rank, sizes, wrapped), world, timeout_s=timeout_s, port=port, place=place)
        usual = None if pace_s is None else pace_s * (shared_pace if world > (os.cpu_count() or 1) else 1.0)
        for i, (collective, nbytes, *_) in enumerate(rows[0]):
            scale = 1.0 if usual is None else usual / statistics.fmean(row[i][4] for row in rows)
            found.append(
                CollectiveSample(
                    collective=collective,
                    ranks=world,
                    nbytes=float(nbytes),
                    wall_s=scale * _wall_s(collective, [row[i][2] for row in rows]),
                    cpu_s=scale * statistics.fmean(row[i][3] for row in rows),
                )
            )
    return found


def _wall_s(collective: str, seconds: Sequence[float]) -> float:
    return max(seconds) if collective in ROOTED else statistics.fmean(seconds)


def averaged(samples: Sequence[CollectiveSample]) -> list[CollectiveSample]:
    """Return one sample of each collective, size and group: the mean of those of several rounds."""
    groups: dict[tuple[str, int, float], list[CollectiveSample]] = {}
    for s in samples:
        groups.setdefault((s.collective, s.ranks, s.nbytes), []).append(s)
    return [
        replace(
            same[0],
            wall_s=statistics.fmean(s.wall_s for s in same),
            cpu_s=statistics.fmean(s.cpu_s for s in same),
        )
        for same in groups.values()
    ]


def _rank(sizes: tuple[int, ...], wrapped: bool, meet: Rendezvous) -> list[Row]:
    with gloo_job(meet):
        compute, rows = Computing(), []
        for collective in COLLECTIVES:
            group = fresh_mesh().get_group()
            for nbytes in sizes:
                calls = 2 if collective == "send_recv" else 1  # there and back
                wall, cpu, pace = call_cost(
                    _operation(collective, nbytes, group), compute, nbytes=nbytes
                ).paced
                rows.append((collective, nbytes, wall / calls, cpu / calls, pace))
        if not wrapped or meet.world_size == 1:
            return rows
        for method in COMPRESSED:
            for nbytes in COMPRESSED_SIZES:
                work, held = _compressed(method, nbytes)
                rows.append((f"all_reduce:{method}", held, *call_cost(work, compute, nbytes=held).paced))
        return [*rows, *wrapped_costs(compute)]


def _operation(collective: str, nbytes: int, group: Any) -> Callable[[], Any]:
    world, rank = group.size(), group.rank()
    whole = torch.ones(max(world, nbytes // 4 // world * world))
    part = torch.ones(whole.numel() // world)
    if collective == "all_reduce":
        return lambda: dist.all_reduce(whole, group=group)
    if collective == "all_gather":
        return lambda: dist.all_gather_into_tensor(whole, part, group=group)
    if collective == "reduce_scatter":
        return lambda: dist.reduce_scatter_tensor(part, whole, group=group)
    if collective == "all_to_all":
        other = torch.empty_like(whole)
        return lambda: dist.all_to_all_single(other, whole, group=group)
    if collective == "broadcast":
        return lambda: dist.broadcast(whole, src=0, group=group)
    if collective == "reduce":
        return lambda: dist.reduce(whole, dst=0, group=group)
    partner = rank ^ 1

    def send_recv() -> None:
        if partner >= world:
            return
        if rank < partner:
            dist.send(whole, partner, group=group)
            dist.recv(whole, partner, group=group)
        else:
            dist.recv(whole, partner, group=group)
            dist.send(whole, partner, group=group)

    return send_recv


def _compressed(method: str, nbytes: int) -> tuple[Callable[[], Any], int]:
    """Return one compressed average of a bucket of about `nbytes`, and its bytes before compression.

    The bucket is filled by whole transformer layers.
    Low-rank methods treat every shape by itself, and vectors apart: equal matrices alone would be too cheap.
    """
    hidden = 128 if nbytes < 2**22 else 256
    shapes = [s for n in (3, 1, 4) for s in ((n * hidden, hidden), (n * hidden,))]
    shapes += [(hidden, 4 * hidden), (hidden,)]
    layers = max(1, round(nbytes / (4 * sum(math.prod(s) for s in shapes))))
    parameters = [torch.nn.Parameter(torch.zeros(s)) for _ in range(layers) for s in shapes]
    for p in parameters:
        p.grad = torch.randn_like(p)
    hook = make_hook(method, {"start_step": 2} if method == "powersgd" else {}, dist.group.WORLD)
    if hook is None:
        raise ValueError(method)
    bucket = FlatBucket(parameters)
    for _ in range(4 if method == "powersgd" else 0):
        hook(bucket).wait()
    return lambda: hook(bucket).wait(), bucket.buffer().nbytes


def fitted_lines(samples: list[CollectiveSample]) -> list[dict[str, Any]]:
    """Return the points of every collective and group size, and a line through them, as plain data.

    Points are bytes, wall and CPU seconds. The line (base, seconds per byte) has the least relative error, so
    that small messages count as much as large ones; `spread` is the root mean square of what it leaves.
    """
    rows = []
    for collective, ranks in sorted({(s.collective, s.ranks) for s in samples}):
        group = rising([s for s in samples if (s.collective, s.ranks) == (collective, ranks)])
        wall, spread = relative_line([(s.nbytes, s.wall_s) for s in group])
        cpu, _ = relative_line([(s.nbytes, s.cpu_s) for s in group])
        rows.append(
            {
                "collective": collective, "ranks": ranks,
                "base_s": _short(wall[0]), "s_per_byte": _short(wall[1]),
                "cpu_base_s": _short(cpu[0]), "cpu_s_per_byte": _short(cpu[1]), "spread": _short(spread),
                "points": [[s.nbytes, _short(s.wall_s), _short(s.cpu_s)] for s in group],
            }
        )  # fmt: skip
    return rows


def rising(samples: Sequence[CollectiveSample]) -> list[CollectiveSample]:
    """Return the samples by size, no time below that of a smaller message: the least change of logarithms."""
    from scipy.optimize import isotonic_regression

    ordered = sorted(samples, key=lambda s: s.nbytes)

    def smooth(times: list[float]) -> list[float]:
        return [math.exp(x) for x in isotonic_regression([math.log(t) for t in times]).x]

    wall, cpu = smooth([s.wall_s for s in ordered]), smooth([s.cpu_s for s in ordered])
    return [replace(s, wall_s=w, cpu_s=c) for s, w, c in zip(ordered, wall, cpu, strict=True)]


def relative_line(points: list[tuple[float, float]]) -> tuple[tuple[float, float], float]:
    """Return ((base, slope), spread) of the line with the least squared relative error, neither below zero.

    Examples
    --------
    >>> (base, slope), spread = relative_line([(0.0, 1.0), (10.0, 3.0), (20.0, 5.0)])
    >>> round(base, 6), round(slope, 6), round(spread, 6)
    (1.0, 0.2, 0.0)
    """
    from scipy.optimize import nnls

    rows = [[1.0 / t, x / t] for x, t in points]
    scale = max(x for x, _ in points) or 1.0
    (base, slope), rest = nnls([[a, b / scale] for a, b in rows], [1.0] * len(rows))
    return (float(base), float(slope / scale)), float(rest / len(rows) ** 0.5)


def _short(value: float) -> float:
    return float(f"{value:.4g}")
