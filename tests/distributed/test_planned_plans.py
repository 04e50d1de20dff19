"""What the planner may choose runs: plans of its own default space, their losses those of one process."""

from dataclasses import replace
from functools import lru_cache

import pytest

from plansim.execute import RunOptions, check_plan_runs, run_plan
from plansim.hardware.read import at_speed, load_profile
from plansim.plan.model import Job
from plansim.plan.recompute import parse_mode
from plansim.planner import plan as best_plans
from plansim.planner.plan import MOST_LISTED
from plansim.validate.live import plan_id
from plansim.workload.read import load_model

pytestmark = pytest.mark.distributed

QUICK = RunOptions(trace=False, shielded=False, timeout_s=60)
SMALL = {
    "gpt-mini": {"hidden": "32", "heads": "4", "vocab": "64", "seq_len": "16"},
    "llama-mini": {
        "hidden": "32", "ffn": "48", "heads": "4", "kv_heads": "2", "vocab": "64", "seq_len": "16"
    },
    "mlp-large": {"layers": "7", "hidden": "32", "features": "64", "classes": "16"},
}  # fmt: skip
"""The models that come with the CPU profile, as they are but for their widths."""

OTHERS = ("moe-tiny", "bert-tiny", "vit-tiny", "resnet-tiny", "vgg-tiny", "lstm-small", "gru-small")
"""Models of the other families, planned but not run here."""

ALIKE = {1: (), 2: ("full:2",), 4: ("full:2", "selective")}
"""Recomputation that is not planned on so many ranks: it runs through the same code as what is."""


def kind(plan):
    """Return what makes a plan run through other code: its axes, sharding, schedule and recomputation."""
    p = plan.parallel
    axes = tuple(axis for axis in ("dp", "tp", "pp", "cp", "ep") if getattr(p, axis) > 1)
    modes = tuple(parse_mode(plan.recompute_of(stage))[0] for stage in range(p.pp))
    return axes, p.zero_stage, p.sequence_parallel, p.schedule if p.pp > 1 else "", modes


@lru_cache
def planned(ranks, *names):
    """Return one plan of every kind that the planner looks at; the models take turns."""
    profile = load_profile("local-cpu", {"node.devices": str(ranks), "host.cores": str(ranks)})
    found = {}
    for name in names:
        model = load_model(name, SMALL.get(name, {}))
        job = Job(global_batch=16, seq_len=model.seq_len, dtype="fp32")
        every = best_plans(
            model,
            profile,
            job,
            top=MOST_LISTED,
            backend="plansim",
            fix={"microbatch": 2},  # others run through the same code
            forbid={"recompute": ALIKE[ranks]},
        )
        for ranked in every.plans:
            found.setdefault(kind(ranked.plan), {}).setdefault(name, (model, ranked.plan))
    kinds = sorted(found)
    return [list(found[k].values())[i % len(found[k])] for i, k in enumerate(kinds)]


@pytest.mark.parametrize(("ranks", "every"), [(1, 1), (2, 2), (4, 18)])
def test_planned_plans_train_like_one_process(ranks, every):
    """On two ranks every other kind, on four fewer still: they are products of what ran on two."""
    cases = planned(ranks, *SMALL)
    assert len(cases) >= {1: 1, 2: 9, 4: 30}[ranks]

    for model, plan in cases[::every]:
        measured = run_plan(plan, model, steps=2, warmup=0, options=QUICK)

        assert len(measured.step_times_s) == 2, plan_id(model, plan)
        assert any("equal a single process" in note for note in measured.notes), plan_id(model, plan)


def with_a_slow_rank(profile):
    """Return two nodes of one rank each, the second at a third of the speed of the first."""
    group = replace(profile.groups[0], devices=1, count=1)
    return replace(profile, groups=(group, replace(group, device=at_speed(group.device, 1 / 3))))


@pytest.mark.parametrize(
    ("fix", "slow"),
    [
        ({"pp": 2, "recompute": "full:1"}, False),
        ({"dp": 2, "batch_shares": "sized"}, True),
        ({"pp": 2, "compression.activations": "int8"}, False),
    ],
    ids=["some layers recomputed", "unequal shares", "coded messages"],
)
def test_what_is_asked_for_is_planned_and_runs(fix, slow):
    profile, model = (
        load_profile("local-cpu", {"node.devices": "2"}),
        load_model("gpt-mini", SMALL["gpt-mini"]),
    )
    job = Job(global_batch=16, seq_len=model.seq_len, dtype="fp32")
    asked = with_a_slow_rank(profile) if slow else profile
    best = best_plans(model, asked, job, fix=fix, backend="plansim").best.plan

    measured = run_plan(best, model, steps=2, warmup=0, options=QUICK)

    assert best.recompute == fix.get("recompute", "none")
    assert (best.parallel.batch_shares is not None) == slow
    assert best.compression.activations.method == fix.get("compression.activations", "none")
    assert any("equal a single process" in note for note in measured.notes)


@pytest.mark.parametrize(("ranks", "names"), [(2, OTHERS), (4, tuple(SMALL))])
def test_the_executor_refuses_nothing_that_the_planner_offers(ranks, names):
    for model, plan in planned(ranks, *names):
        check_plan_runs(plan, model)
