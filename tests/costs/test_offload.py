"""Activations in host memory: what leaves, what stays, and what the copies add."""

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from layouts import layout, layouts

from plansim.costs.build import step_costs
from plansim.costs.layout import with_plan
from plansim.costs.memory import activation_bytes, stage_host_bytes, stage_memory
from plansim.costs.offload import away_bytes, exposed_s
from plansim.costs.recompute import kept_bytes
from plansim.plan.layout import first_layers
from plansim.planner.evaluate import Evaluator, step_seconds
from plansim.simulate.predict import predict_layout

SECONDS = st.floats(0.0, 10.0)
BLOCKS = st.lists(st.tuples(SECONDS, SECONDS, SECONDS), min_size=1, max_size=8)


def under(given_layout, **changed):
    return with_plan(given_layout, replace(given_layout.plan, **changed))


@given(blocks=BLOCKS, away=st.integers(0, 8))
def test_a_pass_waits_for_its_copies_and_for_nothing_else(blocks, away):
    """It ends with its work or its last copy, and no later than if one came after the other."""
    forward, backward, copies = map(list, zip(*blocks, strict=True))
    copies = [copy if i < away else 0.0 for i, copy in enumerate(copies)]

    out, back = exposed_s(forward, backward, copies)

    for exposed, work in ((out, sum(forward)), (back, sum(backward))):
        assert max(0.0, sum(copies) - work) - 1e-9 <= exposed <= sum(copies) + 1e-9


@pytest.mark.parametrize(
    ("layers", "copy", "out", "back"),
    [(4, 0.5, 0.5, 0.5), (4, 3.0, 9.0, 6.0), (2, 1.0, 0.0, 0.0), (2, 4.0, 5.0, 2.0)],
)
def test_equal_layers_by_hand(layers, copy, out, back):
    """Four layers of 1 s forward, 2 s backward; with 2 away at 4 s a copy: out at 1 + 8, back at 8 + 2."""
    copies = [copy] * layers + [0.0] * (4 - layers)

    assert exposed_s([1.0] * 4, [2.0] * 4, copies) == pytest.approx((out, back))


def test_the_first_layers_leave_and_never_the_ends():
    assert first_layers(("embedding", "layer", "moe_layer", "head"), 9) == (False, True, True, False)


def test_of_recomputed_layers_the_inputs_leave():
    kept, again = (
        layout(plan={"offload_activations": 3, "recompute": mode}, dp=2) for mode in ("none", "full")
    )

    assert sum(away_bytes(again, 0)) == 3 * again.chunks[0][1].boundary_bytes
    assert sum(away_bytes(kept, 0)) == 3 * kept_bytes(kept, kept.chunks[0][1], "none")


@settings(max_examples=30, deadline=None)
@given(made=layouts(), layers=st.integers(0, 9))
def test_what_leaves_the_device_is_on_the_host(made, layers):
    """More layers away hold no more on the device and no less on the host, and take no less time."""
    less, more = under(made, offload_activations=layers), under(made, offload_activations=layers + 1)

    for stage in range(made.plan.parallel.pp):
        a, b = activation_bytes(less, stage), activation_bytes(more, stage)
        assert b <= a * (1 + 1e-9)
        assert a - b <= (stage_host_bytes(more, stage) - stage_host_bytes(less, stage)) * (1 + 1e-9) + 1
    assert step_seconds(step_costs(more)) >= step_seconds(step_costs(less)) * (1 - 1e-9)


def test_two_layers_on_their_way_are_on_the_device():
    """With one microbatch in flight two layers away save nothing: both are on their way."""
    held = [stage_memory(layout(plan={"offload_activations": n}), 0).activations for n in (0, 2, 6)]
    each = kept_bytes(layout(), layout().chunks[0][1], "none")

    assert held[0] == pytest.approx(held[1])
    assert held[0] - held[2] == pytest.approx(4 * each)


def test_a_slow_host_link_shows_in_the_step_and_a_fast_one_does_not():
    slow, fast = (
        replace(made, profile=replace(made.profile, host=replace(made.profile.host, pcie_bytes_per_s=rate)))
        for made, rate in ((layout(plan={"offload_activations": 4}, microbatch=4), r) for r in (10e9, 1e13))
    )
    bare = predict_layout(layout(microbatch=4))

    assert predict_layout(fast).step_time_s == pytest.approx(bare.step_time_s, rel=1e-6)
    assert predict_layout(slow).breakdown.host_s > bare.breakdown.host_s
    assert predict_layout(slow).breakdown.total_s == pytest.approx(predict_layout(slow).step_time_s)


def test_host_memory_is_a_limit():
    made = layout(plan={"offload_activations": 8}, microbatch=4)
    small = replace(made.profile, host=replace(made.profile.host, memory_bytes=1e9))
    refused = Evaluator(made.model, small)(made.plan)

    assert refused.rule == "host memory"
    assert "its share of the node's is 119.2 MiB" in refused.detail
    assert refused.detail in predict_layout(replace(made, profile=small)).notes
