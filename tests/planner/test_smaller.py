"""Compressing the model as a choice of the search: within the quality budget, scored as what it is."""

from dataclasses import replace
from itertools import product

import pytest

from plansim.costs.compression import MODEL_METHODS
from plansim.costs.layout import default_stack
from plansim.errors import InfeasibleError, InputError
from plansim.hardware.read import load_profile, with_nodes
from plansim.plan.model import Compression, Job, Method, Overlap, Parallel, Plan
from plansim.plan.rule import Rejected
from plansim.planner import plan
from plansim.planner.evaluate import Evaluator
from plansim.planner.objective import OBJECTIVES, Constraints
from plansim.planner.plan import ask
from plansim.planner.pool import Pool
from plansim.workload.read import load_model

MODEL, PROFILE = load_model("gpt3-125m"), load_profile("t4x4")
JOB = Job(global_batch=16, seq_len=512, dtype="fp16")
FIXED = {"pp": 1, "cp": 1, "zero_stage": 0}


def best(*methods, budget=None, **more):
    fix = FIXED | {"compression.model": methods} | more
    return plan(MODEL, PROFILE, JOB, fix=fix, constraints=Constraints(max_quality_loss=budget))


def test_fewer_channels_win_where_they_are_allowed():
    without, asked = best("none"), best("none", "prune_structured")

    chosen = asked.best.plan.compression.model.method
    assert chosen == "prune_structured"
    assert asked.best.score < without.best.score
    assert any("loses" in note for note in asked.best.prediction.notes)
    assert asked.search.candidates > without.search.candidates
    s = asked.search
    assert s.candidates == s.bounded_out + s.simulated + sum(s.infeasible_by_rule.values())


def test_activations_leave_the_device_only_where_nothing_else_fits():
    fix = FIXED | {"recompute": "none", "microbatch": 4, "offload": False, "tp": 1}
    roomy, narrow = (plan(MODEL, tight(memory), JOB, fix=fix) for memory in (0.3, 0.26))
    chosen = narrow.best.plan.offload_activations

    assert roomy.best.plan.offload_activations == 0
    assert any(f"those of {chosen} layers of every chunk go to host memory" in note for note in narrow.notes)
    assert 0 < chosen < MODEL.layers - 1
    with pytest.raises(InfeasibleError, match=r"over the 3\.9 GiB limit"):
        plan(MODEL, tight(0.26), JOB, fix=fix | {"offload_activations": (0, chosen // 2)})
    with pytest.raises(InfeasibleError, match="zero_stage=1 fits"):
        plan(MODEL, tight(0.22), JOB, fix=fix)


def test_activations_leave_over_a_fast_host_link_where_that_is_faster():
    """NVIDIA's Llama 3 70B recipes for GB200 do, 20 and 40 layers (Megatron-Bridge, perf_recipes/llama)."""
    model, racks = load_model("llama-3.1-70b"), with_nodes(load_profile("gb200-nvl72"), 16)
    job = Job(global_batch=256, seq_len=8192, dtype="fp8")
    fix = {"pp": 1, "tp": 1, "cp": 1, "zero_stage": 3}
    away, here = (plan(model, racks, job, top=1, fix=fix | more) for more in ({}, {"offload_activations": 0}))
    pcie = replace(racks, host=replace(racks.host, pcie_bytes_per_s=50e9))

    assert away.best.plan.offload_activations > 0
    assert away.best.score < 0.98 * here.best.score
    assert any("no plan fits or is as fast" in note for note in away.notes)
    assert plan(model, pcie, job, top=1, fix=fix).best.plan.offload_activations == 0


def test_a_number_of_layers_is_a_choice_of_the_search():
    fix = FIXED | {"recompute": "none", "microbatch": 4, "offload_activations": (0, 6)}
    found = plan(MODEL, PROFILE, JOB, fix=fix, top=50)
    away = [entry.plan.offload_activations for entry in found.plans]

    assert set(away) == {0, 6}
    assert away[0] == 0
    for entry in found.plans:
        figures = Evaluator(MODEL, PROFILE)(entry.plan)
        assert entry.score == pytest.approx(OBJECTIVES["throughput"].score(figures))


@pytest.mark.parametrize(("backend", "layers", "mode"), [("megatron", 11, "none"), ("deepspeed", 12, "full")])
def test_a_runtime_offloads_what_it_can(backend, layers, mode):
    """Megatron takes layers that recompute nothing, DeepSpeed the inputs of all layers that recompute."""
    fix = {"dp": 4, "microbatch": 4, "offload_activations": layers}
    found = plan(MODEL, PROFILE, JOB, fix=fix, backend=backend)

    assert {(e.plan.offload_activations, e.plan.recompute) for e in found.plans} == {(layers, mode)}


def test_a_runtime_that_offloads_nothing_says_so():
    with pytest.raises(InputError, match="offload_activations=4: torchtitan has none; use 0"):
        plan(load_model("llama-3.2-1b"), PROFILE, JOB, fix={"offload_activations": 4}, backend="torchtitan")
    with pytest.raises(InputError, match="are in host memory already"):
        plan(MODEL, load_profile("local-cpu"), JOB, fix={"offload_activations": 4})


def test_a_quality_budget_keeps_the_model_whole():
    assert best("none", "prune_structured", budget=0.001).best.plan.compression.model.method == "none"
    with pytest.raises(InfeasibleError, match="quality"):
        best("prune_structured", budget=0.001)


def test_scores_are_those_of_the_model_asked_for():
    found = best("low_rank").best

    assert found.plan.model == "gpt3-125m"
    figures = Evaluator(MODEL, PROFILE)(found.plan)
    assert figures.step_time_s == pytest.approx(found.prediction.step_time_s)


TRAINED = tuple(
    name for name, method in MODEL_METHODS.items() if not method.supports(PROFILE.groups[0].device, "train")
)
SPACE = {
    "microbatch": (1, 4),
    "zero_stage": (0, 1, 3),
    "recompute": ("none", "full"),
    "schedule": ("1f1b",),
    "stage_layers": "even",
    "sequence_parallel": False,
    "cp": 1,
    "placement": ("tp", "cp", "dp", "pp"),
    "offload": False,
    "attention": "flash",
    "overlap.parameters": True,
    "overlap.gradients": True,
    "aggregation": "all_reduce",
    "compression.gradients": "none",
    "compression.parameters": "none",
    "zero_group": None,
}


def tight(memory):
    """Return four small devices with a part of their memory."""
    groups = tuple(
        replace(g, device=replace(g.device, memory_bytes=g.device.memory_bytes * memory))
        for g in PROFILE.groups
    )
    return replace(PROFILE, groups=groups)


def every_plan(profile, method):
    """Yield every plan of the space with a method, written out with plain loops."""
    for tp, pp, mb, zero, mode in product((1, 2, 4), (1, 2, 4), (1, 4), (0, 1, 3), ("none", "full")):
        if tp * pp > 4 or (zero and tp * pp == 4):
            continue
        parallel = Parallel(dp=4 // (tp * pp), tp=tp, pp=pp, microbatch=mb, zero_stage=zero)
        probe = Plan(
            model=MODEL.name, profile=profile.name, job=JOB, parallel=parallel, recompute=mode,
            compression=Compression(model=Method(method=method)),
        )  # fmt: skip
        tp_overlap = default_stack(MODEL, profile, probe).tp_overlap and tp > 1
        yield replace(probe, overlap=Overlap(tensor_parallel=tp_overlap))


@pytest.mark.parametrize("memory", [1.0, 0.16, 0.12])
@pytest.mark.parametrize("method", TRAINED)
def test_every_method_of_the_model_is_searched_exactly(method, memory):
    """Brute force: no plan with the method beats the answer, also where the whole model does not fit."""
    profile = tight(memory)
    evaluate, score = Evaluator(MODEL, profile), OBJECTIVES["throughput"].score
    figures = [evaluate(p) for p in every_plan(profile, method)]
    scores = [score(f) for f in figures if not isinstance(f, Rejected)]
    try:
        found = plan(MODEL, profile, JOB, fix=SPACE | {"compression.model": method}, exhaustive=True)
    except InfeasibleError:
        assert not scores
        return

    assert found.search.complete
    assert found.best.plan.compression.model.method == method
    assert found.best.score == pytest.approx(min(scores), rel=1e-12)


@pytest.mark.parametrize("method", TRAINED)
def test_bounds_are_below_what_is_simulated_with_a_method(method):
    question = replace(ask(MODEL, PROFILE, JOB, fix=SPACE), method=Method(method=method))
    pool, evaluate = Pool(question, (4,)), Evaluator(MODEL, PROFILE)
    pairs = []
    while pool.floor() < float("inf"):
        pairs += pool.take()

    assert pairs
    for bound, number in pairs[:: max(1, len(pairs) // 20)]:
        figures = evaluate(pool.plan(number))
        if not isinstance(figures, Rejected):
            assert bound <= question.objective.score(figures)


def test_coding_what_stages_send_is_a_choice_with_a_proof():
    """Slow links between four stages: both forms are searched, and the answer is the better of the two."""
    slow = replace(PROFILE, fabric=tuple(replace(f, bandwidth_bytes_per_s=5e7) for f in PROFILE.fabric))
    fix = SPACE | {"pp": 4, "recompute": "none"}
    scores = {}
    for method in ("none", "int8"):
        found = plan(MODEL, slow, JOB, fix=fix | {"compression.activations": method}).best
        assert found.plan.compression.activations.method == method
        scores[method] = found.score
    both = plan(MODEL, slow, JOB, fix=fix | {"compression.activations": ("none", "int8")}, backend="plansim")

    assert scores["int8"] < scores["none"]
    assert both.best.plan.compression.activations.method == "int8"
    assert both.best.score == scores["int8"]
    assert len({p.plan for p in both.plans}) == len(both.plans)


@pytest.mark.parametrize("method", ["int8", "fp8"])
def test_bounds_are_below_what_is_simulated_with_coded_sends(method):
    question = replace(ask(MODEL, PROFILE, JOB, fix=SPACE), activations=Method(method=method))
    pool, evaluate = Pool(question, (4,)), Evaluator(MODEL, PROFILE)
    pairs = []
    while pool.floor() < float("inf"):
        pairs += pool.take()

    assert any(pool.plan(n).compression.activations.method == method for _, n in pairs)
    for bound, number in pairs[:: max(1, len(pairs) // 20)]:
        figures = evaluate(pool.plan(number))
        if not isinstance(figures, Rejected):
            assert bound <= question.objective.score(figures)
