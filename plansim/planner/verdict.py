"""Whether compressing gradients pays for the best plan, and at which bandwidth it would: both simulated."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from plansim.costs.layout import Layout
from plansim.hardware.profile import Profile
from plansim.plan.model import Method, Plan
from plansim.plan.rule import Rejected
from plansim.planner.objective import Figures
from plansim.planner.result import CompressionVerdict
from plansim.units import format_rate

METHODS = ("int8", "powersgd")
RANGE, BISECTIONS = 256.0, 3
"""How far below the present bandwidth a break-even is looked for, and in how many halvings."""

Evaluate = Callable[[Plan], Figures | Rejected]


def compressed(
    best: Plan, evaluate: Evaluate, methods: tuple[str, ...] = METHODS
) -> list[tuple[float, Plan]]:
    """Return (time to the same progress, plan), best first: the plan with its gradients compressed.

    Where a method cannot replace the traffic of the sharded optimizer, the optimizer is not sharded.
    """
    found: dict[str, tuple[float, Plan]] = {}
    for method in methods:
        for zero in dict.fromkeys((best.parallel.zero_stage, 0)):
            group = best.parallel.zero_group if zero else None
            plan = replace(
                best,
                parallel=replace(best.parallel, zero_stage=zero, zero_group=group),
                compression=replace(best.compression, gradients=Method(method=method), parameters=Method()),
            )
            figures = evaluate(plan)
            if isinstance(figures, Figures):
                found[method] = figures.effective_step_s, plan
                break
    return sorted(found.values(), key=lambda entry: entry[0])


def verdict(
    layout: Layout, evaluator_of: Callable[[Profile], Evaluate], methods: tuple[str, ...] = METHODS
) -> CompressionVerdict | None:
    """Return the verdict for a plan's gradient exchange; None where no gradient crosses the network.

    The best compressed form of the plan is simulated beside it, by the time to the same loss; the break-even
    lies between two bandwidths of the outermost level between replicas: both were simulated.
    """
    group, profile, best = layout.group("dp_cp"), layout.profile, layout.plan
    if group.size == 1:
        return None
    used = best.compression.gradients.method
    bare = replace(best, compression=replace(best.compression, gradients=Method(), parameters=Method()))
    times = compressed(bare, evaluator_of(profile), (used,) if used != "none" else methods)
    plain = evaluator_of(profile)(bare)
    crossed = max((i for i, n in enumerate(group.counts) if n > 1), default=len(profile.fabric) - 1)
    level = profile.fabric[crossed]
    if not times or isinstance(plain, Rejected):
        return None
    seconds, twin = times[0]
    method, gain = twin.compression.gradients.method, plain.effective_step_s / seconds
    even = 0.0
    if used != "none":
        text = f"Compressing gradients pays here: the best plan uses {used}."
    elif gain > 1:
        text = f"Compressing gradients with {method} would take {1 - 1 / gain:.1%} off this plan's time."
    else:
        between = _break_even(bare, twin, profile, crossed, evaluator_of)
        if between:
            even = (between[0] * between[1]) ** 0.5
            text = (
                f"Compressing gradients is not worth it: with {method} this plan takes {1 / gain - 1:.1%} "
                f"longer to the same loss. It pays at {format_rate(between[0])} a link of {level.name}, not "
                f"yet at {format_rate(between[1])}; here it has {format_rate(level.bandwidth_bytes_per_s)}."
            )
        else:
            lowest = level.bandwidth_bytes_per_s / RANGE
            text = (
                f"Compressing gradients is not worth it: with {method} this plan takes {1 / gain - 1:.1%} "
                f"longer to the same loss, and loses at any bandwidth of {level.name} down to "
                f"{format_rate(lowest)} a link."
            )
    return CompressionVerdict(
        worth_it=used != "none", best_method=method, gain=gain, break_even_bytes_per_s=even, text=text
    )


def _break_even(
    plain: Plan, twin: Plan, profile: Profile, at: int, evaluator_of: Callable[[Profile], Evaluate]
) -> tuple[float, float] | None:
    """Return (a bandwidth at which the compressed plan wins, one at which not), bytes/s; None: never."""

    def wins(bandwidth: float) -> bool:
        fabric = list(profile.fabric)
        fabric[at] = replace(fabric[at], bandwidth_bytes_per_s=bandwidth)
        evaluate = evaluator_of(replace(profile, fabric=tuple(fabric)))
        a, b = evaluate(plain), evaluate(twin)
        return isinstance(a, Figures) and isinstance(b, Figures) and b.effective_step_s < a.effective_step_s

    high = profile.fabric[at].bandwidth_bytes_per_s
    low = high / RANGE
    if not wins(low):
        return None
    for _ in range(BISECTIONS):
        middle = (low * high) ** 0.5
        low, high = (middle, high) if wins(middle) else (low, middle)
    return low, high
