"""How fast the simulator is, as ratios to a reference in the same run: python tests/benchmarks/simulate.py.

The reference is one million additions of floats in a plain loop, so that ratios travel between machines.
"""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1] / "simulate"))

from stepcosts import step_costs

from plansim.costs.build import step_costs as costs_of
from plansim.costs.layout import Layout
from plansim.costs.step import Bucket, StageEnd
from plansim.hardware.fabric import Fabric, FabricLevel
from plansim.hardware.read import load_profile, with_nodes
from plansim.hardware.routing import capacities, route
from plansim.hardware.topology import build_topology
from plansim.plan.grid import AXES, Grid, grid_of
from plansim.plan.model import Job, Parallel, Plan
from plansim.simulate import simulate_step
from plansim.simulate.crossing import crossing
from plansim.simulate.events import simulate_events
from plansim.simulate.flows import Flow, simulate_flows
from plansim.simulate.fold import Spread
from plansim.simulate.network import Link, Network, Use
from plansim.simulate.ring import ring_all_reduce
from plansim.simulate.run import share_links
from plansim.simulate.world import simulate_world
from plansim.workload.read import load_model


def cpu_s(work: Callable[[], object], repeats: int = 3) -> float:
    """Return the least CPU time of a few runs, after one to warm up caches."""
    work()
    times = []
    for _ in range(repeats):
        begin = time.process_time()
        work()
        times.append(time.process_time() - begin)
    return min(times)


def reference() -> float:
    """Add a million floats in a loop."""
    total = 0.0
    for _ in range(1_000_000):
        total += 1.0
    return total


def job(pp: int, m: int):
    """Return costs with gradient buckets on every stage."""
    stages = tuple(
        StageEnd(
            reductions=tuple(
                Bucket(nbytes=1, comm_s=0.1, ready_fraction=(i + 1) / 4, chunk=c) for i in range(4)
            ),
            optimizer_s=0.1,
        )
        for c in range(pp)
    )
    return step_costs(pp, m, send=0.01, stages=stages)


def shared(costs) -> Network:
    """Return a network where every stage sends and reduces over the NICs of its own node."""
    pp = costs.pp
    links = tuple(Link("ib", f"{way} node {s}", 2e11) for way in ("out of", "into") for s in range(pp))
    traffic = [((s, 0.1, "all_reduce"), Use(((s, 0.9), (pp + s, 0.9)), 22e9)) for s in range(pp)]
    sends = [(("F", s), Use(((s, 0.8), (pp + s + 1, 0.8)), 20e9)) for s in range(pp - 1)]
    sends += [(("B", s), Use(((s, 0.8), (pp + s - 1, 0.8)), 20e9)) for s in range(1, pp)]
    return Network(links, traffic=tuple(traffic), sends=tuple(sends))


def stragglers(world: int, count: int) -> Spread:
    """Return `count` random ranks that are up to twice as slow."""
    rng = np.random.default_rng(0)
    ranks = rng.choice(world, count, replace=False).tolist()
    return Spread(slowdown=dict(zip(ranks, (1 + rng.random(count)).tolist(), strict=True)))


def plan_on(world: int, dp: int, pp: int):
    """Return (layout, costs, grid) of a 1T model on `world` devices of 8-GPU nodes."""
    plan = Plan(
        model="gpt-1t",
        profile="h100x8",
        job=Job(global_batch=dp * 4 * pp, seq_len=2048),
        parallel=Parallel(dp=dp, tp=8, pp=pp, microbatch=1, sequence_parallel=True, zero_stage=1),
    )
    layout = Layout.of(load_model("gpt-1t"), with_nodes(load_profile("h100x8"), world // 8), plan)
    return layout, costs_of(layout), grid_of(plan)


def fat_tree_flows():
    """Return 256 flows between random devices of a 1,024-device fat tree, and its links."""
    nvlink = FabricLevel(name="nvlink", kind="switch", group=8, bandwidth_bytes_per_s=3e11, latency_s=3e-6)
    rails = FabricLevel(name="ib", kind="fat-tree", rails=8, bandwidth_bytes_per_s=25e9, latency_s=5e-6)
    graph = build_topology(Fabric(levels=(nvlink, rails), devices_per_node=8), 1024)
    rng = np.random.default_rng(0)
    pairs = [rng.choice(1024, 2, replace=False).tolist() for _ in range(256)]
    flows = [Flow(path=route(graph, a, b), nbytes=float(rng.integers(1, 100)) * 1e6) for a, b in pairs]
    return flows, capacities(graph)


def cases() -> dict[str, tuple[Callable[[], object], float]]:
    """Return name to (work, budget in CPU seconds)."""
    rng = np.random.default_rng(0)
    million = Grid(axes=AXES, sizes=(32, 4096, 1, 8))
    large = Grid(axes=AXES, sizes=(16, 128, 1, 8))
    links = {n: (3e-6 * (1 + rng.random(n)), 25e9 * (1 + rng.random(n))) for n in (1024, 16_384)}
    flows, links_of = fat_tree_flows()
    pipeline, wide = job(16, 512), job(32, 256)
    network = shared(pipeline)
    trillion, crowd = plan_on(16_384, 128, 16), plan_on(1_048_576, 4096, 32)

    def world(case, slow: int) -> object:
        layout, costs, grid = case
        crossing.cache_clear()
        return simulate_world(costs, grid, stragglers(grid.world_size, slow), layout=layout)

    return {
        "1F1B 16 x 512, relaxation": (lambda: simulate_step(pipeline), 5e-3),
        "1F1B 16 x 512, shared links": (lambda: share_links.__wrapped__(pipeline, network), 100e-3),
        "1F1B 16 x 512, SimPy": (lambda: simulate_events(pipeline), 1.0),
        "one step, 16,384 devices": (lambda: simulate_world(pipeline, large), 1.0),
        "one step, 1,048,576 devices": (lambda: simulate_world(wide, million), 1.0),
        "the same, 1,000 stragglers": (
            lambda: simulate_world(wide, million, stragglers(million.world_size, 1000)),
            10.0,
        ),
        "a 1T model on 16,384, shared links": (lambda: world(trillion, 0), 1.0),
        "the same, 20 stragglers": (lambda: world(trillion, 20), 10.0),
        "it on 1,048,576, shared links": (lambda: world(crowd, 0), 1.0),
        "the same, 1,000 stragglers, slowest": (lambda: world(crowd, 1000), 10.0),
        "ring all-reduce, 1,024 ranks": (lambda: ring_all_reduce(2**30, *links[1024]), 20e-3),
        "ring all-reduce, 16,384 ranks": (lambda: ring_all_reduce(2**30, *links[16_384]), 2.0),
        "256 flows, 1,024-device fat tree": (lambda: simulate_flows(flows, links_of), 1.0),
    }


def main() -> None:
    """Print every case with its CPU time, its budget and its ratio to the reference."""
    unit = cpu_s(reference)
    print(f"reference: a million additions {1e3 * unit:.1f} ms CPU")
    for name, (work, budget) in cases().items():
        seconds = cpu_s(work, 2 if budget > 0.5 else 10)
        verdict = "ok" if seconds <= budget else "OVER"
        times = f"{1e3 * seconds:10.2f} ms{seconds / unit:9.2f} x"
        print(f"{name:36}{times}, budget {1e3 * budget:6.0f} ms {verdict}")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(f"peak memory {peak:.2f} GiB")


if __name__ == "__main__":
    main()
