"""The rank grid: a bijection, groups that partition the world, the order of torch's device mesh."""

from itertools import permutations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from plansim.errors import PlanError
from plansim.plan.grid import AXES, Grid, grid_of
from plansim.plan.model import Job, Parallel, Plan

grids = st.builds(
    lambda axes, sizes: Grid(axes=axes, sizes=sizes),
    axes=st.permutations(AXES).map(tuple),
    sizes=st.tuples(*(st.integers(1, 4) for _ in AXES)),
)


@given(grid=grids)
def test_ranks_and_coordinates_are_one_to_one(grid):
    assert [grid.rank(**grid.coordinates(r)) for r in range(grid.world_size)] == list(range(grid.world_size))


@given(grid=grids, axis=st.sampled_from(AXES))
def test_groups_partition_the_world(grid, axis):
    groups = grid.groups(axis)

    assert sorted(r for g in groups for r in g) == list(range(grid.world_size))
    assert {len(g) for g in groups} == {grid.degree(axis)}
    for group in groups:
        assert all(grid.group(r, axis) == group for r in group)
        others = {tuple((a, c) for a, c in grid.coordinates(r).items() if a != axis) for r in group}
        assert len(others) == 1


@pytest.mark.parametrize("placement", list(permutations(AXES))[::5])
def test_ranks_lie_as_in_a_device_mesh(placement):
    torch = pytest.importorskip("torch")
    parallel = Parallel(pp=2, dp=3, cp=2, tp=2)
    plan = Plan(
        model="m",
        profile="p",
        job=Job(global_batch=6, seq_len=1),
        parallel=parallel,
        placement=tuple(reversed(placement)),
    )
    grid = grid_of(plan)
    mesh = torch.arange(parallel.world_size).reshape(grid.sizes)  # what init_device_mesh lays out

    assert grid.axes == placement
    for axis in AXES:
        d = placement.index(axis)
        assert sorted(map(tuple, mesh.movedim(d, -1).reshape(-1, grid.sizes[d]).tolist())) == grid.groups(
            axis
        )


@pytest.mark.parametrize("rank", [0, 5, 7])
def test_torch_agrees_where_a_rank_is(rank):
    dist = pytest.importorskip("torch.distributed")
    from torch.distributed.device_mesh import init_device_mesh
    from torch.testing._internal.distributed.fake_pg import FakeStore

    grid = Grid(axes=AXES, sizes=(2, 2, 1, 2))
    dist.init_process_group("fake", rank=rank, world_size=grid.world_size, store=FakeStore())
    try:
        mesh = init_device_mesh("cpu", grid.sizes, mesh_dim_names=AXES)
        assert dict(zip(AXES, mesh.get_coordinate(), strict=True)) == grid.coordinates(rank)
        for axis in AXES:
            assert tuple(dist.get_process_group_ranks(mesh.get_group(axis))) == grid.group(rank, axis)
    finally:
        dist.destroy_process_group()


@pytest.mark.parametrize("placement", [("tp", "dp"), ("tp", "tp", "dp", "pp"), ("tp", "ep", "dp", "pp")])
def test_a_placement_orders_every_axis_once(placement):
    plan = Plan(model="m", profile="p", job=Job(global_batch=1, seq_len=1), placement=placement)
    with pytest.raises(PlanError, match="placement must order the axes pp, dp, cp, tp"):
        grid_of(plan)
