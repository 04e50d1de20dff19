"""What a row leaves open (layout, recomputation) is settled by what fits and is fastest, and said so."""

from __future__ import annotations

import itertools
import re
from dataclasses import replace

from plansim.costs.layout import Layout
from plansim.costs.memory import memory_limit_bytes, stage_memory, with_frozen_weights
from plansim.errors import PlansimError
from plansim.plan.model import Plan
from plansim.plan.recompute import canonical_mode, is_mode
from plansim.simulate.predict import predict_layout
from plansim.validate.assume import Case
from plansim.validate.balance import balanced
from plansim.validate.plans import TUNED, slice_group
from plansim.validate.rows import Unpredictable
from plansim.validate.software import SHARDED_STACKS, UNSTATED_RECOMPUTE

RECOMPUTE = ("none", "selective", "full")
DEGREES = (1, 2, 4, 8, 16, 32)
MICROBATCHES = (1, 2, 4)
TUNED_ALLOWANCE = 1.35
"""Memory over the limit that tuned recipes save by means no table states (offload, recomputed norms)."""

OFFLOADING_STACKS = ("jax", "jax-gpu", "paxml")
"""Stacks whose recipes move activations to host memory where a layout needs it."""

MOST = 8
"""Layouts that are timed; the least divided come first."""


def settled(case: Case) -> Case:
    """Return the case with blank layout, recomputation and split of layers filled in."""
    if not case.layout_known:
        return _with_layout(case)
    return _with_split(_with_recompute(_with_offload(case)))


def _with_offload(case: Case) -> Case:
    """Return the case with the activations in host memory that its notes tell of."""
    few, many = offloaded_layers(case.row.notes)
    fitting = (n for n in range(few, many) if _fits(case, replace(case.plan, offload_activations=n)))
    layers = next(fitting, many)
    plan = replace(case.plan, offload_activations=layers)
    if few == many:
        return replace(case, plan=plan)
    why = "the fewest that fit" if layers < many else "the most"
    return _noted(case, plan, f"activations of {few} to {many} layers offloaded: {layers} assumed ({why})")


def offloaded_layers(notes: str) -> tuple[int, int]:
    """Return of how many layers notes say that activations are in host memory, at least and at most.

    Examples
    --------
    >>> offloaded_layers("recipe offloads activations of 20-40 layers to CPU"), offloaded_layers("no offload")
    ((20, 40), (0, 0))
    """
    found = re.search(r"offload\w* activations of (\d+)(?:\s*(?:-|to)\s*(\d+))? layers", notes)
    few = int(found[1]) if found else 0
    return few, int(found[2]) if found and found[2] else few


def _with_split(case: Case) -> Case:
    """Return the case with uneven stages where a vendor who tunes has to choose them."""
    p = case.plan.parallel
    if case.stack.name not in TUNED or case.model.layers % (p.pp * p.virtual_stages) == 0:
        return case
    plan = balanced(Layout.of(case.model, case.profile, case.plan, case.stack))
    layers = plan.parallel.stage_layers
    if layers is None:
        return case
    return _noted(case, plan, f"layers of the chunks not stated: {' '.join(map(str, layers))} assumed")


def _with_recompute(case: Case) -> Case:
    given = case.row.recompute
    named = _selected(case) if given == "selective" else None
    if named:
        what = "recomputation selective, modules not stated"
        return _noted(
            case, replace(case.plan, recompute=named), f"{what}: {named} assumed, as recipes have it"
        )
    if is_mode(given):
        return case
    mode = _least_recompute(case)
    why = "" if mode == case.plan.recompute else " (the least that fits)"
    what = f"'{given}' is not one of {', '.join(RECOMPUTE)} or modules" if given else "not stated"
    return _noted(case, replace(case.plan, recompute=mode), f"recomputation {what}: {mode} assumed{why}")


def _selected(case: Case) -> str | None:
    """Return what a selective recipe of Megatron-Core repeats of experts: modules, for attention is fused.

    The tuned recipes of Megatron-Bridge 0.6.2 name these for mixtures of experts, and the attention core of
    no transformer.
    """
    if (
        not case.stack.name.startswith("megatron-core")
        or case.plan.attention != "flash"
        or not case.model.moe
    ):
        return None
    return "mla_up_proj" if case.model.mla else "moe_act+layernorm"


def _least_recompute(case: Case) -> str:
    """Return the least recomputation that fits.

    Vendors tune full recomputation out where a little less memory does it.
    """
    if case.stack.name in UNSTATED_RECOMPUTE:
        return UNSTATED_RECOMPUTE[case.stack.name]
    allowance = TUNED_ALLOWANCE if case.stack.name.startswith("megatron-core") else 1.0
    return next((m for m in RECOMPUTE if _fits(case, replace(case.plan, recompute=m), allowance)), "full")


def _noted(case: Case, plan: Plan, note: str) -> Case:
    return replace(case, plan=plan, assumptions=(*case.assumptions, note))


def _fits(case: Case, plan: Plan, allowance: float = 1.0) -> bool:
    return _fill(case, plan) <= allowance


def _fill(case: Case, plan: Plan) -> float:
    """Return the peak of the fuller of the outer stages over the memory limit."""
    layout = Layout.of(case.model, case.profile, plan, case.stack)
    held = (stage_memory(layout, s) for s in {0, plan.parallel.pp - 1})
    if case.work == "lora":
        held = (with_frozen_weights(m) for m in held)
    return max(m.total_bytes for m in held) / memory_limit_bytes(layout)


def _with_layout(case: Case) -> Case:
    """Return the case with the fastest layout among the least divided ones that fit.

    Where none fits it is the one that holds least: the run had means that no table states (offload).
    """
    found: list[Plan] = []
    smallest, least, closest = 0, float("inf"), case.plan
    allowance = TUNED_ALLOWANCE if case.stack.name in OFFLOADING_STACKS else 1.0
    for plan in _candidates(case) or _candidates(case, waiting=True):
        p = plan.parallel
        divided = p.tp * p.pp * p.cp
        if (smallest and divided > 2 * smallest) or len(found) == MOST:
            break
        try:
            fill = _fill(case, plan)
        except PlansimError:
            continue
        if fill <= allowance:
            found.append(plan)
            smallest = smallest or divided
        elif fill < least:
            least, closest = fill, plan
    if closest is case.plan and not found and case.row.gbs and case.row.gbs < case.plan.parallel.dp:
        raise Unpredictable(
            f"layout not stated, and none we tried leaves each of {case.row.n_devices:,} devices a part of "
            f"global batch {case.row.gbs:,}"
        )
    best = min(found, key=lambda plan: _step_s(case, plan)) if found else closest
    p, why = best.parallel, "fastest that fits" if found else "none fits, it holds least"
    text = (
        f"layout not stated: tp {p.tp} pp {p.pp} cp {p.cp} zero {p.zero_stage} microbatch {p.microbatch}, "
        f"recompute {best.recompute} assumed ({why})"
    )
    return _noted(case, best, text)


def _step_s(case: Case, plan: Plan) -> float:
    return predict_layout(
        Layout.of(case.model, case.profile, plan, case.stack), work=case.work, contention=False
    ).step_time_s


def _candidates(case: Case, *, waiting: bool = False) -> list[Plan]:
    """Return layouts from the least divided to the most; each with the least recomputation that may fit.

    Pipelines have a microbatch for every stage and tensor parallelism stays in a node; neither where nothing
    else divides a small batch and stages may be `waiting` all the time.
    """
    found = []
    row, base = case.row, case.plan.parallel
    sharded = case.stack.name in SHARDED_STACKS
    inside = DEGREES if sharded or waiting else [d for d in DEGREES if d <= case.profile.groups[0].devices]
    tps = inside if row.tp is None else (row.tp,)
    cps = DEGREES if row.cp is None else (row.cp,)
    pps = (row.pp,) if row.pp is not None else (1,) if sharded else DEGREES
    splits = sorted(itertools.product(tps, pps, cps), key=lambda s: (s[0] * s[1] * s[2], s[2], s[1]))
    n, batch = row.n_devices or 1, case.plan.job.global_batch
    batch = row.gbs or batch
    stated = row.recompute or UNSTATED_RECOMPUTE.get(case.stack.name, "")
    modes = (canonical_mode(stated),) if is_mode(stated) else RECOMPUTE
    zeros = (row.zero_stage,) if row.zero_stage is not None else (3,) if sharded else (1,)
    for tp, pp, cp in splits:
        dp = n // (tp * pp * cp)
        if row.dp and row.dp not in (dp, dp * cp):
            continue
        if n % (tp * pp * cp) or dp > batch or batch % dp or case.model.heads % tp or pp > case.model.layers:
            continue
        if cp > 1 and case.plan.job.seq_len < 8192 and dp * cp <= batch:
            continue
        for zero in zeros:
            for microbatch in MICROBATCHES if not row.mbs else (row.mbs,):
                if (batch // dp) % microbatch or not (waiting or batch // dp // microbatch >= pp):
                    continue
                parallel = replace(
                    base, tp=tp, pp=pp, cp=cp, dp=dp, zero_stage=zero, microbatch=microbatch,
                    zero_group=slice_group(case.profile, zero, tp * pp, dp * cp), virtual_stages=1,
                    schedule="1f1b", sequence_parallel=tp > 1,
                    ep=min(base.ep, dp * cp * (tp if base.etp == 1 else 1)),
                )  # fmt: skip
                job = replace(case.plan.job, global_batch=batch)
                found += [replace(case.plan, parallel=parallel, recompute=mode, job=job) for mode in modes]
    return found
