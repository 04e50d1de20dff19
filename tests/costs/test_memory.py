"""Peak memory: sharding and recomputation only ever free it, flights are those of the schedule."""

from dataclasses import fields, replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from layouts import GPT, layout, layouts

from plansim.costs.layout import with_plan
from plansim.costs.memory import flights_of, memory_limit_bytes, stage_memory, with_frozen_weights
from plansim.schedules import SCHEDULES, find_schedule
from plansim.workload.totals import parameter_count


def held(made):
    return [stage_memory(made, s) for s in range(made.plan.parallel.pp)]


def with_zero(made, stage):
    parallel = replace(made.plan.parallel, zero_stage=stage)
    return with_plan(made, replace(made.plan, parallel=parallel))


@settings(max_examples=25)
@given(made=layouts(zero_stage=0))
def test_sharding_more_never_holds_more_state(made):
    stages = [held(with_zero(made, z)) for z in range(4)]
    for less, more in zip(stages[1:], stages[:-1], strict=True):
        for a, b in zip(less, more, strict=True):
            assert a.weights <= b.weights
            assert a.gradients <= b.gradients
            assert a.optimizer <= b.optimizer
            assert a.activations == b.activations


@settings(max_examples=25)
@given(made=layouts(zero_stage=0, pp=1, dp=4))
def test_without_a_pipeline_sharding_more_never_needs_more_memory(made):
    totals = [held(with_zero(made, z))[0].total_bytes for z in range(4)]

    assert totals == sorted(totals, reverse=True)


@settings(max_examples=25)
@given(made=layouts())
def test_recomputing_more_never_needs_more_memory(made):
    none, selective, full = (
        held(with_plan(made, replace(made.plan, recompute=mode))) for mode in ("none", "selective", "full")
    )
    for a, b, c in zip(none, selective, full, strict=True):
        assert a.total_bytes >= b.total_bytes >= c.total_bytes


@settings(max_examples=25)
@given(made=layouts())
def test_categories_are_bytes_and_sum_to_the_peak(made):
    for memory in held(made):
        parts = [getattr(memory, f.name) for f in fields(memory)]
        assert all(part >= 0 for part in parts)
        assert memory.total_bytes == pytest.approx(sum(parts))


def test_mixed_precision_holds_eighteen_bytes_per_parameter():
    """16-bit weight 2, fp32 gradient 4, master copy 4, Adam 8 (Megatron-LM's main-gradient recipe)."""
    memory = held(layout(stack="megatron-lm"))[0]
    n = parameter_count(GPT)

    assert memory.weights == pytest.approx(2 * n, rel=1e-3)
    assert memory.gradients == pytest.approx(4 * n, rel=1e-3)
    assert memory.optimizer == pytest.approx(12 * n, rel=1e-3)


def test_the_first_stage_of_1f1b_holds_the_most_activations():
    activations = [m.activations for m in held(layout(pp=4, microbatches=16))]

    assert activations[0] > activations[1] > activations[2]


def test_gpipe_holds_every_microbatch():
    few, many = (held(layout(pp=2, microbatches=m, schedule="gpipe"))[0].activations for m in (8, 16))
    same = [held(layout(pp=2, microbatches=m))[0].activations for m in (8, 16)]

    assert many > 1.9 * few
    assert same[0] == same[1]


def test_offloaded_state_leaves_the_device():
    assert held(layout(plan={"offload": True}))[0].optimizer == 0.0


def test_frozen_weights_have_neither_gradients_nor_state():
    memory = held(layout())[0]
    frozen = with_frozen_weights(memory)

    assert frozen.gradients == frozen.optimizer == 0.0
    assert frozen.weights == memory.weights


def test_the_limit_is_the_devices_memory():
    made = layout()

    assert memory_limit_bytes(made) == made.profile.device.memory_bytes


@given(
    name=st.sampled_from(sorted(SCHEDULES)),
    pp=st.integers(2, 5),
    v=st.integers(1, 3),
    rounds=st.integers(1, 9),
    data=st.data(),
)
def test_flights_are_those_of_a_walk_over_the_whole_program(name, pp, v, rounds, data):
    schedule = find_schedule(name)
    v = {"interleaved": v, "zbv": 2, "dualpipev": 2}.get(name, 1)
    m = pp * rounds + (2 * pp if name == "dualpipev" else 0)
    assert schedule.check(pp, m, v) is None
    for rank in range(pp):
        actions = schedule.actions(pp, m, v)[rank]
        chunks = sorted({a.chunk for a in actions})
        kept = {c: data.draw(st.sampled_from([0.5, 1.0, 3.0])) for c in chunks}
        splits = any(a.kind == "W" for a in actions)
        assert splits or all(a.kind in "FB" for a in actions)

        live = peak = 0.0
        for action in actions:
            live += kept[action.chunk] * {"F": 1, "B": -1, "I": 0, "W": -1}[action.kind]
            peak = max(peak, live)

        assert live == 0.0
        found = flights_of(name, pp, m, v, rank) @ np.array([kept[c] for c in chunks])
        assert found.max() == pytest.approx(peak)


def test_eight_bit_recipes_that_keep_quantised_inputs_hold_fewer_activations():
    """Transformer Engine keeps the 8-bit copy of a product's input: one byte less for each."""
    model = replace(GPT, tied_embeddings=False)
    bf16, fp8 = (
        held(layout(model, profile="h100x8", stack="megatron-core", job={"dtype": dtype}))[0].activations
        for dtype in ("bf16", "fp8")
    )
    kept_as_is = held(layout(model, profile="h100x8", stack="torchtitan", job={"dtype": "fp8"}))[
        0
    ].activations
    tokens, inputs = model.seq_len, (2 * model.hidden + model.ffn) * model.layers

    assert kept_as_is > fp8
    assert bf16 - fp8 == pytest.approx(tokens * inputs * 1.01, rel=0.02)
