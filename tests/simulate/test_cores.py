"""Ranks on shared cores: the closed forms of processor sharing, and who waits for whom."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from plansim.costs.step import Bucket, ChunkCosts, Parts, StageEnd, StepCosts
from plansim.errors import SimulationError
from plansim.plan.grid import Grid
from plansim.simulate import cores as module
from plansim.simulate.cores import shared_cores_s
from plansim.simulate.step import simulate_step

times = st.floats(min_value=0.01, max_value=10.0)


def grid(pp=1, dp=1, tp=1):
    return Grid(axes=("pp", "dp", "cp", "tp"), sizes=(pp, dp, 1, tp))


def chunk(forward, backward, send=0.0):
    return ChunkCosts(
        forward=Parts(compute_s=forward),
        backward_input=Parts(compute_s=backward),
        backward_weight=Parts(),
        send_forward_s=send,
        send_backward_s=send,
    )


def costs(pp=1, m=1, forward=1.0, backward=2.0, end=None, schedule="1f1b"):
    return StepCosts(
        chunks=(chunk(forward, backward),) * pp, stages=(end or StageEnd(),) * pp, schedule=schedule, pp=pp,
        num_microbatches=m,
    )  # fmt: skip


@given(forward=times, backward=times, ranks=st.sampled_from([2, 4, 8]))
def test_equal_ranks_share_their_cores_evenly(forward, backward, ranks):
    step = shared_cores_s(costs(forward=forward, backward=backward), grid(dp=ranks), 2)

    assert step == pytest.approx((forward + backward) * ranks / 2)


@given(forward=times, backward=times, m=st.integers(1, 6), pp=st.integers(2, 4))
def test_a_core_for_each_stage_gives_the_pipeline_formula(forward, backward, m, pp):
    """GPipe with equal stages and free sends: (m + pp - 1) (f + b)."""
    step = shared_cores_s(costs(pp, m, forward, backward, schedule="gpipe"), grid(pp=pp), pp)

    assert step == pytest.approx((m + pp - 1) * (forward + backward))


@given(m=st.integers(1, 8))
def test_bubbles_are_used_by_the_other_rank_of_a_core(m):
    """Four stages on two cores: more than the work of a core, less than twice the step of four cores."""
    four, two = (shared_cores_s(costs(4, m), grid(pp=4), cores) for cores in (4, 2))

    assert 2 * m * 3.0 <= two * (1 + 1e-9)
    assert four * (1 - 1e-9) <= two <= 2 * four * (1 + 1e-9)


def test_all_on_one_core_is_all_the_work():
    assert shared_cores_s(costs(4, 3), grid(pp=4), 1) == pytest.approx(4 * 3 * 3.0)


def test_every_replica_runs_its_own_share():
    """Four replicas on two cores: those of a core take turns, and the fuller core ends last."""
    assert shared_cores_s(costs(), grid(dp=4), 2, shares=(3, 1, 1, 3)) == pytest.approx(4 * 3.0)
    assert shared_cores_s(costs(), grid(dp=4), 2, shares=(3, 1, 3, 1)) == pytest.approx(6 * 3.0)


def test_contention_counts_only_where_cores_are_shared():
    assert shared_cores_s(costs(), grid(dp=4), 2, contention=1.1) == pytest.approx(6.6)
    assert shared_cores_s(costs(), grid(dp=2), 2, contention=1.1) == pytest.approx(3.0)


def test_a_collective_starts_when_the_last_rank_arrives():
    end = StageEnd(
        reductions=(Bucket(nbytes=1.0, comm_s=0.5, ready_fraction=1.0, chunk=0),), optimizer_s=0.25
    )

    assert shared_cores_s(costs(end=end), grid(dp=4), 2) == pytest.approx(2 * (3.0 + 0.5 + 0.25))


def test_ranks_that_wait_for_ever_are_an_error(monkeypatch):
    monkeypatch.setattr(module, "_program", lambda *_: [("await", 0.0, ("never",))])

    with pytest.raises(SimulationError, match="for ever"):
        shared_cores_s(costs(), grid(dp=2), 2)


def test_a_slow_wire_keeps_ranks_waiting_without_their_cores():
    bucket = Bucket(nbytes=1.0, comm_s=0.5, ready_fraction=1.0, chunk=0)
    end, late = StageEnd(reductions=(bucket,)), StageEnd(reductions=(bucket._replace(comm_s=2.0),))

    step = shared_cores_s(costs(end=end), grid(dp=4), 2, wire=costs(forward=0.0, backward=0.0, end=late))

    assert step == pytest.approx(2 * (3.0 + 0.5) + 2.0)


@given(m=st.integers(1, 5), send=times)
def test_with_a_core_each_messages_travel_as_in_the_other_engine(m, send):
    plain = costs(3, m)
    sending = replace(plain, chunks=tuple(chunk(1.0, 2.0, send) for _ in plain.chunks))
    wire = replace(plain, chunks=tuple(chunk(0.0, 0.0, send) for _ in plain.chunks))

    assert shared_cores_s(plain, grid(pp=3), 3, wire=wire) == pytest.approx(
        simulate_step(sending).step_time_s
    )
