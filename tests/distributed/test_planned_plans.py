"""What the planner may choose runs: plans of its own default space, their losses those of one process."""

from functools import lru_cache

import pytest

from plansim.execute import RunOptions, check_plan_runs, run_plan
from plansim.hardware.read import load_profile
from plansim.plan.model import Job
from plansim.planner import plan as best_plans
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


def kind(plan):
    """Return what makes a plan run through other code: its axes, sharding, schedule and recomputation."""
    p = plan.parallel
    axes = tuple(axis for axis in ("dp", "tp", "pp", "cp") if getattr(p, axis) > 1)
    return axes, p.zero_stage, p.sequence_parallel, p.schedule if p.pp > 1 else "", plan.recompute


@lru_cache
def planned(ranks, *names):
    """Return one plan of every kind that the planner looks at; the models take turns."""
    profile = load_profile("local-cpu", {"node.devices": str(ranks)})
    found = {}
    for name in names:
        model = load_model(name, SMALL.get(name, {}))
        job = Job(global_batch=16, seq_len=model.seq_len, dtype="fp32")
        for ranked in best_plans(model, profile, job, top=10_000, backend="plansim").plans:
            found.setdefault(kind(ranked.plan), {}).setdefault(name, (model, ranked.plan))
    kinds = sorted(found)
    return [list(found[k].values())[i % len(found[k])] for i, k in enumerate(kinds)]


@pytest.mark.parametrize(("ranks", "every"), [(1, 1), (2, 1), (4, 9)])
def test_planned_plans_train_like_one_process(ranks, every):
    """On four ranks every ninth kind: they are products of what ran on two."""
    cases = planned(ranks, *SMALL)
    assert len(cases) >= {1: 1, 2: 9, 4: 30}[ranks]

    for model, plan in cases[::every]:
        measured = run_plan(plan, model, steps=2, warmup=0, options=QUICK)

        assert len(measured.step_times_s) == 2, plan_id(model, plan)
        assert any("equal a single process" in note for note in measured.notes), plan_id(model, plan)


@pytest.mark.parametrize(("ranks", "names"), [(2, OTHERS), (4, tuple(SMALL))])
def test_the_executor_refuses_nothing_that_the_planner_offers(ranks, names):
    for model, plan in planned(ranks, *names):
        check_plan_runs(plan, model)
