"""Rules of a plan's degrees: what they divide, and what they multiply to."""

from __future__ import annotations

from plansim.plan.rule import Broken, Case, divisors_text
from plansim.workload.model import EXPERT_WIDTH, UNCUT_FAMILIES


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
