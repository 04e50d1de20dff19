"""How a plan lies on a cluster: nothing is lost between chunks, groups multiply to the world."""

from math import prod

import pytest
from hypothesis import given
from hypothesis import strategies as st
from layouts import EXPERTS, GPT, layout, layouts

from plansim.costs.buckets import gradient_buckets, reduce_bytes
from plansim.costs.layout import default_stack, strides_of, with_plan
from plansim.costs.memory import stage_memory
from plansim.costs.optimizer import expert_shard_degree
from plansim.errors import PlanError
from plansim.hardware.read import load_profile
from plansim.plan.model import Job, Parallel, Plan
from plansim.workload.read import load_model


@given(made=layouts())
def test_chunks_hold_every_block_once_and_in_order(made):
    assert tuple(b for chunk in made.chunks for b in chunk) == made.blocks
    assert sorted(c for held in made.chunks_of_stage for c in held) == list(range(len(made.chunks)))
    assert made.chunks[0][0].kind == "embedding"
    assert made.chunks[-1][-1].kind == "head"


@given(made=layouts())
def test_group_sizes_are_the_degrees(made):
    p = made.plan.parallel

    assert [made.group(axis).size for axis in ("tp", "pp", "dp", "cp")] == [p.tp, p.pp, p.dp, p.cp]
    assert made.group("dp_cp").size == p.dp * p.cp
    assert made.group("shard").size * made.group("replica").size >= p.dp * p.cp


@pytest.mark.parametrize("ep", [1, 2, 4, 8])
def test_expert_groups_and_their_replicas_fill_the_data_parallel_group(ep):
    made = layout(EXPERTS, dp=8, ep=ep)

    assert (made.group("ep").size, made.group("edp").size) == (ep, 8 // ep)


@pytest.mark.parametrize(("ep", "cp"), [(2, 1), (8, 1), (8, 2), (1, 1)])
def test_whole_experts_lie_on_the_tensor_ranks_first(ep, cp):
    """Their groups are neighbours; copies of one expert are as far apart as there are ranks between."""
    made = layout(EXPERTS, dp=4, tp=4, cp=cp, ep=ep, etp=1, sequence_parallel=True)
    axes = (("tp", 4), ("cp", cp), ("dp", 4), ("pp", 1))

    assert made.group("ep").size * made.group("edp").size == 16 * cp
    assert strides_of(axes, "ep", ep, folded=True) == ((ep, 1),)
    assert strides_of(axes, "edp", ep, folded=True) == ((16 * cp // ep, ep),)
    assert made.group("ep").inter_unit is False
    assert made.group("tp") == layout(EXPERTS, dp=4, tp=4, cp=cp).group("tp")


@given(
    sizes=st.permutations(("tp", "cp", "dp", "pp")),
    degrees=st.lists(st.sampled_from([1, 2, 3, 4, 6]), min_size=4, max_size=4),
    data=st.data(),
)
def test_expert_groups_divide_the_ranks_of_a_stage_whatever_lies_between(sizes, degrees, data):
    axes = tuple(zip(sizes, degrees, strict=True))
    degree = dict(axes)
    ranks = degree["tp"] * degree["cp"] * degree["dp"]
    ep = data.draw(st.sampled_from([d for d in range(1, ranks + 1) if ranks % d == 0]))
    inner, outer = (strides_of(axes, axis, ep, folded=True) for axis in ("ep", "edp"))
    offsets = {0}
    for n, apart in (*inner, *outer):
        offsets = {at + i * apart for at in offsets for i in range(n)}

    assert prod(n for n, _ in inner) == ep
    stage = {0}
    stride = 1
    for name, n in axes:
        stage = stage if name == "pp" else {at + i * stride for at in stage for i in range(n)}
        stride *= n
    assert offsets == stage


def test_zero_shards_whole_experts_over_their_own_copies():
    """dp 8, tp 2: dense weights have 8 owners; of 16 ranks in groups of 4 each expert has 4."""
    cut = layout(EXPERTS, dp=8, tp=2, ep=4, zero_stage=1, sequence_parallel=True)
    whole = layout(EXPERTS, dp=8, tp=2, ep=4, etp=1, zero_stage=1, sequence_parallel=True)

    assert (expert_shard_degree(cut), expert_shard_degree(whole)) == (2, 4)
    assert whole.chunk_parameters[0][1] == 2 * cut.chunk_parameters[0][1]
    assert stage_memory(whole, 0).optimizer == pytest.approx(stage_memory(cut, 0).optimizer)


@pytest.mark.parametrize(("ep", "shared", "copies"), [(2, 4, 2), (8, 1, 2), (16, 1, 1)])
def test_hybrid_sharding_divides_experts_inside_a_copy(ep, shared, copies):
    """A copy of the dense layers lies on the 8 ranks of a node; an expert on those of them that hold it."""
    made = layout(EXPERTS, dp=16, ep=ep, zero_stage=3, zero_group=8)
    crossing = [b for b in gradient_buckets(made, (0,)) if b.axis == "expert_replica"]

    assert (made.group("edp").size, made.group("expert_replica").size) == (shared, copies)
    assert expert_shard_degree(made) == shared
    assert made.group("edp").inter_unit is False
    assert [b.nbytes for b in crossing] == [made.chunk_parameters[0][1] * reduce_bytes(made) / shared] * (
        copies > 1
    )


@pytest.mark.parametrize("group", [2, 4, 8])
def test_hybrid_sharding_splits_the_group_in_two(group):
    made = layout(dp=16, zero_stage=3, zero_group=group)

    assert (made.group("shard").size, made.group("replica").size) == (group, 16 // group)
    assert made.group("shard").inter_unit is False
    assert made.group("replica").inter_unit is True


def test_the_innermost_axis_stays_inside_the_node():
    inner = layout(tp=8, dp=2)

    assert not inner.group("tp").inter_unit
    assert inner.group("dp").inter_unit


@pytest.mark.parametrize("virtual_stages", [1, 2, 4])
def test_interleaved_ranks_hold_as_many_chunks(virtual_stages):
    made = layout(pp=2, schedule="interleaved", virtual_stages=virtual_stages)

    assert [len(held) for held in made.chunks_of_stage] == [virtual_stages] * 2


def test_nodes_are_those_the_ranks_fill():
    assert [layout(dp=dp).num_nodes for dp in (1, 8, 16, 64)] == [1, 1, 2, 8]


def test_layers_that_do_not_fill_the_pipeline_are_refused():
    with pytest.raises(PlanError, match="8 layers do not fill 16"):
        _ = layout(pp=4, schedule="interleaved", virtual_stages=4).chunks


def test_another_plan_keeps_the_cluster():
    made, other = layout(pp=4), layout(tp=4)
    moved = with_plan(made, other.plan)

    assert moved.plan is other.plan
    assert (moved.model, moved.profile, moved.stack) == (GPT, made.profile, made.stack)


@pytest.mark.parametrize(
    ("model", "profile", "zero", "stack"),
    [
        ("resnet-50", "a100x8", 1, "pytorch-ddp"),
        ("lstm-small", "a100x8", 0, "pytorch-ddp"),
        ("mlp-small", "a100x8", 3, "fsdp"),
        ("gpt2-small", "a100x8", 1, "megatron-core"),
        ("resnet-50", "tpu-v4-128", 1, "jax"),
        ("resnet-50", "local-cpu", 1, "pytorch-cpu"),
    ],
)
def test_what_megatron_does_not_build_runs_on_plain_pytorch(model, profile, zero, stack):
    plan = Plan(
        model=model, profile=profile, job=Job(global_batch=8, seq_len=1), parallel=Parallel(zero_stage=zero)
    )

    assert default_stack(load_model(model), load_profile(profile), plan).name == stack
