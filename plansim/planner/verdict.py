"""Whether compressing gradients pays for the best plan, and at which bandwidth it would."""

from __future__ import annotations

from plansim.costs.build import reduce_bytes
from plansim.costs.compression import Network, Traffic
from plansim.costs.compression.crossover import StepShape, break_even_bandwidth, step_to_loss_s
from plansim.costs.layout import Layout
from plansim.planner.result import CompressionVerdict, Ranked
from plansim.units import format_rate

METHODS = ("int8", "powersgd")


def verdict(layout: Layout, best: Ranked, methods: tuple[str, ...] = METHODS) -> CompressionVerdict | None:
    """Return the verdict for a plan's gradient exchange; None where no gradient crosses the network.

    Methods are compared by the time to the same loss: what is exposed beside the backward pass counts, and
    so do the steps that lossy methods add. The method named is the one that pays at the highest bandwidth.
    """
    group = layout.group("dp_cp")
    if group.size == 1:
        return None
    largest = max(
        sum(b.parameters for c in chunks for b in layout.chunks[c]) for chunks in layout.chunks_of_stage
    )
    traffic = Traffic(num_elements=float(largest), element_bytes=reduce_bytes(layout))
    network = Network(
        group=group, fabric=layout.fabric, device=layout.profile.device, backend=layout.profile.backend
    )
    parts = best.prediction.breakdown
    last = (parts.compute_s + parts.recompute_s) / layout.plan.num_microbatches
    hidden = last * 2 / 3 if layout.plan.overlap.gradients and layout.stack.gradient_overlap else 0.0
    shape = StepShape(compute_s=best.prediction.step_time_s - parts.dp_exposed_s, overlap_s=hidden)
    plain = step_to_loss_s("none", traffic, network, shape=shape)
    times = {m: step_to_loss_s(m, traffic, network, shape=shape) for m in methods}
    evens = {m: break_even_bandwidth(m, traffic, network, shape=shape, inflation="expected") for m in methods}
    method = max(methods, key=lambda m: (evens[m], -times[m]))
    even = evens[method]
    used = layout.plan.compression.gradients.method
    level = layout.profile.fabric[-1]
    have = level.bandwidth_bytes_per_s
    if used != "none":
        text = f"Compressing gradients pays here: the best plan uses {used}."
    elif even <= 0:
        text = f"Compressing gradients does not pay at any bandwidth of {level.name} (best method: {method})."
    else:
        text = (
            f"Compressing gradients is not worth it: {method} would pay below {format_rate(even)} a link of "
            f"{level.name}, which has {format_rate(have)}."
        )
    return CompressionVerdict(
        worth_it=used != "none",
        best_method=method,
        gain=plain / times[method],
        break_even_bytes_per_s=even,
        text=text,
    )
