"""Rules a plan must keep before it can be priced or run: one small function each, with a remedy.

A broken rule is a value, not an error: the search meets thousands of them and people want to know why.
What a particular runtime refuses beyond these is in `plansim.plan.backends`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from plansim.errors import PlanError, UnknownNameError
from plansim.hardware.profile import Profile
from plansim.plan.degrees import (
    ep_divides,
    every_chunk_has_a_layer,
    experts_are_whole_or_cut_by_tp,
    fits_the_cluster,
    stage_layers_sum_up,
    tp_divides_or_repeats_kv_heads,
    tp_splits_the_layers,
    virtual_stages_need_a_pipeline,
    zero_group_divides,
)
from plansim.plan.grid import AXES
from plansim.plan.model import Plan
from plansim.plan.modules import modules_in
from plansim.plan.recompute import modules_of_mode, names_modules
from plansim.plan.reshape import reshaped
from plansim.plan.rule import Broken, Case, Rejected, Rule, divisors_text
from plansim.schedules import find_schedule
from plansim.workload.model import ATTENTION_FAMILIES, SAMPLE_FAMILIES, Model


def batch_splits(case: Case) -> Broken | None:
    """The global batch is a whole number of microbatches on every replica."""
    p, batch = case.plan.parallel, case.plan.job.global_batch
    if p.batch_shares is not None:
        return None  # said by their own rule
    share = p.dp * p.microbatch
    if batch % share == 0:
        return None
    lower, upper = batch // share * share, -(-batch // share) * share
    near = f"{lower} or {upper}" if lower else f"{upper}"
    return Broken(
        detail=f"global_batch {batch} does not split into dp {p.dp} x microbatch {p.microbatch}",
        remedy=f"use global_batch {near}, or a dp x microbatch that divides {batch}",
    )


def shares_make_up_the_batch(case: Case) -> Broken | None:
    """Unequal shares are whole microbatches of replicas that meet once a step."""
    return broken_shares(case.plan)


def broken_shares(plan: Plan) -> Broken | None:
    """Return what is wrong with a plan's unequal shares of the batch."""
    p, batch = plan.parallel, plan.job.global_batch
    shares = p.batch_shares
    if shares is None:
        return None
    if len(shares) != p.dp or sum(shares) * p.microbatch != batch or min(shares) < 1:
        return Broken(
            detail=f"batch_shares: {len(shares)} entries make {sum(shares)} x microbatch {p.microbatch}",
            remedy=f"write dp {p.dp} numbers of microbatches that make global_batch {batch}",
        )
    if len(set(shares)) == 1:
        return Broken(detail=f"batch_shares are all {shares[0]}", remedy="leave them out: shares are equal")
    tied = {
        "zero_stage": p.zero_stage > 1,
        "ep": p.ep > 1,
        "aggregation": plan.aggregation != "all_reduce",
    }
    names = [name for name, holds in tied.items() if holds]
    if names:
        return Broken(
            detail=f"batch_shares with {', '.join(names)}: replicas exchange in every microbatch",
            remedy="use zero_stage 0 or 1, ep 1 and all_reduce, or equal shares",
        )
    if plan.compression.outer.method != "none":
        return Broken(
            detail="batch_shares with compression.outer: weights of replicas that step alone count alike",
            remedy="set compression.outer to none, or use equal shares",
        )
    return None


def schedule_can_run(case: Case) -> Broken | None:
    """The schedule exists and accepts these counts of stages, microbatches and chunks."""
    p = case.plan.parallel
    try:
        schedule = find_schedule(p.schedule)
        counts = set(p.batch_shares or (case.plan.num_microbatches,))
    except UnknownNameError as error:
        return Broken(detail=str(error), remedy="use a known schedule")
    except PlanError:
        return None  # the batch does not split: said by its own rule
    reasons = [schedule.check(p.pp, m, p.virtual_stages) for m in sorted(counts)] if p.pp > 1 else []
    found = [reason for reason in reasons if reason]
    return (
        Broken(detail=f"schedule {p.schedule}: {found[0]}", remedy="change its counts or the schedule")
        if found
        else None
    )


def features_split(case: Case) -> Broken | None:
    """A vertical data split divides the features of samples that are rows of numbers."""
    model, p = case.model, case.plan.parallel
    if not p.split_features:
        return None
    if model.family != "mlp":
        return Broken(
            detail=f"split_features: samples of family '{model.family}' are no rows of features",
            remedy="switch split_features off",
        )
    features = int(model.options.get("features", model.hidden))
    if features % p.tp:
        return Broken(
            detail=f"split_features: tp {p.tp} does not divide {features} features",
            remedy=f"use tp {divisors_text(features)}",
        )
    return None


def sequence_splits(case: Case) -> Broken | None:
    """Context and sequence parallelism cut the sequence evenly."""
    p, seq = case.plan.parallel, case.plan.job.seq_len
    if p.cp > 1 and not case.attention:
        return Broken(
            detail=f"cp {p.cp}: family '{case.model.family}' has no attention to split", remedy="use cp 1"
        )
    if seq % p.cp:
        return Broken(
            detail=f"cp {p.cp} does not divide seq_len {seq}", remedy=f"use cp {divisors_text(seq)}"
        )
    mamba = case.model.mamba
    if mamba and p.cp > 1 and mamba.heads % (p.tp * p.cp):
        return Broken(
            detail=f"cp {p.cp} x tp {p.tp} does not divide mamba.heads {mamba.heads}; the scan uses both",
            remedy=f"use cp x tp {divisors_text(mamba.heads)}",
        )
    if p.sequence_parallel and p.tp > 1 and seq % (p.cp * p.tp):
        return Broken(
            detail=f"sequence_parallel over tp {p.tp} x cp {p.cp} does not divide seq_len {seq}",
            remedy="switch sequence_parallel off, or change seq_len",
        )
    return None


def sequence_within_the_positions(case: Case) -> Broken | None:
    """Learned positions end where the model was made to end."""
    model, seq = case.model, case.plan.job.seq_len
    if not case.attention or model.positions != "learned" or seq <= model.seq_len:
        return None
    return Broken(
        detail=f"seq_len {seq} is beyond the {model.seq_len} learned positions of {model.name}",
        remedy=f"use seq_len {model.seq_len} or less, or -o model.seq_len={seq}",
    )


def recompute_names_every_stage(case: Case) -> Broken | None:
    """A list of recompute modes has one per pipeline stage."""
    modes, pp = case.plan.recompute, case.plan.parallel.pp
    if isinstance(modes, str) or len(modes) == pp:
        return None
    return Broken(
        detail=f"recompute lists {len(modes)} stages, pp is {pp}", remedy=f"write {pp} modes, or one word"
    )


def recompute_names_what_is_there(case: Case) -> Broken | None:
    """Modules to recompute are modules of the model."""
    modes = {case.plan.recompute} if isinstance(case.plan.recompute, str) else set(case.plan.recompute)
    named = {module for mode in modes if names_modules(mode) for module in modules_of_mode(mode)}
    there = modules_in(case.model) if named else ()
    absent = sorted(named - set(there))
    if not absent:
        return None
    return Broken(
        detail=f"recompute: {case.model.name} has no {' and no '.join(absent)}",
        remedy=f"use {', '.join(there)}, none or full" if there else "use none or full",
    )


def parameter_server_is_plain(case: Case) -> Broken | None:
    """Parameter servers hold whole weights for plain data parallelism."""
    p, plan = case.plan.parallel, case.plan
    if plan.aggregation != "parameter_server":
        return None
    if p.zero_stage or p.tp * p.pp * p.cp * p.ep > 1:
        return Broken(
            detail="aggregation parameter_server goes with plain data parallelism only",
            remedy="use zero_stage 0 and tp, pp, cp, ep 1, or aggregation all_reduce",
        )
    if plan.servers > p.dp:
        return Broken(
            detail=f"{plan.servers} servers for dp {p.dp} workers", remedy=f"use at most {p.dp} servers"
        )
    return None


def activations_can_leave(case: Case) -> Broken | None:
    """Activations go to a host's memory from devices that have their own, to come back for a backward."""
    plan = case.plan
    if not plan.offload_activations:
        return None
    given = f"offload_activations {plan.offload_activations}"
    if any(group.device.kind == "cpu" for group in case.profile.groups):
        return Broken(
            detail=f"{given}: on a CPU activations are in host memory already",
            remedy="use offload_activations 0, or recompute",
        )
    if plan.job.phase == "infer":
        return Broken(
            detail=f"{given}: inference keeps nothing for a backward", remedy="use offload_activations 0"
        )
    return None


def placement_orders_the_axes(case: Case) -> Broken | None:
    """Every axis has its place, once."""
    if sorted(case.plan.placement) == sorted(AXES):
        return None
    return Broken(
        detail=f"placement is {', '.join(case.plan.placement)}", remedy="order tp, cp, dp and pp, each once"
    )


def device_has_the_arithmetic(case: Case) -> Broken | None:
    """Every device multiplies in the job's data type."""
    dtype = case.plan.job.dtype
    for device in dict.fromkeys(group.device.id for group in case.profile.groups):
        peaks = next(g.device for g in case.profile.groups if g.device.id == device).peak_flop_per_s
        if dtype not in peaks:
            return Broken(detail=f"{device} has no {dtype} arithmetic", remedy=f"use {' or '.join(peaks)}")
    return None


RULES: Mapping[str, Rule] = {
    "world size": fits_the_cluster,
    "tp": tp_splits_the_layers,
    "kv heads": tp_divides_or_repeats_kv_heads,
    "pipeline depth": every_chunk_has_a_layer,
    "virtual stages": virtual_stages_need_a_pipeline,
    "stage layers": stage_layers_sum_up,
    "batch": batch_splits,
    "batch shares": shares_make_up_the_batch,
    "features": features_split,
    "schedule": schedule_can_run,
    "sequence": sequence_splits,
    "positions": sequence_within_the_positions,
    "ep": ep_divides,
    "etp": experts_are_whole_or_cut_by_tp,
    "zero group": zero_group_divides,
    "recompute": recompute_names_every_stage,
    "recompute modules": recompute_names_what_is_there,
    "parameter server": parameter_server_is_plain,
    "offload": activations_can_leave,
    "placement": placement_orders_the_axes,
    "dtype": device_has_the_arithmetic,
}
"""Name as printed -> rule."""


def check_plan(
    plan: Plan, model: Model, profile: Profile, extra: Mapping[str, Rule] | None = None
) -> list[Rejected]:
    """Return every rule the plan breaks, in the order of the table; empty when it can be.

    Parameters
    ----------
    extra : mapping of str to callable, optional
        Further rules, such as what a compression method supports.
    """
    try:
        model = reshaped(model, plan.compression.model)
    except PlanError as error:
        return [Rejected(plan=plan, rule="compression", detail=str(error))]
    case = Case(plan=plan, model=model, profile=profile)
    found = ((name, rule(case)) for name, rule in {**RULES, **(extra or {})}.items())
    return [Rejected(plan=plan, rule=n, detail=b.detail, remedy=b.remedy) for n, b in found if b]


def require(rejected: Iterable[Rejected], source: str = "plan") -> None:
    """Raise one `PlanError` that lists every rejection, if there is any."""
    lines = [f"{source}: {entry}" for entry in rejected]
    if lines:
        raise PlanError("\n".join(lines))


INT8_TRAINING = (
    "dtype int8 while training: every product is predicted at the int8 rate, as quantised training (AQT) "
    "runs them; what it costs in quality is not judged"
)


def without_effect(plan: Plan, model: Model) -> list[str]:
    """Return the settings of a plan that change nothing, or whose meaning must be said, in words."""
    p = plan.parallel
    found = {
        "sequence_parallel: no effect with tp 1": p.sequence_parallel and p.tp == 1,
        "split_features: no effect with tp 1": p.split_features and p.tp == 1,
        f"zero_stage {p.zero_stage}: no effect with dp 1 and cp 1": p.zero_stage > 0 and p.dp * p.cp == 1,
        f"servers {plan.servers}: no effect without parameter_server": plan.servers > 1
        and plan.aggregation == "all_reduce",
        "compression.gradients: no effect with dp 1 and cp 1": plan.compression.gradients.method != "none"
        and p.dp * p.cp == 1,
        "compression.parameters: no effect below zero_stage 3": plan.compression.parameters.method != "none"
        and p.zero_stage < 3,
        "compression.activations: no effect with pp 1 (it codes what stages send each other)": (
            plan.compression.activations.method != "none" and p.pp == 1
        ),
        "overlap.tensor_parallel: no effect with tp 1": plan.overlap.tensor_parallel and p.tp == 1,
        f"job.seq_len {plan.job.seq_len}: samples of {model.name} have no sequence; each counts as so many "
        "tokens": plan.job.seq_len > 1 and model.family in SAMPLE_FAMILIES,
        INT8_TRAINING: plan.job.dtype == "int8" and plan.job.phase == "train",
        "attention: no effect on a model without attention": plan.attention == "unfused"
        and model.family not in ATTENTION_FAMILIES,
    }
    return [text for text, holds in found.items() if holds]
