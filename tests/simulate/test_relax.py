"""The relaxation engine: closed forms, exact extrapolation, and a breakdown that adds up."""

import itertools
import math
from dataclasses import fields, replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from stepcosts import random_costs, step_costs

from plansim.costs.step import Bucket, ChunkCosts, Parts, StageEnd
from plansim.errors import InputError, PlanError, SimulationError, UnknownNameError
from plansim.simulate import simulate_step
from plansim.simulate.relax import relax


@given(
    pp=st.integers(1, 12), m=st.integers(1, 60), f=st.floats(0.1, 3), b=st.floats(0.1, 3), w=st.floats(0.1, 3)
)
@pytest.mark.parametrize("name", ["1f1b", "gpipe"])
def test_equal_stages_and_free_links(name, pp, m, f, b, w):
    """(m + pp - 1)(t_f + t_b): Huang et al. 2019; Narayanan et al. 2021, section 2.2."""
    result = simulate_step(step_costs(pp, m, schedule=name, f=f, b=b, w=w))
    assert result.step_time_s == pytest.approx((m + pp - 1) * (f + b + w), rel=1e-12)
    assert result.bubble_fraction == pytest.approx((pp - 1) / (m + pp - 1), abs=1e-9)


@given(
    pp=st.integers(2, 8),
    rounds=st.integers(1, 8),
    v=st.integers(1, 4),
    f=st.floats(0.1, 3),
    b=st.floats(0.1, 3),
)
def test_interleaving_divides_the_bubble(pp, rounds, v, f, b):
    """m v (f + b) + (pp - 1)(f + b): Narayanan et al. 2021, section 2.2 (t_pb / v)."""
    m = pp * rounds
    result = simulate_step(step_costs(pp, m, schedule="interleaved", v=v, f=f, b=b, w=0.0))
    assert result.step_time_s == pytest.approx((m * v + pp - 1) * (f + b), rel=1e-12)


@given(pp=st.integers(2, 10), extra=st.integers(0, 30), t=st.floats(0.1, 3))
def test_zb_h1_rate(pp, extra, t):
    """(pp - 1)(t_f + t_b - t_w) of bubble: Qi et al. 2024, table 1."""
    m = 2 * pp + extra
    result = simulate_step(step_costs(pp, m, schedule="zb-h1", f=t, b=t, w=t))
    assert result.step_time_s == pytest.approx(m * 3 * t + (pp - 1) * t, rel=1e-12)


@given(pp=st.integers(1, 8), extra=st.integers(0, 30))
def test_zb_h2_fills_every_rank(pp, extra):
    """With t_f = t_b = t_w no rank waits between its first and its last pass: Qi et al. 2024, section 2.3."""
    m = 2 * pp + extra
    result = simulate_step(step_costs(pp, m, schedule="zb-h2", chunk={"activation_bytes": 1.0}), spans=True)
    for rank in range(pp):
        mine = [s for s in result.spans if s.rank == rank]
        assert max(s.end_s for s in mine) - min(s.start_s for s in mine) == pytest.approx(3 * m)
    assert [sum(u.held.values()) for u in result.ranks] == [2 * pp - 1] * pp


@given(pp=st.integers(2, 8), extra=st.integers(0, 30))
def test_zbv_has_no_bubble_but_the_first_fill(pp, extra):
    """With t_f = t_b = t_w only the last rank's wait for the first message is left."""
    m = 2 * pp + extra
    result = simulate_step(step_costs(pp, m, schedule="zbv", v=2))
    assert result.step_time_s == pytest.approx(m * 6 + pp - 1, rel=1e-12)


@given(pp=st.integers(2, 8), extra=st.integers(0, 30), more=st.floats(1, 2), w=st.floats(0.3, 1))
def test_dualpipev_bubble(pp, extra, more, w):
    """Of equal passes one fill is left, as in ZB-V; never more than the published bubble of DualPipeV,
    (pp - 1)(F&B + B - 3W) with B = I + W, where here forward and backward take turns: F&B = F + B
    (DeepSeek-AI, DualPipe, table of bubbles), while no forward is longer than an input gradient."""
    m = 2 * pp + extra
    equal = simulate_step(step_costs(pp, m, schedule="dualpipev", v=2))
    assert equal.step_time_s == pytest.approx(m * 6 + pp - 1, rel=1e-12)
    result = simulate_step(step_costs(pp, m, schedule="dualpipev", v=2, f=1.0, b=more, w=w))
    published = (pp - 1) * (1 + 2 * (more + w) - 3 * w)
    assert result.step_time_s <= m * 2 * (1 + more + w) + published + 1e-9


def test_slow_sends_bound_1f1b_by_the_zigzag():
    """Two stages, sends longer than compute: every microbatch pair crosses forth and back."""
    result = simulate_step(step_costs(2, 40, f=1.0, b=1.0, w=1.0, send=10.0))
    more = simulate_step(step_costs(2, 42, f=1.0, b=1.0, w=1.0, send=10.0))
    assert more.step_time_s - result.step_time_s == pytest.approx(2 * 3 + 2 * 10)
    assert result.breakdown.pp_exposed_s > result.breakdown.bubble_s


def test_the_slowest_stage_sets_the_pace():
    def time_of(m):
        costs = step_costs(3, m)
        slow = replace(costs.chunks[1], forward=Parts(compute_s=2.0))
        return simulate_step(replace(costs, chunks=(costs.chunks[0], slow, costs.chunks[2]))).step_time_s

    assert time_of(51) - time_of(50) == pytest.approx(4.0)
    assert time_of(50) > 50 * 4


@given(costs=random_costs(max_microbatches=90))
def test_extrapolation_equals_the_full_run_and_the_breakdown_adds_up(costs):
    fast = simulate_step(costs)
    full = simulate_step(costs, extrapolate=False)
    traced = simulate_step(costs, spans=True)
    for other in (full, traced):
        assert fast.step_time_s == pytest.approx(other.step_time_s, rel=1e-11)
        assert fast.critical_rank == other.critical_rank or fast.ranks[other.critical_rank].finish_s == (
            pytest.approx(fast.ranks[fast.critical_rank].finish_s, rel=1e-11)
        )
        for mine, theirs in zip(fast.ranks, other.ranks, strict=True):
            assert mine.finish_s == pytest.approx(theirs.finish_s, rel=1e-11)
            assert mine.dp_wait_s == pytest.approx(theirs.dp_wait_s, rel=1e-9, abs=1e-9)
            assert mine.held_bytes == theirs.held_bytes
    assert fast.breakdown.total_s == pytest.approx(fast.step_time_s, rel=1e-11)
    assert sum(t.seconds for t in traced.critical_path) == pytest.approx(traced.step_time_s, rel=1e-9)
    assert all(getattr(fast.breakdown, f.name) >= 0 for f in fields(fast.breakdown))
    assert 0 <= fast.bubble_fraction < 1


@given(
    passes=st.lists(st.tuples(st.floats(0.1, 2), st.floats(0.1, 2)), min_size=1, max_size=6),
    m=st.integers(1, 60),
    send=st.sampled_from([0.0, 0.1, 3.0]),
    waits=st.booleans(),
)
def test_gpipe_skips_what_only_adds_the_same(passes, m, send, waits):
    """Uneven stages drift apart without end, yet every pass adds a constant, forwards and then backwards."""
    costs = step_costs(len(passes), m, schedule="gpipe", send=send, async_sends=waits)
    chunks = tuple(
        replace(c, forward=Parts(compute_s=f), backward_input=Parts(compute_s=b), activation_bytes=2.0)
        for c, (f, b) in zip(costs.chunks, passes, strict=True)
    )
    costs = replace(costs, chunks=chunks)
    fast, full = simulate_step(costs), simulate_step(costs, extrapolate=False)
    assert fast.step_time_s == pytest.approx(full.step_time_s, rel=1e-12)
    assert (
        [r.held for r in fast.ranks] == [r.held for r in full.ranks] == [{i: m} for i in range(len(passes))]
    )
    if m > len(passes) + 20:
        machine, _, repeats = relax(costs)
        assert machine.blocks_run < 2 * repeats


@pytest.mark.parametrize("pp", [1, 4])
def test_many_microbatches_take_no_longer_than_few(pp):
    """A wire that nobody uses stands still while all clocks go on: that is no other state."""
    machine, _, repeats = relax(step_costs(pp, 100_000))
    assert repeats > 90_000
    assert machine.blocks_run < 20


@given(costs=random_costs(max_microbatches=12), more=st.floats(0.01, 1))
def test_more_work_never_makes_a_step_shorter(costs, more):
    slower = replace(costs.chunks[0], forward=costs.chunks[0].forward + Parts(compute_s=more))
    base = simulate_step(replace(costs, compute_slowdown=1.0, comm_slowdown=1.0)).step_time_s
    longer = simulate_step(
        replace(costs, chunks=(slower, *costs.chunks[1:]), compute_slowdown=1.0, comm_slowdown=1.0)
    ).step_time_s
    assert longer >= base * (1 - 1e-12)


def one_rank(m=8, **options):
    reductions = tuple(Bucket(nbytes=1, comm_s=0.3, ready_fraction=(i + 1) / 4, chunk=0) for i in range(4))
    return step_costs(1, m, stages=(StageEnd(reductions=reductions, optimizer_s=0.2, host_s=0.1),), **options)


def test_buckets_hide_behind_the_last_backward_and_only_the_last_is_exposed():
    result = simulate_step(one_rank())
    assert result.step_time_s == pytest.approx(8 * 3 + 0.3 + 0.2 + 0.1)
    assert result.breakdown.dp_exposed_s == pytest.approx(0.3)


def test_without_overlap_every_bucket_is_exposed():
    result = simulate_step(one_rank(overlap_gradients=False))
    assert result.ranks[0].dp_link_s == pytest.approx(4 * 0.3)
    assert result.breakdown.dp_exposed_s == pytest.approx(4 * 0.3)


def test_interference_slows_both_while_they_overlap():
    """Three buckets of 0.3 s run beside compute at 1.5 of their time: each costs 0.45 - 0.3 s of compute."""
    result = simulate_step(one_rank(compute_slowdown=1.5, comm_slowdown=1.5))
    assert result.breakdown.dp_exposed_s == pytest.approx(3 * 0.15 + 0.3)


def test_sharded_parameters_are_gathered_ahead():
    gathers = tuple(Bucket(nbytes=1, comm_s=0.2, ready_fraction=i / 4, chunk=0) for i in range(4))
    hidden = simulate_step(step_costs(1, 16, chunk={"gathers_per_pass": gathers}))
    assert hidden.breakdown.dp_exposed_s == pytest.approx(0.2)
    exposed = simulate_step(step_costs(1, 16, chunk={"gathers_per_pass": gathers}, overlap_parameters=False))
    assert exposed.breakdown.dp_exposed_s == pytest.approx(16 * 2 * 4 * 0.2)
    slow = tuple(g._replace(comm_s=2.0) for g in gathers)
    bound = simulate_step(step_costs(1, 16, chunk={"gathers_per_pass": slow}))
    assert bound.step_time_s == pytest.approx(16 * 2 * 4 * 2.0 + 0.5, rel=1e-9)


def test_gathers_after_a_sharded_optimizer_hide_in_the_next_forward():
    gathers = (
        Bucket(nbytes=1, comm_s=0.4, ready_fraction=0.0, chunk=0),
        Bucket(nbytes=1, comm_s=0.4, ready_fraction=0.5, chunk=0),
    )
    stages = (StageEnd(gathers=gathers),)
    assert simulate_step(step_costs(1, 4, stages=stages)).breakdown.dp_exposed_s == pytest.approx(0.4)
    late = simulate_step(step_costs(1, 4, stages=stages, overlap_parameters=False))
    assert late.breakdown.dp_exposed_s == pytest.approx(0.8)


def test_blocking_sends_keep_the_sender():
    free = simulate_step(step_costs(4, 32, send=0.2))
    kept = simulate_step(step_costs(4, 32, send=0.2, async_sends=False))
    assert kept.step_time_s > free.step_time_s
    assert kept.ranks[0].send_s == pytest.approx(32 * 0.2)
    assert free.ranks[1].pp_link_s == pytest.approx(2 * 32 * 0.2)


def test_1f1b_holds_pp_minus_rank_activations():
    result = simulate_step(step_costs(4, 64, chunk={"activation_bytes": 10.0, "backward_extra_bytes": 1.0}))
    assert [r.held for r in result.ranks] == [{0: 4}, {1: 3}, {2: 2}, {3: 1}]
    assert [r.held_bytes for r in result.ranks] == [41, 31, 21, 11]


def test_an_optimizer_in_host_memory_passes_the_device_in_pieces():
    """Copies in, updates and copies out follow one another: (u + 2c)/8 + 7/8 max(u, c), on three streams."""
    costs = step_costs(1, 2, stages=(StageEnd(optimizer_s=0.4, copy_s=1.6),))
    result = simulate_step(costs, spans=True)
    assert result.step_time_s == pytest.approx(2 * 3 + (0.4 + 3.2) / 8 + 7 / 8 * 1.6)
    assert result.breakdown.optimizer_s == pytest.approx(result.step_time_s - 6)
    for stream, seconds in (("h2d", 1.6), ("d2h", 1.6)):
        pieces = [s for s in result.spans if s.stream == stream]
        assert len(pieces) == 8
        assert sum(s.duration_s for s in pieces) == pytest.approx(seconds)
    assert max(s.end_s for s in result.spans) == pytest.approx(result.step_time_s)


def test_spans_of_a_rank_do_not_overlap_on_a_stream():
    result = simulate_step(step_costs(4, 12, send=0.3, chunk={"recompute": Parts(compute_s=0.5)}), spans=True)
    streams = {}
    for span in result.spans:
        streams.setdefault((span.rank, span.stream), []).append(span)
    for spans in streams.values():
        for a, b in itertools.pairwise(spans):
            assert a.end_s <= b.start_s + 1e-9
    assert {s.category for s in result.spans} == {"compute", "recompute", "pp_exposed"}
    assert max(s.end_s for s in result.spans) == pytest.approx(result.step_time_s)


def test_a_step_that_cannot_finish_names_who_waits(tmp_path):
    path = tmp_path / "stuck.csv"
    path.write_text("0F0,0B0,0F1,0B1\n1F1,1B1,1F0,1B0\n")
    with pytest.raises(SimulationError) as caught:
        simulate_step(step_costs(2, 2, schedule=str(path)))
    assert str(caught.value) == (
        "the step cannot finish: rank 0 at 0B0 waits for 1B0 of rank 1; rank 1 at 1F1 waits for 0F1 of rank 0"
    )


def test_a_table_may_change_the_order_of_microbatches(tmp_path):
    path = tmp_path / "order.csv"
    path.write_text("0F0,0F1,0B1,0B0\n1F1,1B1,1F0,1B0\n")
    result = simulate_step(step_costs(2, 2, schedule=str(path)))
    assert result.step_time_s == pytest.approx(2 + 3 + 3 + 2)


def test_wrong_input_is_refused():
    with pytest.raises(UnknownNameError, match="did you mean"):
        simulate_step(step_costs(1, 1, schedule="1f1"))
    with pytest.raises(PlanError, match="one chunk a rank"):
        simulate_step(step_costs(2, 4, v=2))
    with pytest.raises(InputError, match="costs name 2 chunks"):
        simulate_step(replace(step_costs(2, 4), pp=4, stages=(StageEnd(),) * 4))


def test_results_are_plain_numbers():
    result = simulate_step(step_costs(2, 4))
    assert type(result.step_time_s) is float
    assert math.isfinite(result.bubble_fraction)
    assert isinstance(result.critical_path[0].what, str)
    assert ChunkCosts(forward=Parts(), backward_input=Parts(), backward_weight=Parts()).activation_bytes == 0
