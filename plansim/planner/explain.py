"""Every term of a plan's step with its formula and its inputs, from the prediction back to the catalogue."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from plansim.costs.boundaries import sent_bytes
from plansim.costs.buckets import gather_bytes, reduce_bytes
from plansim.costs.build import BLOCK_AXES, step_inflation
from plansim.costs.collectives import collective_terms
from plansim.costs.compression import MODEL_METHODS, find_method
from plansim.costs.layout import EXPERT_AXES, Layout
from plansim.costs.memory import memory_limit_bytes, stage_memory
from plansim.costs.optimizer import state_bytes
from plansim.costs.step import Parts, StepCosts
from plansim.hardware.profile import Profile
from plansim.plan.model import Plan
from plansim.planner.terms import Term, offload_terms, recompute_terms
from plansim.results import Prediction
from plansim.results.compare import TERM_NAMES
from plansim.simulate.predict import predict_layout
from plansim.simulate.replicas import paced_costs
from plansim.workload.model import Model

PART_SOURCES = {
    "compute_s": (
        "sum of kernels: tiles in waves over the compute units against the memory roofline",
        "NVIDIA, Matrix Multiplication Background",
    ),
    "tp_s": (
        "exposed tensor-parallel collectives",
        "Narayanan et al., arXiv 2104.04473; Korthikanti et al., arXiv 2205.05198",
    ),
    "cp_s": (
        "exchange of keys and values less the attention it hides behind",
        "Liu et al., Ring Attention, arXiv 2310.01889",
    ),
    "ep_s": ("dispatch and combine of experts, all-to-all", "Lepikhin et al., GShard, arXiv 2006.16668"),
    "host_s": (
        "launches that outlast their kernels, copies of activations that outlast their pass",
        "counted kernels times the stack's launch time; bytes over the host link",
    ),
    "compression_s": ("encode and decode", "counted work over the device's coding rates"),
}
"""Part of a task -> (formula in words, source)."""

BREAKDOWN_SOURCES = {
    "compute_s": ("microbatches x kernels of forward and backward of the critical rank", ""),
    "recompute_s": (
        "microbatches x what is computed again before the backward",
        "Korthikanti et al., arXiv 2205.05198",
    ),
    "tp_exposed_s": ("microbatches x tensor-parallel collectives that nothing hides", "arXiv 2104.04473"),
    "pp_exposed_s": ("step time - step time with free messages between stages", ""),
    "dp_exposed_s": (
        "waiting for gradient and parameter traffic, and compute slowed beside it",
        "Li et al., PyTorch Distributed, arXiv 2006.15704",
    ),
    "cp_exposed_s": (
        "microbatches x exchange of keys and values that attention does not hide",
        "arXiv 2310.01889",
    ),
    "ep_exposed_s": ("microbatches x dispatch and combine of experts", "arXiv 2006.16668"),
    "bubble_s": (
        "waiting for other stages; (pp - 1)(f + b)/v for equal stages",
        "Narayanan et al., arXiv 2104.04473, section 2.2",
    ),
    "optimizer_s": ("bytes of state, master and gradient / memory bandwidth", "arXiv 1910.02054"),
    "compression_s": ("encode and decode of every compressed message", "counted work over coding rates"),
    "host_s": (
        "launches that outlast their kernels, copies of activations that outlast their pass, and the fixed "
        "time of a step",
        "",
    ),
}
"""Part of the breakdown -> (formula in words, source)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Explanation:
    """A prediction with the terms it is made of."""

    plan: Plan
    prediction: Prediction
    terms: tuple[Term, ...]

    def to_json(self) -> dict[str, Any]:
        """Return plain data."""
        from plansim.plan.read import plan_data

        return {
            "schema": 1,
            "plan": plan_data(self.plan),
            "prediction": self.prediction.to_json(),
            "terms": [asdict(t) for t in self.terms],
        }


def explain(model: Model, profile: Profile, plan: Plan) -> Explanation:
    """Return every term of a plan's prediction.

    Raises
    ------
    PlanError
        When the plan does not lay out.
    """
    layout = Layout.of(model, profile, plan)
    costs = paced_costs(layout)
    prediction = predict_layout(layout)
    slowest = max(range(len(costs.chunks)), key=lambda c: _pass_s(costs, c))
    terms = [
        *_step_terms(costs, prediction),
        *_chunk_terms(layout, costs, slowest),
        *_communication_terms(layout, costs),
        *_end_terms(layout, costs),
        *recompute_terms(layout, costs),
        *offload_terms(layout, costs, slowest),
        *_memory_terms(layout, prediction),
        *_money_terms(layout, prediction),
    ]
    return Explanation(plan=plan, prediction=prediction, terms=tuple(terms))


def _pass_s(costs: StepCosts, chunk: int) -> float:
    c = costs.chunks[chunk]
    return (c.forward + c.recompute + c.backward_input + c.backward_weight).total_s


def _step_terms(costs: StepCosts, prediction: Prediction) -> list[Term]:
    m, pp = costs.num_microbatches, costs.pp
    once = [_pass_s(costs, c) for c in range(len(costs.chunks))]
    inputs = {"microbatches": m, "pp": pp, "schedule": costs.schedule, "virtual_stages": costs.virtual_stages}
    return [
        Term(
            group="step",
            name="step time",
            value=prediction.step_time_s,
            unit="s",
            formula="longest path through the schedule's actions",
            inputs={**inputs, "spread": prediction.step_time_high_s / prediction.step_time_s},
            source="relaxation of the schedule; spread of the stack's fit",
        ),
        Term(
            group="step",
            name="work of the slowest chunk",
            value=m * max(once),
            unit="s",
            formula="microbatches x (forward + recompute + backward)",
            inputs={**inputs, "chunk_pass_s": max(once)},
        ),
        *_breakdown_terms(prediction, {**inputs, "mean_chunk_pass_s": sum(once) / len(once)}),
    ]


def _breakdown_terms(prediction: Prediction, inputs: Mapping[str, Any]) -> list[Term]:
    """Return every part of the step that takes time; they sum to the step."""
    found = []
    for name, (formula, source) in BREAKDOWN_SOURCES.items():
        value = getattr(prediction.breakdown, name)
        if value:
            share = value / prediction.step_time_s
            found.append(
                Term(
                    group="parts of the step",
                    name=TERM_NAMES[name],
                    value=value,
                    unit="s",
                    formula=formula,
                    inputs={**inputs, "share": share} if name == "bubble_s" else {"share": share},
                    source=source,
                )
            )
    return found


def _chunk_terms(layout: Layout, costs: StepCosts, chunk: int) -> list[Term]:
    c = costs.chunks[chunk]
    found = []
    for name, parts in (
        ("forward", c.forward),
        ("recompute", c.recompute),
        ("backward input", c.backward_input),
        ("backward weight", c.backward_weight),
    ):
        found += _part_terms(layout, f"chunk {chunk}", name, parts)
    return found


def _part_terms(layout: Layout, group: str, name: str, parts: Parts) -> list[Term]:
    shapes = {f"{axis}_s": layout.group(axis) for axis in BLOCK_AXES}
    ranks = {part: {"ranks": shape.size, "counts": shape.counts} for part, shape in shapes.items()}
    return [
        Term(
            group=group,
            name=f"{name}: {part.removesuffix('_s')}",
            value=getattr(parts, part),
            unit="s",
            formula=formula,
            inputs={"per": "microbatch", "task_s": parts.total_s, **ranks.get(part, {})},
            source=source,
        )
        for part, (formula, source) in PART_SOURCES.items()
        if getattr(parts, part) > 0
    ]


def _communication_terms(layout: Layout, costs: StepCosts) -> list[Term]:
    """Return every distinct collective beside compute, by its algorithm's own formula."""
    found = []
    buckets = [b for s in costs.stages for b in (*s.reductions, *s.gathers)]
    buckets += [b for c in costs.chunks for b in (*c.gathers_per_pass, *c.reductions_per_pass)]
    seen = {(b.what, round(b.nbytes), b.comm_s): b for b in buckets if b.comm_s > 0}
    for (what, nbytes, seconds), bucket in sorted(seen.items(), key=lambda item: -item[0][2])[:8]:
        axis = bucket.axis
        count = sum(b.what == what and round(b.nbytes) == nbytes for b in buckets)
        terms = collective_terms(
            what, bucket.nbytes, layout.group(axis), layout.fabric, backend=layout.profile.backend
        )
        inputs = {
            "nbytes": nbytes,
            "ranks": layout.group(axis).size,
            "counts": layout.group(axis).counts,
            "buckets": count,
            "algorithm": terms.algorithm,
            "protocol": terms.protocol,
            "bottleneck": terms.bottleneck,
            "latency_s": terms.latency_s,
            "bandwidth_s": terms.bandwidth_s,
            "ramp_s": terms.ramp_s,
            "copy_s": terms.copy_s,
            "collective_efficiency": layout.stack.collective_efficiency,
        }
        found.append(
            Term(
                group="data parallel",
                name=f"{what} bucket" + (" of experts" if axis in EXPERT_AXES else ""),
                value=seconds,
                unit="s",
                formula=terms.formula,
                inputs=inputs,
                source=terms.source,
            )
        )
    if layout.plan.parallel.pp > 1:
        send = max(c.send_forward_s for c in costs.chunks)
        found.append(
            Term(
                group="pipeline",
                name="send",
                value=send,
                unit="s",
                formula="activation of one microbatch to the next stage",
                inputs={"nbytes": sent_bytes(layout, layout.chunks[0][-1].boundary_bytes)},
            )
        )
    return found


def _end_terms(layout: Layout, costs: StepCosts) -> list[Term]:
    state, master, gradient, weight = state_bytes(layout)
    seconds = [stage.update_s for stage in costs.stages]
    inputs = {
        "state_bytes": state,
        "master_bytes": master,
        "gradient_bytes": gradient,
        "weight_bytes": weight,
        "offload": layout.plan.offload,
    }
    low, high = step_inflation(layout)
    return [
        Term(
            group="end",
            name="optimizer",
            value=max(seconds),
            unit="s",
            formula="bytes of gradient, state and master read and written / memory bandwidth"
            + (", in pieces beside copies of the state over PCIe" if layout.plan.offload else ""),
            inputs=inputs,
            source="Rajbhandari et al., ZeRO, arXiv 1910.02054",
        ),
        Term(
            group="end",
            name="host",
            value=layout.stack.step_host_s,
            unit="s",
            formula="fixed time of a step",
            inputs={"stack": layout.stack.name},
        ),
        Term(
            group="end",
            name="steps to the same loss",
            value=(low + high) / 2,
            unit="x",
            formula="product of the compression methods' bands",
            inputs={
                "low": low,
                "high": high,
                "gradient_wire_bytes": reduce_bytes(layout),
                "gather_wire_bytes": gather_bytes(layout),
            },
        ),
        *_band_terms(layout.plan),
    ]


def _band_terms(plan: Plan) -> list[Term]:
    """Return what every compressed edge may cost in steps or in score, and who says so."""
    found = []
    for edge, method in plan.compression.items():
        if method.method == "none":
            continue
        if edge == "model":
            loss = MODEL_METHODS[method.method].quality(method.options)
            name, unit, low, high, source = "score lost", "", loss.low, loss.high, loss.source
        else:
            band = find_method(method.method).step_inflation(method.options)
            name, unit, low, high, source = "steps to the same loss", "x", band.low, band.high, band.source
        inputs = {"low": low, "high": high, **method.options}
        found.append(
            Term(
                group="end",
                name=f"{name}: {edge} by {method.method}",
                value=(low + high) / 2,
                unit=unit,
                formula="middle of the band",
                inputs=inputs,
                source=source,
            )
        )
    return found


def _memory_terms(layout: Layout, prediction: Prediction) -> list[Term]:
    held = [stage_memory(layout, s) for s in range(layout.plan.parallel.pp)]
    stage = max(range(len(held)), key=lambda s: held[s].total_bytes)
    formulas = {
        "weights": "parameters x bytes, over the shard group with ZeRO-3",
        "gradients": "parameters x bytes, sharded from ZeRO-2 on",
        "optimizer": "parameters x (state + master), sharded from ZeRO-1 on",
        "activations": "microbatches in flight x bytes kept, and what one block works on"
        + (", without what is in host memory" if layout.plan.offload_activations else ""),
        "communication": "gathered layers of ZeRO-3, error feedback",
        "workspace": "share of the activations lost in the allocator",
        "reserve": "runtime and communication library",
    }
    terms = [
        Term(
            group=f"memory of stage {stage}",
            name=name,
            value=getattr(held[stage], name),
            unit="bytes",
            formula=formula,
            source="Rajbhandari et al., arXiv 1910.02054; Korthikanti et al., arXiv 2205.05198",
        )
        for name, formula in formulas.items()
    ]
    limit = memory_limit_bytes(layout)
    return [
        *terms,
        Term(
            group=f"memory of stage {stage}",
            name="free",
            value=limit - prediction.peak_memory_bytes,
            unit="bytes",
            formula="limit - peak",
            inputs={"limit": limit},
        ),
    ]


def _money_terms(layout: Layout, prediction: Prediction) -> list[Term]:
    e, world = layout.profile.economics, layout.plan.parallel.world_size
    return [
        Term(
            group="money and energy",
            name="cost of a step",
            value=prediction.usd_per_step,
            unit="$",
            formula="$ per device and hour x devices x hours",
            inputs={"usd_per_device_hour": e.usd_per_device_hour, "devices": world},
            source=e.basis,
        ),
        Term(
            group="money and energy",
            name="energy of a step",
            value=prediction.joules_per_step,
            unit="J",
            formula="watts x PUE x devices x seconds",
            inputs={"watts": e.power_watts, "pue": e.pue, "devices": world},
        ),
    ]
