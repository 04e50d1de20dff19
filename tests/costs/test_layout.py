"""How a plan lies on a cluster: nothing is lost between chunks, groups multiply to the world."""

import pytest
from hypothesis import given
from layouts import EXPERTS, GPT, layout, layouts

from plansim.costs.layout import with_plan
from plansim.errors import PlanError


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
