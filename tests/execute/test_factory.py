"""Models given as Python code: built, traced, planned and run like any other."""

import pytest
import torch
from runs import plan

from plansim.errors import InputError, PlanError
from plansim.execute import RunOptions, check_plan_runs, run_plan
from plansim.execute.factory import built, traced_model
from plansim.hardware.read import load_profile
from plansim.plan.emit import emit
from plansim.planner import plan as best_plans
from plansim.workload.operators import Matmul
from plansim.workload.totals import parameter_count, whole_blocks

QUICK = RunOptions(shielded=False, timeout_s=60, trace=False)


def matmul_flop(name, samples):
    blocks = whole_blocks(traced_model(name), 1, samples)
    return sum(op.flop for block in blocks for op in block.operators if isinstance(op, Matmul))


@pytest.mark.parametrize("name", ["nets:chain", "nets:conv", "nets:text", "nets:tied"])
def test_a_trace_counts_the_parameters_of_the_module(name):
    module = built(name).module

    assert parameter_count(traced_model(name)) == sum(p.numel() for p in module.parameters())


@pytest.mark.parametrize("samples", [1, 6])
def test_products_are_those_of_the_layers(samples):
    """Two FLOP a weight and position: linear layers at every token, kernels at every pixel."""
    assert matmul_flop("nets:chain", samples) == 2 * samples * (64 * 32 + 32 * 32 + 32 * 10)
    assert matmul_flop("nets:conv", samples) == 2 * samples * (64 * 9 * 4 + 256 * 10)
    attention = 2 * 2 * 8 * 8 * 16
    layer = 2 * 8 * (16 * 48 + 16 * 16 + 2 * 16 * 32 + 16 * 50)
    assert matmul_flop("nets:text", samples) == samples * (layer + attention)


def test_only_a_chain_that_shares_nothing_is_cut():
    assert [traced_model(f"nets:{name}").layers for name in ("chain", "conv", "text", "tied")] == [4, 4, 1, 1]


@pytest.mark.distributed
@pytest.mark.parametrize(
    ("name", "degrees"),
    [
        ("chain", {"dp": 2}),
        ("chain", {"pp": 2}),
        ("chain", {"dp": 2, "zero_stage": 3}),
        ("conv", {"pp": 2, "schedule": "zb-h1"}),
        ("text", {"dp": 2}),
    ],
)
def test_it_trains_as_one_process_does(name, degrees):
    model = traced_model(f"nets:{name}")

    measured = run_plan(plan(model, optimizer="adamw", **degrees), model, steps=4, options=QUICK)

    assert any("equal a single process" in note for note in measured.notes)
    assert len(measured.ranks) == 2


@pytest.mark.distributed
def test_it_learns_real_digits():
    model = traced_model("nets:chain")
    given = plan(model, dp=2, global_batch=64, microbatch=32, optimizer="adamw")
    options = RunOptions(data="digits", trace=False, shielded=False)

    losses = run_plan(given, model, steps=200, options=options).ranks[0].losses

    assert losses[-1] < 0.5 * losses[0]


@pytest.mark.parametrize("name", ["chain", "text"])
def test_it_is_planned(name):
    model = traced_model(f"nets:{name}")
    profile = load_profile("local-cpu")

    for ranked in best_plans(model, profile, plan(model).job, top=50, backend="plansim").plans:
        check_plan_runs(ranked.plan, model)
        assert ranked.plan.parallel.tp == 1


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("nets:raises", "the factory raised FileNotFoundError: weights.pt"),
        ("nets:leaves", "the factory raised SystemExit: 7"),
        ("nets:still", "the module has no parameters"),
        ("nets:chian", r"has no 'chian' \(did you mean 'chain'\?"),
        ("nets:number", "returned int, expected an nn.Module"),
        ("nets:unknown", "return a module and an example batch"),
        ("nets:pair", r"block 1 \(Pair\) returns tuple"),
        ("nets:reads", r"block 1 \(Reads\) cannot be traced on the meta device"),
        ("nets:nothing", "has no 'nothing'"),
        ("no_such_nets:chain", "module 'no_such_nets' cannot be imported"),
    ],
)
def test_what_is_wrong_is_said(name, message, capsys):
    with pytest.raises(InputError, match=message):
        traced_model(name)
    assert capsys.readouterr().out == ""  # what a factory prints is no part of an answer


def test_what_cannot_be_cut_is_said():
    model = traced_model("nets:text")
    with pytest.raises(PlanError, match="how its layers may be cut is not known"):
        check_plan_runs(plan(model, tp=2), model)


def test_only_plansim_builds_it_elsewhere():
    model = traced_model("nets:chain")
    given, profile = plan(model, dp=2), load_profile("local-cpu")

    assert "model: nets:chain" in emit(given, model, profile, "torchrun")["plan.yaml"]
    with pytest.raises(PlanError, match="the model is Python code"):
        emit(given, model, load_profile("a100x8"), "megatron")


def test_the_same_seed_gives_the_same_weights():
    """Blocks are built one by one on every rank; what a rank leaves out does not change the others."""
    from plansim.execute.models import blueprint

    model = traced_model("nets:chain")
    print_ = blueprint(model, plan(model))

    one, same = (print_.build_block(0, seed=3).weight for _ in range(2))
    assert torch.equal(one, same)
