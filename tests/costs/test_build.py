"""From a plan to durations: what a step must do is neither lost nor counted twice."""

import math
from dataclasses import fields, replace

import pytest
from hypothesis import given, settings
from layouts import EXPERTS, layout, layouts

from plansim.costs.buckets import MAX_BUCKETS, comm_s, gather_bytes, reduce_bytes
from plansim.costs.build import (
    block_time,
    once_per_unit,
    step_costs,
    step_inflation,
    straggler_factor,
    without_optimizer,
    without_weight_gradients,
)
from plansim.costs.layout import with_plan
from plansim.costs.optimizer import optimizer_s, shard_degree
from plansim.costs.recompute import kept_bytes
from plansim.costs.step import Parts
from plansim.hardware.fabric import GroupShape
from plansim.plan.model import Compression, Method
from plansim.simulate.predict import predict_layout

MODES = ("none", "selective", "full")


def recomputing(made, mode):
    return with_plan(made, replace(made.plan, recompute=mode))


def passes(costs):
    return [c.forward + c.recompute + c.backward_input + c.backward_weight for c in costs.chunks]


@settings(max_examples=25)
@given(made=layouts())
def test_the_breakdown_sums_to_the_step(made):
    found = predict_layout(made)

    assert found.breakdown.total_s == pytest.approx(found.step_time_s, rel=1e-9)
    assert all(getattr(found.breakdown, f.name) >= 0 for f in fields(found.breakdown))


@settings(max_examples=25)
@given(made=layouts())
def test_the_step_is_no_shorter_than_the_work_of_its_fullest_rank(made):
    costs = step_costs(made)
    m = made.plan.num_microbatches
    work = [
        sum(m * (passes(costs)[c].total_s) for c in held) + end.optimizer_s + end.host_s
        for held, end in zip(made.chunks_of_stage, costs.stages, strict=True)
    ]

    assert predict_layout(made).step_time_s >= max(work) * (1 - 1e-9)


@settings(max_examples=25)
@given(made=layouts(microbatch=2))
def test_twice_the_batch_takes_about_twice_as_long(made):
    job = made.plan.job
    double = with_plan(made, replace(made.plan, job=replace(job, global_batch=2 * job.global_batch)))
    ratio = predict_layout(double).step_time_s / predict_layout(made).step_time_s

    assert 1.0 < ratio <= 2.0 + 1e-9


@pytest.mark.parametrize("pp", [1, 2, 4])
@pytest.mark.parametrize("zero_stage", [0, 1])
def test_twice_a_large_batch_takes_nearly_twice_as_long(pp, zero_stage):
    small, large = (
        predict_layout(layout(microbatches=m, pp=pp, dp=2, microbatch=4, zero_stage=zero_stage)).step_time_s
        for m in (32, 64)
    )

    assert 1.5 <= large / small <= 2.1


@settings(max_examples=25)
@given(made=layouts())
def test_recomputing_more_never_saves_time(made):
    none, selective, full = (predict_layout(recomputing(made, mode)).step_time_s for mode in MODES)

    assert none <= selective * (1 + 1e-9)
    assert selective <= full * (1 + 1e-9)


@pytest.mark.parametrize("tp", [1, 2])
def test_full_recomputation_repeats_the_forward_pass(tp):
    made = layout(pp=4, tp=tp, plan={"recompute": "full"})
    middle = step_costs(made).chunks[1]  # neither embedding nor head

    assert middle.recompute == middle.forward


def test_nothing_is_recomputed_unasked():
    assert all(c.recompute == Parts() for c in step_costs(layout(pp=2)).chunks)


@pytest.mark.parametrize("stack", ["megatron-core", "fsdp"])
def test_more_recomputation_keeps_less(stack):
    made = layout(stack=stack)
    for block in made.blocks:
        none, selective, full = (kept_bytes(made, block, mode) for mode in MODES)
        assert none >= selective >= full >= 0
        assert none == block.saved_bytes
    assert kept_bytes(made, made.blocks[1], "full") == made.blocks[1].boundary_bytes


@settings(max_examples=25)
@given(made=layouts())
def test_an_axis_of_one_does_not_communicate(made):
    p = made.plan.parallel
    for parts in passes(step_costs(made)):
        for axis in ("tp", "cp", "ep"):
            if getattr(p, axis) == 1:
                assert getattr(parts, f"{axis}_s") == 0.0


def test_axes_of_more_than_one_do_communicate():
    wide = passes(step_costs(layout(tp=4, stack="megatron-lm")))
    experts = passes(step_costs(layout(EXPERTS, dp=4, ep=4)))

    assert all(p.tp_s > 0 for p in wide)
    assert all(p.ep_s > 0 for p in experts)


@pytest.mark.parametrize("zero_stage", [0, 1, 2])
@pytest.mark.parametrize("stack", ["megatron-lm", "pytorch-ddp"])
def test_every_gradient_is_reduced_once(zero_stage, stack):
    made = layout(dp=4, pp=2, zero_stage=zero_stage, stack=stack)
    costs = step_costs(made)
    for held, end in zip(made.chunks_of_stage, costs.stages, strict=True):
        parameters = sum(b.parameters for c in held for b in made.chunks[c])
        assert sum(b.nbytes for b in end.reductions) == pytest.approx(parameters * reduce_bytes(made))
        assert {b.what for b in end.reductions} == {"reduce_scatter" if zero_stage else "all_reduce"}
        gathered = parameters * gather_bytes(made) if zero_stage else 0.0
        assert sum(b.nbytes for b in end.gathers) == pytest.approx(gathered)


def test_gradients_of_experts_are_reduced_over_their_replicas():
    made = layout(EXPERTS, dp=8, ep=4, stack="megatron-lm")
    dense = sum(b.parameters for b in made.blocks)
    expert = sum(b.expert_parameters for b in made.blocks)

    assert sum(b.nbytes for b in step_costs(made).stages[0].reductions) == pytest.approx(
        (dense + expert) * reduce_bytes(made)
    )
    assert expert == pytest.approx(sum(b.expert_parameters for b in layout(EXPERTS, dp=8).blocks) / 4)


def test_whole_experts_exchange_over_tensor_ranks_and_reduce_nothing_there():
    made = {
        etp: layout(EXPERTS, dp=4, tp=2, ep=4, etp=etp, sequence_parallel=True, stack="megatron-lm")
        for etp in (None, 1)
    }
    cut, whole = (made[etp].blocks[1] for etp in (None, 1))
    held = sum(b.parameters + b.expert_parameters for b in made[1].blocks)

    times = {etp: block_time(made[etp], block).forward for etp, block in ((None, cut), (1, whole))}
    assert 0 < times[1].tp_s < times[None].tp_s
    assert times[1].compute_s < times[None].compute_s
    assert sum(b.nbytes for b in step_costs(made[1]).stages[0].reductions) == pytest.approx(
        held * reduce_bytes(made[1])
    )


def test_zero3_gathers_every_parameter_in_every_pass():
    made = layout(dp=8, zero_stage=3)
    (chunk,) = step_costs(made).chunks

    assert sum(b.nbytes for b in chunk.gathers_per_pass) == pytest.approx(
        sum(b.parameters for b in made.blocks) * gather_bytes(made)
    )
    assert len(chunk.gathers_per_pass) <= MAX_BUCKETS
    ready = [b.ready_fraction for b in chunk.gathers_per_pass]
    assert ready == sorted(ready)
    assert 0 <= ready[0] <= ready[-1] < 1


def test_one_replica_reduces_nothing():
    costs = step_costs(layout(tp=8))

    assert all(not s.reductions and not s.gathers for s in costs.stages)


def test_buckets_fill_in_order_and_the_last_is_ready_at_the_end():
    ready = [b.ready_fraction for b in step_costs(layout(dp=8, stack="pytorch-ddp")).stages[0].reductions]

    assert ready == sorted(ready)
    assert len(ready) > 1
    assert ready[-1] == 1.0


def test_hybrid_sharding_reduces_shards_between_groups():
    whole, hybrid = (
        step_costs(layout(dp=16, zero_stage=1, zero_group=group, stack="megatron-lm")).stages[0].reductions
        for group in (None, 8)
    )

    assert hybrid[-1].what == "all_reduce"
    assert hybrid[-1].nbytes == pytest.approx(sum(b.nbytes for b in whole) / 8)


@settings(max_examples=25)
@given(made=layouts())
def test_activations_cross_every_boundary_between_stages_and_no_other(made):
    chunks = step_costs(made).chunks

    assert chunks[0].send_backward_s == 0.0
    assert chunks[-1].send_forward_s == 0.0
    assert all(c.send_forward_s > 0 for c in chunks[:-1])
    assert all(c.send_backward_s > 0 for c in chunks[1:])


def test_tied_embeddings_meet_at_the_ends_of_a_pipeline():
    tails = [s.tail_s for s in step_costs(layout(pp=4)).stages]

    assert tails[0] == tails[3] > 0
    assert tails[1] == tails[2] == 0.0
    assert all(s.tail_s == 0.0 for s in step_costs(layout(EXPERTS, pp=4)).stages)


def test_an_exchange_of_two_sends_every_byte_once():
    """All-reduce of n ranks: 2 (n - 1) / n of the bytes leave each, which is all of them for two."""
    made = layout(pp=4)
    table = made.model.vocab * made.model.hidden * reduce_bytes(made)

    assert step_costs(made).stages[0].tail_s == comm_s(made, "pp", "send_recv", table)


@pytest.mark.parametrize("nodes", [1, 2, 8])
def test_stragglers_cost_a_fraction_with_every_doubling_of_nodes(nodes):
    made = layout(dp=8 * nodes)
    patient = replace(made, stack=replace(made.stack, straggler_fraction=0.0))
    late = replace(made, stack=replace(made.stack, straggler_fraction=0.05))

    assert straggler_factor(patient) == 1.0
    assert straggler_factor(late) == pytest.approx(1 + 0.05 * math.log2(nodes))
    assert step_costs(late).chunks[0].forward.compute_s == pytest.approx(
        straggler_factor(late) * step_costs(patient).chunks[0].forward.compute_s
    )


def test_sharding_divides_the_optimizer():
    alone, shared = (layout(dp=8, zero_stage=z) for z in (0, 1))

    assert (shard_degree(alone), shard_degree(shared)) == (1, 8)
    assert optimizer_s(alone, 0) == pytest.approx(8 * optimizer_s(shared, 0), rel=0.1)


def test_offloading_pays_the_bus():
    kept, away = (layout(plan={"offload": offload}) for offload in (False, True))
    nbytes = 12.0 * sum(b.parameters for b in kept.blocks)  # state 8 and master 4, there and as much back

    stage = step_costs(away).stages[0]
    assert stage.copy_s == pytest.approx(nbytes / kept.profile.host.pcie_bytes_per_s)
    assert stage.optimizer_s == step_costs(kept).stages[0].optimizer_s == optimizer_s(kept, 0)
    assert (
        1.0 < stage.update_s / max(stage.copy_s, stage.optimizer_s) < 1.5
    )  # both ways and the update at once


def test_frozen_weights_have_no_gradient_and_no_update():
    costs = without_weight_gradients(step_costs(layout(dp=4)))

    assert all(c.backward_weight == Parts() and not c.reductions_per_pass for c in costs.chunks)
    assert all(not s.reductions and not s.gathers and s.optimizer_s == 0.0 for s in costs.stages)


def test_forward_and_backward_alone_keep_their_passes():
    whole = step_costs(layout(dp=4))

    assert without_optimizer(whole).chunks == whole.chunks
    assert without_optimizer(whole).stages[0].optimizer_s == 0.0 < whole.stages[0].optimizer_s


def test_compression_sends_less_and_says_what_it_costs():
    plain = layout(dp=16, stack="pytorch-ddp")
    method = Method(method="powersgd", options={"rank": 4})
    packed = with_plan(plain, replace(plain.plan, compression=Compression(gradients=method)))

    def wire_s(made):
        return sum(b.comm_s for b in step_costs(made).stages[0].reductions)

    assert wire_s(packed) < wire_s(plain)
    assert all(b.blocking_s > 0 for b in step_costs(packed).stages[0].reductions)
    assert step_inflation(plain) == (1.0, 1.0)
    assert step_inflation(packed)[0] <= step_inflation(packed)[1]


def test_a_token_crosses_to_each_node_once():
    """Counted over all choices of 3 experts on 4 nodes of 2: distinct nodes over copies."""
    drawn = [len({a // 2, b // 2, c // 2}) for a in range(8) for b in range(8) for c in range(8)]

    found = once_per_unit(GroupShape(counts=(2, 4)), 3)

    assert found == pytest.approx(sum(drawn) / len(drawn) / 3)
    assert once_per_unit(GroupShape(counts=(8,)), 3) == 1.0
