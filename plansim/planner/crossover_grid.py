"""Which compression wins by bandwidth and by number of ranks: the plan with more or fewer replicas."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

from plansim.costs.layout import Layout
from plansim.errors import PlansimError
from plansim.hardware.profile import Profile
from plansim.hardware.read import with_nodes
from plansim.plan.model import Compression, Plan
from plansim.planner.crossover import Evaluate, crossed_level, twins
from plansim.planner.objective import Figures
from plansim.workload.model import Model

BANDWIDTHS = tuple(1.25e7 * 10 ** (i / 3) for i in range(13))
"""100 Mbit/s to 1 Tbit/s in one direction of a link, bytes/s."""

FACTORS = (0.125, 0.25, 0.5, 1, 2, 4, 8, 16)
"""Replicas over those of the plan."""

MOST_COLUMNS = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """The best plan at one bandwidth with one number of ranks.

    Attributes
    ----------
    method : str
        ``none`` where nothing beats it.
    gain : float
        Time to the same loss without compression over that of the best plan.
    """

    bandwidth_bytes_per_s: float
    ranks: int
    method: str
    edges: tuple[str, ...]
    gain: float
    plan: Plan


@dataclass(frozen=True, slots=True, kw_only=True)
class Grid:
    """All cells, ranks ascending, then bandwidths ascending; and the level whose bandwidth varies."""

    level: str
    present_bytes_per_s: float
    cells: tuple[Cell, ...]


def crossover_grid(
    model: Model,
    profile: Profile,
    plan: Plan,
    evaluator_of: Callable[[Profile], Evaluate],
    *,
    bandwidths: Sequence[float] = BANDWIDTHS,
) -> Grid | None:
    """Return the best compression of a plan by bandwidth and ranks; None where no network joins replicas.

    Every replica keeps its share of the batch, so more ranks mean a larger batch. The time is that to the
    same loss by the middle of each method's band. Tensor, pipeline and context degrees stay.
    """
    columns = list(_columns(model, profile, plan))
    if not columns:
        return None
    widest, cluster = columns[-1]
    level = crossed_level(Layout.of(model, cluster, widest))
    if level == 0 and len(profile.fabric) > 1:
        return None  # no column leaves the node
    cells = [
        _cell(one, there, level, bandwidth, evaluator_of)
        for one, there in columns
        for bandwidth in bandwidths
    ]
    found = tuple(c for c in cells if c is not None)
    present = profile.fabric[level]
    if not found:
        return None
    return Grid(level=present.name, present_bytes_per_s=present.bandwidth_bytes_per_s, cells=found)


def _columns(model: Model, profile: Profile, plan: Plan) -> Iterator[tuple[Plan, Profile]]:
    """Yield (plan, cluster) with other numbers of replicas, those nearest to the plan's, ascending."""
    found = []
    for factor in FACTORS:
        p, dp = plan.parallel, plan.parallel.dp * factor
        batch = plan.job.global_batch * factor
        if dp != int(dp) or batch != int(batch):
            continue
        parallel = replace(p, dp=int(dp))
        nodes = parallel.world_size / profile.devices_per_node
        if nodes != int(nodes) or parallel.dp * parallel.cp == 1:
            continue
        job = replace(plan.job, global_batch=int(batch))
        bare = replace(plan, parallel=parallel, job=job, compression=Compression())
        try:
            cluster = with_nodes(profile, int(nodes))
            group = Layout.of(model, cluster, bare).group("dp_cp")
        except PlansimError:
            continue  # a torus that holds no such number, a mixed cluster
        if any(n > 1 for n in group.counts[1:]) or len(group.counts) == 1:
            found.append((bare, cluster))
    nearest = sorted(found, key=lambda c: abs(c[0].parallel.dp.bit_length() - plan.parallel.dp.bit_length()))
    yield from sorted(nearest[:MOST_COLUMNS], key=lambda c: c[0].parallel.dp)


def _cell(
    bare: Plan,
    cluster: Profile,
    level: int,
    bandwidth: float,
    evaluator_of: Callable[[Profile], Evaluate],
) -> Cell | None:
    fabric = list(cluster.fabric)
    fabric[level] = replace(fabric[level], bandwidth_bytes_per_s=bandwidth)
    evaluate = evaluator_of(replace(cluster, fabric=tuple(fabric)))
    plain = evaluate(bare)
    if not isinstance(plain, Figures):
        return None
    best: tuple[float, str, tuple[str, ...], Plan] = (plain.effective_step_s, "none", (), bare)
    for method, edges, plans in twins(bare):
        for one in plans:
            figures = evaluate(one)
            if isinstance(figures, Figures):
                if figures.effective_step_s < best[0] * (1.0 - 1e-9):
                    best = (figures.effective_step_s, method, edges, one)
                break
    seconds, method, edges, plan = best
    return Cell(
        bandwidth_bytes_per_s=bandwidth,
        ranks=bare.parallel.world_size,
        method=method,
        edges=edges,
        gain=plain.effective_step_s / seconds,
        plan=plan,
    )
