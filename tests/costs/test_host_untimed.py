"""Blocks of a CPU host that nobody timed: their kernels one by one, and what the framework adds."""

from dataclasses import replace

import pytest

from plansim.costs.build import block_time, step_costs
from plansim.costs.hostdata import TIMED_LOG_STD, stack_as_timed
from plansim.costs.hostuntimed import GRU_STEP_KERNELS, eager_operators
from plansim.costs.layout import Layout
from plansim.hardware.read import at_speed, load_profile
from plansim.plan.model import Job, Parallel, Plan
from plansim.simulate.predict import predict
from plansim.workload.operators import Communication, Elementwise, Matmul, Recurrent
from plansim.workload.read import load_model

PROFILE = load_profile("local-cpu")
PRODUCT = Matmul(name="up", m=4, n=4, k=4)
GELU = Elementwise(name="gelu", forward_bytes=8.0, backward_bytes=8.0, launches=2)


def host(kernel_s=0.0, **frameworks):
    """Return the local CPU with no overheads but those given."""
    given = {**PROFILE.calibration, "blocks": [], "autograd_kernel_s": kernel_s, "frameworks": frameworks}
    return replace(PROFILE, calibration=given)


def laid_out(profile, model="gpt-mini", **parallel):
    shape = load_model(model)
    job = Job(global_batch=8, seq_len=shape.seq_len or 1, dtype="fp32")
    parallel = {"microbatch": 4, **parallel}
    return Layout.of(
        shape, profile, Plan(model=model, profile="local-cpu", job=job, parallel=Parallel(**parallel))
    )


def passes(profile, **how):
    """Return the compute and host seconds of all forward and of all backward passes of the only chunk."""
    (chunk,) = step_costs(laid_out(profile, **how)).chunks
    sums = [
        [sum(getattr(part, name) for part in parts) for name in ("compute_s", "host_s")]
        for parts in ((chunk.forward,), (chunk.backward_input, chunk.backward_weight))
    ]
    return [sum(both) for both in sums]


def added(cheap, dear, **how):
    """Return by how much forward and backward are longer on one host than on another."""
    return [b - a for a, b in zip(passes(cheap, **how), passes(dear, **how), strict=True)]


def operators(**how):
    return sum(eager_operators(b.operators) for b in laid_out(PROFILE, **how).blocks)


@pytest.mark.parametrize("model", ["gpt-mini", "vgg-tiny", "gru-small", "mlp-medium"])
def test_every_operator_is_dispatched_once_forward_and_twice_backward(model):
    forward, backward = added(host(), host(kernel_s=1e-3), model=model)

    assert forward == pytest.approx(1e-3 * operators(model=model))
    assert backward == pytest.approx(2 * forward)


def test_operators_on_a_dtensor_cost_more_than_plain_ones():
    dear = host(dtensor_forward_s=1e-3, dtensor_backward_s=2e-3)

    assert added(host(), dear) == [0.0, 0.0]
    forward, backward = added(host(), dear, tp=2)
    assert forward == pytest.approx(1e-3 * operators(tp=2))
    assert backward == pytest.approx(4e-3 * operators(tp=2))


def test_a_sharded_block_pays_once_and_for_its_bytes():
    fixed = host(sharded_forward_s=1.0, sharded_backward_s=3.0)
    by_size = host(sharded_forward_s_per_byte=1e-6, sharded_backward_s_per_byte=2e-6)
    sharded = {"dp": 2, "zero_stage": 3}
    layout = laid_out(PROFILE, **sharded)
    held = 4.0 * sum(b.parameters for b in layout.blocks)

    assert added(host(), fixed, dp=2) == [0.0, 0.0]
    assert added(host(), fixed, **sharded) == pytest.approx([len(layout.blocks), 3 * len(layout.blocks)])
    assert added(host(), by_size, **sharded) == pytest.approx([1e-6 * held, 2e-6 * held])


def test_only_maxima_over_windows_are_slower_than_their_bytes():
    dear = host(max_pool_s_per_byte=1e-6)
    pools = [
        op.forward_bytes
        for b in laid_out(PROFILE, model="vgg-tiny").blocks
        for op in b.operators
        if op.name == "max_pool"
    ]

    assert len(pools) == 3
    assert added(host(), dear, model="vgg-tiny") == pytest.approx([1e-6 * sum(pools), 0.0])
    assert added(host(), dear) == [0.0, 0.0]


def test_repeating_a_forward_pass_dispatches_it_again():
    def host_s(mode, profile):
        plan = replace(laid_out(profile).plan, recompute=mode)
        (chunk,) = step_costs(Layout.of(load_model("gpt-mini"), profile, plan)).chunks
        return chunk.recompute.host_s

    assert host_s("none", host(kernel_s=1e-3)) == 0.0
    layers = [b for b in laid_out(PROFILE).blocks if b.kind == "layer"]
    repeated = 1e-3 * sum(eager_operators(b.operators) for b in layers)
    assert host_s("full", host(kernel_s=1e-3)) == pytest.approx(repeated)


def test_a_slower_core_dispatches_as_much_slower():
    def slower(profile):
        (group,) = profile.groups
        return replace(profile, groups=(replace(group, device=at_speed(group.device, 0.5)),))

    free, dear = host(), host(kernel_s=1e-3)
    assert added(slower(free), slower(dear)) == pytest.approx([2 * s for s in added(free, dear)])


def test_communication_is_no_operator_and_a_gru_steps_kernel_by_kernel():
    sent = Communication(name="leave", axis="tp", collective="all_reduce", nbytes=8.0)
    gru, lstm = (
        Recurrent(name="cell", batch=2, seq=5, in_features=4, hidden=4, gates=gates) for gates in (3, 4)
    )

    assert eager_operators((PRODUCT, GELU, sent)) == 3
    assert eager_operators((gru,)) == 1 + 5 * GRU_STEP_KERNELS
    assert eager_operators((lstm,)) == 1


def test_eager_attention_moves_its_scores_more_often_than_a_fused_kernel():
    layout = laid_out(PROFILE)
    eager = replace(layout, plan=replace(layout.plan, attention="unfused"))
    fused = replace(eager, stack=replace(layout.stack, fused_softmax=True))

    slow, fast = (
        next(block_time(found, b).forward.compute_s for b in found.blocks if b.kind == "layer")
        for found in (eager, fused)
    )
    assert slow > fast


def test_timed_blocks_narrow_the_interval():
    layout = laid_out(PROFILE)
    kinds = dict.fromkeys(b.kind for b in layout.blocks)
    rows = [
        {
            "model": "gpt-mini", "kind": kind, "wrapper": "plain", "microbatch": 4, "seq_len": 128, "tp": 1,
            "recompute": "none", "attention": layout.plan.attention, "dtype": "fp32", "forward_s": 1.0,
            "backward_s": 1.0, "accumulate_s": 0.0, "parameters": 1, "tensors": 1,
            "kept_bytes": 1.0, "forward_peak_bytes": 1.0, "backward_peak_bytes": 1.0,
        }
        for kind in kinds
    ]  # fmt: skip

    def known(blocks):
        return replace(PROFILE, calibration={**PROFILE.calibration, "blocks": blocks})

    def width(blocks):
        found = predict(layout.model, known(blocks), layout.plan)
        return (
            found.step_time_high_s / found.step_time_s,
            found.peak_memory_high_bytes / found.peak_memory_bytes,
        )

    assert stack_as_timed(replace(layout, profile=known(rows))).residual_log_std == TIMED_LOG_STD
    assert width(rows[:-1]) == width([])  # one that was not timed is enough
    assert all(timed < untimed for timed, untimed in zip(width(rows), width([]), strict=True))
