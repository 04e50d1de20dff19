"""What summing the gradients of microbatches costs: a second pass over them, or less where it is fused."""

from dataclasses import replace

import pytest
from layouts import layout

from plansim.costs.build import step_costs
from plansim.costs.compute import memory_bound_s
from plansim.costs.layout import with_plan
from plansim.costs.optimizer import accumulate_s
from plansim.hardware.stack import find_stack


def with_stack(made, **changes):
    return replace(made, stack=replace(find_stack("megatron-lm"), **changes))


@pytest.mark.parametrize(
    ("fused", "sums", "bytes_each"),
    [
        (True, 4.0, 6),  # reads and writes fp32 sums in place of writing a 16-bit gradient
        (False, 4.0, 10),  # reads the 16-bit gradient, reads and writes fp32 sums
        (False, 2.0, 6),  # all in 16 bits, as autograd adds
    ],
)
def test_bytes_of_one_addition(fused, sums, bytes_each):
    made = with_stack(
        layout(dp=1, microbatch=1), fused_accumulation=fused, gradient_bytes=sums, bf16_accumulation_bytes=0.0
    )
    m = made.plan.num_microbatches
    parameters = sum(made.chunk_parameters[0])

    assert m > 1
    assert accumulate_s(made, 0) == pytest.approx(
        memory_bound_s(made.profile.device, bytes_each * parameters) * (m - 1) / m
    )


def test_one_microbatch_adds_nothing():
    made = layout(dp=1)
    p = made.plan.parallel
    whole = with_plan(
        made, replace(made.plan, parallel=replace(p, microbatch=made.plan.job.global_batch // p.dp))
    )

    assert accumulate_s(whole, 0) == 0.0


def test_the_addition_stands_in_the_weight_gradients():
    plain, fused = (
        step_costs(with_stack(layout(dp=1, microbatch=1), fused_accumulation=f)) for f in (False, True)
    )

    assert plain.chunks[0].backward_weight.compute_s > fused.chunks[0].backward_weight.compute_s
    assert plain.chunks[0].backward_input == fused.chunks[0].backward_input


def test_sharded_gradients_are_reduced_not_added():
    made = with_stack(layout(dp=8, zero_stage=3, microbatch=1), fused_accumulation=False)
    other = replace(made, stack=replace(made.stack, fused_accumulation=True))

    assert step_costs(made).chunks[0].backward_weight == step_costs(other).chunks[0].backward_weight
