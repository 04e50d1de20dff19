"""Every parameter after a few steps is where one process would have moved it, as far as it moved.

Losses of small models hardly feel an expert whose gradient is halved; its weights do.
"""

from functools import partial

import pytest
import torch
from runs import MOE, TIED, plan
from torch.distributed.tensor import DTensor

from plansim.execute.data import make_batches
from plansim.execute.launch import launch
from plansim.execute.mesh import process_mesh
from plansim.execute.models import blueprint
from plansim.execute.models.experts import Experts
from plansim.execute.optimizers import make_optimizer
from plansim.execute.parallel.expert_ranks import ExpertShare, ExpertSlices
from plansim.execute.teacher import whole_model
from plansim.execute.trainer import Trainer
from plansim.plan.grid import grid_of

pytestmark = pytest.mark.distributed

STEPS = 3
CPU = torch.device("cpu")
CASES = {
    "hybrid shard, tied": plan(TIED, dp=4, zero_stage=3, zero_group=2),
    "experts, zero 1": plan(MOE, dp=4, ep=2, zero_stage=1),
    "experts, zero 1, shared by some": plan(MOE, dp=4, ep=2, zero_stage=1, zero_group=2),
    "experts, zero 2": plan(MOE, dp=2, ep=2, zero_stage=2),
    "experts, zero 3, recomputed": plan(MOE, dp=4, ep=2, zero_stage=3, recompute="full"),
    "experts, hybrid shard": plan(MOE, dp=4, ep=2, zero_stage=3, zero_group=2),
    "experts, zero 3 and pipeline": plan(MOE, dp=2, pp=2, ep=2, zero_stage=3),
    "experts, context": plan(MOE, cp=2, ep=2, zero_stage=2),
    "whole experts over tensor ranks, zero 2": plan(
        MOE, dp=2, tp=2, ep=2, etp=1, zero_stage=2, sequence_parallel=True
    ),
    "cut experts, sequence": plan(MOE, tp=2, sequence_parallel=True),
    "cut experts on two ranks, sequence, zero 3": plan(
        MOE, dp=2, tp=2, ep=2, zero_stage=3, sequence_parallel=True
    ),
}
MODELS = {m.name: m for m in (MOE, TIED)}


@pytest.mark.parametrize("name", CASES)
def test_every_parameter_moves_as_in_one_process(name):
    given = CASES[name]
    model = MODELS[given.model]
    print_ = blueprint(model, given)
    start, end = trained_alone(print_, given, 0), trained_alone(print_, given, STEPS)

    errors = launch(
        partial(errors_of_rank, print_, given, start, end), given.parallel.world_size, timeout_s=60
    )

    assert max(max(rank.values()) for rank in errors) < 0.01
    assert set().union(*errors) >= {name for name, _ in end.named_parameters()}


def trained_alone(print_, given, steps):
    """Return the model after some steps in one process."""
    whole = whole_model(print_, CPU, seed=0)
    optimizer = make_optimizer(given.job.optimizer, whole.parameters())
    batches = make_batches("synthetic", print_.data, given.job.global_batch)
    for step in range(steps):
        inputs, targets = batches.batch(step)
        print_.loss(whole(inputs), targets).backward()
        optimizer.step()
        optimizer.zero_grad()
    return whole


def errors_of_rank(print_, given, start, end, meet):
    """Return by name how far one rank's parameters are from where they belong, as a part of their way."""
    torch.set_num_threads(1)
    p = given.parallel
    batches = make_batches("synthetic", print_.data, given.job.global_batch)
    with process_mesh(
        grid_of(given),
        meet,
        device=CPU,
        timeout_s=60,
        expert_parallel=p.ep,
        fold_experts=p.folds_experts,
        shard=p.zero_group,
    ) as mesh:
        trainer = Trainer(print_, given, mesh)
        for step in range(STEPS):
            trainer.step(*batches.batch(step))
        found = {
            name.replace(".block.", "."): whole_shard(q)
            for c in trainer.model
            for name, q in c.named_parameters()
        }
        before, after = (dict(share(model, mesh, p).named_parameters()) for model in (start, end))
    way = {name: float((after[name] - before[name]).abs().max()) for name in after}
    least = 1e-3 * max(way.values())  # what hardly moves has its rounding
    return {
        name: float((q - cut_like(after[name], q, mesh)).abs().max()) / max(way[name], least)
        for name, q in found.items()
        if name in after
    }


def whole_shard(parameter):
    """Return what the ranks of one sharded copy hold together."""
    value = parameter.detach()
    return (value.full_tensor() if isinstance(value, DTensor) else value).clone()


def share(model, mesh, p):
    """Return a model with the experts, and the slices of them, that a rank holds."""
    for part in model.modules():
        if isinstance(part, Experts) and p.ep > 1:
            part.keep_share(ExpertShare(mesh.index("ep"), p.ep))
        if isinstance(part, Experts) and p.tp > 1 and not p.folds_experts:
            part.cut(ExpertSlices(mesh.index("tp"), p.tp))
    return model


def cut_like(whole, mine, mesh):
    """Return a tensor-parallel rank's part of a matrix, where it is cut."""
    for axis, (all_, here) in enumerate(zip(whole.shape, mine.shape, strict=True)):
        if all_ != here:
            return whole.chunk(all_ // here, axis)[mesh.index("tp")].detach()
    return whole.detach()
