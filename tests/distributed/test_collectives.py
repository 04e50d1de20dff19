"""Gathers and scatters with gradients: what the ranks hold together is what one process would."""

from functools import partial

import pytest
import torch
import torch.distributed as dist

from plansim.execute.launch import launch
from plansim.execute.mesh import process_mesh
from plansim.execute.parallel.collectives import gather, scatter_sum
from plansim.plan.grid import Grid

pytestmark = pytest.mark.distributed

WHOLE = torch.arange(24.0).view(2, 4, 3)
WEIGHT = torch.arange(24.0).flip(0).view(2, 4, 3)


def exchanged(dim, meet):
    torch.set_num_threads(1)
    grid = Grid(axes=("pp", "dp", "cp", "tp"), sizes=(1, 2, 1, 1))
    with process_mesh(grid, meet, device=torch.device("cpu"), timeout_s=30) as mesh:
        group = mesh.groups["dp"]

        def mine(tensor):
            return tensor.chunk(2, dim)[mesh.rank]

        part = mine(WHOLE).clone().requires_grad_()
        both = gather(part, group, dim), gather(2 * part, group, dim)  # two in a row, as keys and values are
        torch.testing.assert_close(both[0], WHOLE)
        (both[0] + both[1]).mul(WEIGHT).sum().backward()
        torch.testing.assert_close(part.grad, 2 * 3 * mine(WEIGHT))  # from both ranks, through both

        whole = WHOLE.clone().requires_grad_()
        summed = scatter_sum((mesh.rank + 1) * whole, group, dim)
        torch.testing.assert_close(summed, 3 * mine(WHOLE))
        summed.mul(mine(WEIGHT)).sum().backward()
        torch.testing.assert_close(whole.grad, (mesh.rank + 1) * WEIGHT)
        dist.barrier()


@pytest.mark.parametrize("dim", [0, 1])
def test_gather_and_scatter_are_each_others_gradient(dim):
    launch(partial(exchanged, dim), 2, timeout_s=30)
