"""The network of a plan's step: its links, and what every bucket, message and collective takes of them."""

from __future__ import annotations

from collections import Counter
from math import floor, frexp, ldexp, prod

from plansim.costs.buckets import comm_s
from plansim.costs.build import BLOCK_AXES
from plansim.costs.collectives.ring import ring_share
from plansim.costs.hostdata import on_host
from plansim.costs.layout import Layout
from plansim.costs.step import Bucket, ChunkCosts, Parts, StepCosts
from plansim.hardware.fabric import Fabric, GroupShape
from plansim.schedules import find_schedule
from plansim.simulate.crossing import Crossing, crossing
from plansim.simulate.groups import Axes, Traffic
from plansim.simulate.network import Burst, Network, Use
from plansim.simulate.replicas import PACED, paced_costs
from plansim.simulate.run import Run, run_step
from plansim.workload.operators import Block, Communication

NETWORK = "network of the last replica"
"""Under which a layout remembers it."""

SHARED = "step of the last replica"
"""Under which a layout remembers it, with what its transfers cost each other."""

MOST_PLANNED = 2048
"""Actions of a pipeline up to its full swing; beyond, a search has no time to share links for it."""


def planned(layout: Layout) -> bool:
    """Return whether planning shares links for a plan: not for pipelines of very many chunks.

    There transfers are taken to be apart, which changes such steps by about a thousandth.
    """
    p = layout.plan.parallel
    actions = 2 * p.pp * p.virtual_stages * min(layout.plan.num_microbatches, 3 * p.pp)
    return actions <= MOST_PLANNED


def network_of(layout: Layout, costs: StepCosts) -> Network | None:
    """Return the network of a step, or None where nothing is sent.

    None too on a calibrated CPU host, whose measured durations already hold what its ranks cost each other.
    That of the layout's own durations is remembered.
    """
    if costs is not layout.memo.get(PACED):
        return _network_of(layout, costs)
    if NETWORK not in layout.memo:
        layout.memo[NETWORK] = _network_of(layout, costs)
    found: Network | None = layout.memo[NETWORK]
    return found


def shared_run(layout: Layout) -> Run:
    """Return the step of the layout's own durations, its transfers on the links they share; remembered."""
    if SHARED not in layout.memo:
        costs = paced_costs(layout)
        layout.memo[SHARED] = run_step(costs, network_of(layout, costs))
    found: Run = layout.memo[SHARED]
    return found


def _network_of(layout: Layout, costs: StepCosts) -> Network | None:
    kinds = traffic_of(layout, costs)
    if not kinds or on_host(layout) is not None:
        return None
    crossed = crossing(layout.fabric, axes_of(layout), kinds)
    owner = owners(costs)
    return Network(
        links=crossed.links,
        traffic=tuple(bucket_uses(layout, costs, crossed).items()),
        sends=tuple(send_uses(layout, costs, owner, crossed).items()),
        bursts=tuple(burst_uses(layout, costs, owner, crossed).items()),
    )


def axes_of(layout: Layout) -> Axes:
    """Return the axes of a plan as its ranks lie on the devices."""
    p = layout.plan.parallel
    sizes = tuple((axis, getattr(p, axis)) for axis in layout.plan.placement)
    return Axes(sizes=sizes, ep=p.ep, zero_group=p.zero_group or 0, folded=p.folds_experts)


def owners(costs: StepCosts) -> list[int]:
    """Return the stage of every chunk."""
    schedule = find_schedule(costs.schedule)
    return [schedule.rank_of_chunk(c, costs.pp, costs.virtual_stages) for c in range(len(costs.chunks))]


def traffic_of(layout: Layout, costs: StepCosts) -> tuple[Traffic, ...]:
    """Return every kind of traffic of the step, stage by stage."""
    found: dict[Traffic, None] = {}
    owner = owners(costs)
    for stage, bucket in _buckets(costs):
        if bucket.comm_s > 0:
            found[bucket.axis, "ring", stage, stage] = None
    for chunk, cost in enumerate(costs.chunks):
        here = owner[chunk]
        for other, seconds in ((chunk + 1, cost.send_forward_s), (chunk - 1, cost.send_backward_s)):
            if seconds > 0 and 0 <= other < len(owner) and owner[other] != here:
                found["pp", "message", here, owner[other]] = None
        for axis in BLOCK_AXES:
            if _in_stream(cost, axis) > 0:
                for kind in _collectives(layout, chunk, axis):
                    found[axis, kind, here, here] = None
    return tuple(found)


def _buckets(costs: StepCosts) -> list[tuple[int, Bucket]]:
    """Return every bucket with its stage; those of a pass once."""
    owner = owners(costs)
    found = [(stage, b) for stage, end in enumerate(costs.stages) for b in (*end.reductions, *end.gathers)]
    for chunk, cost in enumerate(costs.chunks):
        found += [(owner[chunk], b) for b in (*cost.gathers_per_pass, *cost.reductions_per_pass)]
    return found


def _in_stream(cost: ChunkCosts, axis: str) -> float:
    """Return how long a chunk's passes communicate along an axis in their own stream, seconds."""
    passes = (cost.forward, cost.recompute, cost.backward_input, cost.backward_weight)
    return sum(float(getattr(part, f"{axis}_s")) for part in passes)


def _collectives(layout: Layout, chunk: int, axis: str) -> tuple[str, ...]:
    """Return the kinds of traffic of a chunk's collectives along an axis."""
    names = {
        name
        for block in set(layout.chunks[chunk])
        for op in block.operators
        if isinstance(op, Communication) and op.axis == axis
        for name in (op.collective, op.backward)
        if name
    }
    return tuple(sorted({"exchange" if name == "all_to_all" else "ring" for name in names if name != "none"}))


def _flows(shape: GroupShape, fabric: Fabric) -> float:
    """Return over how many flows a group's way out of a unit is spread: a NIC each, as far as they go."""
    outer = max((i for i, count in enumerate(shape.counts) if count > 1), default=0)
    if outer == 0:
        return 1.0
    return max(1.0, min(float(prod(shape.counts[:outer])), fabric.uplinks(outer)))


def _use(crossed: Crossing, traffic: Traffic, nbytes: float, seconds: float, flows: float) -> Use:
    """Return the use of a transfer in which each rank sends `nbytes` in `seconds`."""
    loads = []
    for link, times, total in crossed.of(traffic):
        load = nbytes / seconds / crossed.links[link].capacity_bytes_per_s
        loads.append((link, times * floored(min(load, 1.0 / total))))
    return Use(tuple(loads), nbytes / seconds / flows)


def floored(load: float) -> float:
    """Return a load in 22 bits: times a count of ranks it is still exact, and so are sums of such."""
    mantissa, exponent = frexp(load)
    return ldexp(floor(mantissa * 2**22) / 2**22, exponent)


def bucket_uses(layout: Layout, costs: StepCosts, crossed: Crossing) -> dict[tuple[int, float, str], Use]:
    """Return the use of every bucket."""
    found: dict[tuple[int, float, str], Use] = {}
    for stage, bucket in _buckets(costs):
        key = (stage, bucket.comm_s, bucket.what)
        if bucket.comm_s <= 0 or key in found:
            continue
        shape = layout.group(bucket.axis)
        plain_s = comm_s(layout, bucket.axis, bucket.what, bucket.nbytes)
        sent = bucket.nbytes * ring_share(bucket.what, shape.size) * min(1.0, bucket.comm_s / plain_s)
        traffic = (bucket.axis, "ring", stage, stage)
        found[key] = _use(crossed, traffic, sent, bucket.comm_s, _flows(shape, layout.fabric))
    return found


def send_uses(
    layout: Layout, costs: StepCosts, owner: list[int], crossed: Crossing
) -> dict[tuple[str, int], Use]:
    """Return the use of every message between stages."""
    p = layout.plan.parallel
    found: dict[tuple[str, int], Use] = {}
    for chunk, cost in enumerate(costs.chunks):
        ways = (
            ("F", chunk, chunk + 1, cost.send_forward_s),
            ("B", chunk - 1, chunk - 1, cost.send_backward_s),
        )
        for way, boundary, other, seconds in ways:
            traffic = ("pp", "message", owner[chunk], owner[other] if 0 <= other < len(owner) else -1)
            if traffic not in crossed.times or seconds <= 0:
                continue
            nbytes = layout.chunks[boundary][-1].boundary_bytes
            share = nbytes if p.sequence_parallel else nbytes / p.tp
            plain_s = comm_s(layout, "pp", "send_recv", share)
            found[way, chunk] = _use(crossed, traffic, share * min(1.0, seconds / plain_s), seconds, 1.0)
    return found


def burst_uses(
    layout: Layout, costs: StepCosts, owner: list[int], crossed: Crossing
) -> dict[tuple[str, int], tuple[Burst, ...]]:
    """Return the collectives within every action."""
    found: dict[tuple[str, int], tuple[Burst, ...]] = {}
    known: dict[tuple[int, int], dict[str, tuple[Burst, ...]]] = {}
    for chunk, cost in enumerate(costs.chunks):
        key = (id(cost), owner[chunk])
        if key not in known:
            known[key] = _bursts(layout, cost, chunk, owner[chunk], crossed)
        found.update({(kind, chunk): bursts for kind, bursts in known[key].items() if bursts})
    return found


def _bursts(
    layout: Layout, cost: ChunkCosts, chunk: int, stage: int, crossed: Crossing
) -> dict[str, tuple[Burst, ...]]:
    """Return the collectives within each kind of action of a chunk."""
    passes = {"F": cost.forward, "I": cost.recompute + cost.backward_input, "W": cost.backward_weight}
    passes["B"] = passes["I"] + passes["W"]
    uses = {axis: _in_stream_use(layout, chunk, axis, stage, crossed) for axis in BLOCK_AXES}
    found = {}
    for kind, part in passes.items():
        total, bursts = part.total_s, []
        for axis, use in uses.items():
            seconds = _axis_s(part, axis)
            if use is not None and seconds > 0:
                bursts.append(Burst(seconds / total, use, axis))
        found[kind] = tuple(bursts)
    return found


def _axis_s(part: Parts, axis: str) -> float:
    return float(getattr(part, f"{axis}_s"))


def _in_stream_use(layout: Layout, chunk: int, axis: str, stage: int, crossed: Crossing) -> Use | None:
    """Return the use of a chunk's collectives along an axis, on average over their bytes."""
    seconds, sent = 0.0, dict[str, float]()
    for block, count in Counter(layout.chunks[chunk]).items():
        block_s, by_kind = _block_bytes(layout, block, axis)
        seconds += count * block_s
        for kind, nbytes in by_kind:
            sent[kind] = sent.get(kind, 0.0) + count * nbytes
    if seconds <= 0:
        return None
    parts = [
        (link, times, total, nbytes / seconds / crossed.links[link].capacity_bytes_per_s)
        for kind, nbytes in sent.items()
        for link, times, total in crossed.of((axis, kind, stage, stage))
    ]
    asked, loads = dict[int, float](), dict[int, float]()
    for link, _, total, load in parts:
        asked[link] = asked.get(link, 0.0) + total * load
    for link, times, _, load in parts:
        loads[link] = loads.get(link, 0.0) + times * floored(load / max(1.0, asked[link]))
    rate = sum(sent.values()) / seconds / _flows(layout.group(axis), layout.fabric)
    return Use(tuple(loads.items()), rate)


def _block_bytes(layout: Layout, block: Block, axis: str) -> tuple[float, tuple[tuple[str, float], ...]]:
    """Return the seconds and the bytes sent, by kind, of one block's collectives along an axis."""
    key = ("network", block, axis)
    if key not in layout.memo:
        seconds, sent = 0.0, dict[str, float]()
        for op in block.operators:
            if not isinstance(op, Communication) or op.axis != axis:
                continue
            for name in (op.collective, op.backward):
                if name and name != "none":
                    seconds += op.repeat * comm_s(layout, axis, name, op.nbytes)
                    kind = "exchange" if name == "all_to_all" else "ring"
                    nbytes = op.repeat * op.nbytes * ring_share(name, layout.group(axis).size)
                    sent[kind] = sent.get(kind, 0.0) + nbytes
        layout.memo[key] = (seconds, tuple(sent.items()))
    found: tuple[float, tuple[tuple[str, float], ...]] = layout.memo[key]
    return found
