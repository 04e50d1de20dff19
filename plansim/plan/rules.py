"""Rules a plan must keep before it can be priced or run: one small function each, with a remedy.

A broken rule is a value, not an error: the search meets thousands of them and people want to know why.
What a particular runtime refuses beyond these is in `plansim.plan.backends`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from plansim.errors import PlanError, UnknownNameError
from plansim.hardware.profile import Profile
from plansim.plan.grid import AXES
from plansim.plan.model import Plan
from plansim.plan.reshape import reshaped
from plansim.schedules import find_schedule
from plansim.workload.model import ATTENTION_FAMILIES, EXPERT_WIDTH, UNCUT_FAMILIES, Model
from plansim.workload.totals import pipeline_layers


@dataclass(frozen=True, slots=True, kw_only=True)
class Broken:
    """What is wrong, with the numbers, and what to change."""

    detail: str
    remedy: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Rejected:
    """A plan that cannot be: which rule it breaks and what would repair it."""

    plan: Plan
    rule: str
    detail: str
    remedy: str = ""

    def __str__(self) -> str:
        return f"{self.rule}: {self.detail}" + (f"; {self.remedy}" if self.remedy else "")


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """A plan beside what it is for; a rule looks at one."""

    plan: Plan
    model: Model
    profile: Profile

    @property
    def attention(self) -> bool:
        """Whether the model is built of attention blocks."""
        return self.model.family in ATTENTION_FAMILIES

    @property
    def layers(self) -> int:
        """Layers that a pipeline can deal out."""
        return pipeline_layers(self.model)


Rule = Callable[[Case], Broken | None]


def divisors_text(number: int, limit: int = 64) -> str:
    """Return the divisors of a number up to a limit as words.

    Examples
    --------
    >>> divisors_text(12)
    '1, 2, 3, 4, 6 or 12'
    """
    found = [str(d) for d in range(1, min(number, limit) + 1) if number % d == 0]
    return f"{', '.join(found[:-1])} or {found[-1]}" if len(found) > 1 else found[0]


def fits_the_cluster(case: Case) -> Broken | None:
    """The world is no larger than the cluster; ranks on CPU may share cores."""
    world, devices = case.plan.parallel.world_size, case.profile.num_devices
    if world <= devices or case.profile.device.kind == "cpu":
        return None
    p = case.plan.parallel
    return Broken(
        detail=f"dp {p.dp} x tp {p.tp} x pp {p.pp} x cp {p.cp} = {world} ranks, "
        f"but {case.profile.name} has {devices} devices",
        remedy="lower a degree, or add nodes",
    )


def tp_splits_the_layers(case: Case) -> Broken | None:
    """Tensor parallelism has something to divide evenly: heads, MLP width, experts' width."""
    model, tp, whole = case.model, case.plan.parallel.tp, case.plan.parallel.expert_tp == 1
    if tp == 1:
        return None
    if model.family in UNCUT_FAMILIES:
        return Broken(detail=f"tp {tp}: no tensor parallelism for family '{model.family}'", remedy="use tp 1")
    widths = model.tp_widths if case.attention else {"hidden": model.hidden}
    for name, width in widths.items():
        if width % tp and not (whole and name == EXPERT_WIDTH):
            return Broken(
                detail=f"tp {tp} does not divide {name} {width}", remedy=f"use tp {divisors_text(width)}"
            )
    return None


def tp_divides_or_repeats_kv_heads(case: Case) -> Broken | None:
    """Key-value heads are split over tp, or each is held by several ranks."""
    kv, tp = case.model.kv_heads, case.plan.parallel.tp
    if not case.attention or kv % tp == 0 or tp % kv == 0 or case.model.heads % tp:
        return None  # heads that do not divide are said by their own rule
    return Broken(
        detail=f"tp {tp} neither divides the {kv} kv_heads nor is a multiple of them",
        remedy=f"use tp {divisors_text(kv)}, or a multiple of {kv}",
    )


def every_chunk_has_a_layer(case: Case) -> Broken | None:
    """The pipeline is no longer than the model; embedding and head may have chunks of their own."""
    p, layers = case.plan.parallel, case.layers
    chunks = p.pp * p.virtual_stages
    if chunks <= layers or (chunks == layers + 2 and case.attention):
        return None
    return Broken(
        detail=f"pp {p.pp} x virtual_stages {p.virtual_stages} = {chunks} chunks for {layers} layers",
        remedy=f"use at most {layers} chunks",
    )


def virtual_stages_need_a_pipeline(case: Case) -> Broken | None:
    """Chunks are dealt out to at least two pipeline ranks."""
    p = case.plan.parallel
    if p.virtual_stages == 1 or p.pp > 1:
        return None
    return Broken(
        detail=f"virtual_stages {p.virtual_stages} with pp 1", remedy="use virtual_stages 1 or pp > 1"
    )


def stage_layers_sum_up(case: Case) -> Broken | None:
    """A written split names every chunk and every layer; only the outer chunks may be without layers."""
    p, layers = case.plan.parallel, case.layers
    split, chunks = p.stage_layers, p.pp * p.virtual_stages
    if split is None:
        return None
    if len(split) != chunks or sum(split) != layers:
        return Broken(
            detail=f"stage_layers {list(split)} has {len(split)} entries that sum to {sum(split)}",
            remedy=f"write {chunks} entries that sum to {layers}",
        )
    if min(split) < 0 or 0 in split[1:-1] or layers < 1:
        return Broken(
            detail=f"stage_layers {list(split)} leaves an inner chunk empty", remedy="give it a layer"
        )
    return None


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


def ep_divides(case: Case) -> Broken | None:
    """Expert parallelism has experts to deal out, to ranks that bring different tokens."""
    p, moe = case.plan.parallel, case.model.moe
    if p.ep == 1:
        return None
    if moe is None:
        return Broken(detail=f"ep {p.ep}: {case.model.name} has no experts", remedy="use ep 1")
    if moe.experts % p.ep:
        return Broken(
            detail=f"ep {p.ep} does not divide {moe.experts} experts",
            remedy=f"use ep {divisors_text(moe.experts)}",
        )
    ranks, words = p.dp * p.cp, f"dp {p.dp} x cp {p.cp}"
    if p.folds_experts:
        ranks, words = ranks * p.tp, f"{words} x tp {p.tp}"
    if ranks % p.ep:
        whole = not p.folds_experts and (ranks * p.tp) % p.ep == 0
        also = ", or etp 1 (whole experts, over the tensor ranks too)" if whole else ""
        return Broken(
            detail=f"ep {p.ep} does not divide {words}", remedy=f"use ep {divisors_text(ranks)}{also}"
        )
    return None


def experts_are_whole_or_cut_by_tp(case: Case) -> Broken | None:
    """An expert is cut by all tensor ranks, or whole on a rank that works on tokens of its own."""
    p = case.plan.parallel
    if p.expert_tp == p.tp:
        return None
    if p.expert_tp != 1:
        return Broken(
            detail=f"etp {p.etp} is neither 1 nor tp {p.tp}",
            remedy="use etp 1 (whole experts), or leave it out (experts cut by tp)",
        )
    if case.model.moe is None:
        return Broken(detail=f"etp {p.etp}: {case.model.name} has no experts", remedy="leave etp out")
    if not p.sequence_parallel:
        return Broken(
            detail=f"etp {p.etp} without sequence_parallel: all {p.tp} tensor ranks bring the same tokens",
            remedy="switch sequence_parallel on, or leave etp out",
        )
    return None


def zero_group_divides(case: Case) -> Broken | None:
    """A hybrid shard group is a part of the data-parallel ranks."""
    p = case.plan.parallel
    if p.zero_group is None:
        return None
    if p.zero_stage == 0:
        return Broken(
            detail=f"zero_group {p.zero_group} with zero_stage 0", remedy="use zero_stage 1, 2 or 3"
        )
    if (p.dp * p.cp) % p.zero_group:
        return Broken(
            detail=f"zero_group {p.zero_group} does not divide dp {p.dp} x cp {p.cp}",
            remedy=f"use zero_group {divisors_text(p.dp * p.cp)}",
        )
    return None


def recompute_names_every_stage(case: Case) -> Broken | None:
    """A list of recompute modes has one per pipeline stage."""
    modes, pp = case.plan.recompute, case.plan.parallel.pp
    if isinstance(modes, str) or len(modes) == pp:
        return None
    return Broken(
        detail=f"recompute lists {len(modes)} stages, pp is {pp}", remedy=f"write {pp} modes, or one word"
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
    "parameter server": parameter_server_is_plain,
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


def without_effect(plan: Plan, model: Model) -> list[str]:
    """Return the settings of a plan that change nothing, in words."""
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
        "attention: no effect on a model without attention": plan.attention == "unfused"
        and model.family not in ATTENTION_FAMILIES,
    }
    return [text for text, holds in found.items() if holds]
