"""Whole jobs: folding is exact to the last bit, stragglers split only what they touch."""

import time
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from stepcosts import random_costs, step_costs

from plansim.costs.step import Bucket, StageEnd
from plansim.errors import InputError
from plansim.plan.grid import AXES, Grid
from plansim.simulate import simulate_step
from plansim.simulate.fold import Spread, fold
from plansim.simulate.world import simulate_world


def grid_of(pp, dp, cp, tp, axes=AXES):
    sizes = {"pp": pp, "dp": dp, "cp": cp, "tp": tp}
    return Grid(axes=axes, sizes=tuple(sizes[a] for a in axes))


@st.composite
def spreads(draw, world):
    ranks = st.dictionaries(st.integers(0, world - 1), st.sampled_from([0.9, 1.1, 1.5, 3.0]), max_size=5)
    return Spread(slowdown=draw(ranks), link_slowdown=draw(ranks))


@given(data=st.data(), costs=random_costs(max_microbatches=40))
def test_folded_equals_unfolded_exactly(data, costs):
    """Audit mode: at most 512 ranks, every rank by itself, equal to the last bit."""
    dp, cp, tp = (data.draw(st.integers(1, n)) for n in (6, 2, 4))
    axes = tuple(data.draw(st.permutations(AXES)))
    grid = grid_of(costs.pp, dp, cp, tp, axes)
    spread = data.draw(spreads(grid.world_size))
    folded = simulate_world(costs, grid, spread)
    every = simulate_world(costs, grid, spread, folded=False)
    assert grid.world_size <= 512
    assert folded.step_time_s == every.step_time_s
    assert folded.num_classes <= every.num_classes == grid.world_size
    per_group = every.finish_s().reshape(grid.sizes)
    lock_step = tuple(i for i, a in enumerate(grid.axes) if a in ("cp", "tp"))
    assert np.array_equal(
        per_group.max(axis=lock_step), folded.finish_s().reshape(grid.sizes).max(axis=lock_step)
    )


@given(costs=random_costs(max_microbatches=40))
def test_a_job_of_equal_ranks_takes_the_time_of_one_pipeline(costs):
    result = simulate_world(costs, grid_of(costs.pp, 4, 1, 2))
    assert result.step_time_s == pytest.approx(simulate_step(costs).step_time_s, rel=1e-11)
    assert result.num_classes == costs.pp


def test_a_straggler_splits_only_its_pipeline():
    grid = grid_of(4, 64, 1, 8)
    folding = fold(grid, Spread(slowdown={grid.rank(pp=2, dp=17, tp=3): 2.0}))
    assert folding.num_classes == 2 * 4
    assert folding.column_of.tolist().count(folding.column_of[17]) == 1


def test_equal_stragglers_share_a_class_wherever_they_sit_in_their_group():
    grid = grid_of(2, 8, 1, 4)
    slow = {grid.rank(pp=1, dp=1, tp=0): 1.5, grid.rank(pp=1, dp=6, tp=3): 1.5}
    assert fold(grid, Spread(slowdown=slow)).num_classes == 2 * 2


def test_a_straggler_costs_its_own_lateness():
    """One pipeline of stage times 3 and m = 10: the slow stage takes twice as long for every microbatch."""
    costs = step_costs(
        2,
        10,
        stages=(StageEnd(reductions=(Bucket(nbytes=1, comm_s=1.0, ready_fraction=1, chunk=0),)), StageEnd()),
    )
    result = simulate_world(costs, grid_of(2, 4, 1, 1), Spread(slowdown={0: 2.0}))
    alone = simulate_world(costs, grid_of(2, 1, 1, 1), Spread(slowdown={0: 2.0}))
    assert result.step_time_s == alone.step_time_s > result.undisturbed_s
    assert result.slowest_rank == 0


def test_a_slow_link_slows_the_collectives_of_its_stage():
    reductions = (Bucket(nbytes=1, comm_s=1.0, ready_fraction=1.0, chunk=0),)
    costs = step_costs(1, 4, stages=(StageEnd(reductions=reductions),))
    result = simulate_world(costs, grid_of(1, 8, 1, 1), Spread(link_slowdown={5: 3.0}))
    assert result.step_time_s - result.undisturbed_s == pytest.approx(2.0)


def test_wrong_ranks_and_factors_are_refused():
    with pytest.raises(InputError, match="ranks go from 0 to 3"):
        simulate_world(step_costs(2, 2), grid_of(2, 2, 1, 1), Spread(slowdown={4: 2.0}))
    with pytest.raises(InputError, match="must be > 0"):
        Spread(slowdown={0: 0.0})
    with pytest.raises(InputError, match="the grid has pp 1"):
        simulate_world(step_costs(2, 2), grid_of(1, 2, 1, 1))


def million():
    grid = grid_of(32, 4096, 1, 8)
    assert grid.world_size == 1_048_576

    def reductions(c):
        return tuple(Bucket(nbytes=1, comm_s=0.1, ready_fraction=(i + 1) / 4, chunk=c) for i in range(4))

    stages = tuple(StageEnd(reductions=reductions(c), optimizer_s=0.1) for c in range(32))
    return grid, replace(step_costs(32, 256, send=0.01), stages=stages)


def test_a_million_devices_with_a_thousand_stragglers_in_seconds():
    grid, costs = million()
    rng = np.random.default_rng(3)
    ranks = rng.choice(grid.world_size, 1000, replace=False)
    slow = dict(zip(ranks.tolist(), (1 + rng.random(1000)).tolist(), strict=True))
    begin = time.process_time()
    even = simulate_world(costs, grid)
    symmetric_s = time.process_time() - begin
    uneven = simulate_world(costs, grid, Spread(slowdown=slow))
    spread_s = time.process_time() - begin - symmetric_s
    assert even.num_classes == 32
    assert 32 < uneven.num_classes <= 32 * 1001
    assert uneven.step_time_s > even.step_time_s
    assert symmetric_s < 5
    assert spread_s < 30
