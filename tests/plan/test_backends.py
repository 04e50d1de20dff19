"""Backend rules: the scalar check, the array form and the known refusals of each runtime."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from plansim.plan.backends import BACKENDS, CHOICES, FEATURES, degrees_of
from plansim.plan.model import Compression, Job, Method, Parallel, Plan
from plansim.schedules import SCHEDULES
from plansim.workload.families import FAMILIES
from plansim.workload.model import Model, MoE

LLAMA_8B = Model(
    name="llama-8b", family="llama", layers=32, hidden=4096, ffn=14336, heads=32, kv_heads=8, vocab=128256
)
MIXTRAL = replace(LLAMA_8B, name="moe", family="moe", moe=MoE(experts=8, top_k=2, ffn=14336))


def plan(job=None, **parallel):
    return Plan(
        model="m",
        profile="p",
        job=job or Job(global_batch=512, seq_len=4096),
        parallel=Parallel(**parallel),
    )


degree = st.sampled_from([1, 2, 3, 4, 8, 16])
parallels = st.builds(
    Parallel,
    dp=degree,
    tp=degree,
    pp=degree,
    cp=degree,
    ep=degree,
    etp=st.sampled_from([None, 1]),
    zero_stage=st.integers(0, 3),
    zero_group=st.one_of(st.none(), degree),
    sequence_parallel=st.booleans(),
    microbatch=st.integers(1, 4),
    schedule=st.sampled_from(sorted(SCHEDULES)),
    virtual_stages=st.integers(1, 4),
)


@pytest.mark.parametrize("name", BACKENDS)
@settings(max_examples=150, deadline=None)
@given(parallel=parallels, model=st.sampled_from([LLAMA_8B, MIXTRAL]))
def test_check_and_array_form_agree(name, parallel, model):
    """A plan has a broken relation or pair exactly when the array form masks it."""
    backend = BACKENDS[name]
    given_plan = replace(plan(), parallel=parallel)
    degrees = degrees_of(given_plan, model)
    arrays = {
        k: v if k in ("heads", "kv_heads", "layers", "experts", "tied", "pooled") else np.array([v, v])
        for k, v in degrees.items()
    }

    masks = backend.rejections(arrays, parallel.schedule)
    bare = replace(backend, allows={}, families=tuple(FAMILIES))

    assert all(np.asarray(mask).shape in ((2,), ()) for mask in masks.values())
    assert bool(bare.check(given_plan, model)) == any(np.any(mask) for mask in masks.values())


@pytest.mark.parametrize("name", BACKENDS)
def test_data_names_what_exists(name):
    backend = BACKENDS[name]

    assert backend.name == name
    assert set(backend.allows) <= set(CHOICES)
    assert set(backend.allows["schedule"]) <= set(SCHEDULES)
    assert set(backend.schedule_names) <= set(SCHEDULES)
    assert set(backend.families) <= set(FAMILIES)
    assert {f for pair in backend.pairs for f in pair.features} <= set(FEATURES)
    assert {s for pair in backend.pairs for s in pair.schedules} <= set(SCHEDULES)
    assert backend.check(plan(dp=8), LLAMA_8B) == []


def test_only_megatron_replicates_kv_heads():
    wide = plan(tp=16)

    assert BACKENDS["megatron"].check(wide, LLAMA_8B) == []
    assert "does not divide 8 kv heads" in BACKENDS["torchtitan"].check(wide, LLAMA_8B)[0]


@pytest.mark.parametrize(
    ("name", "parallel", "word"),
    [
        ("torchtitan", {"dp": 8, "zero_stage": 1}, "zero_stage 1"),
        ("torchtitan", {"dp": 4, "cp": 2}, "cp with zero 0"),
        (
            "torchtitan",
            {"dp": 2, "pp": 4, "zero_stage": 3, "schedule": "zbv", "virtual_stages": 2},
            "slightly wrong",
        ),
        ("megatron", {"pp": 4, "schedule": "zb-h1"}, "schedule zb-h1"),
        (
            "megatron",
            {"pp": 4, "schedule": "interleaved", "virtual_stages": 2, "microbatch": 512},
            "multiple of pp",
        ),
        ("deepspeed", {"dp": 2, "pp": 2, "zero_stage": 3}, "zero 3 with pp"),
        ("deepspeed", {"cp": 2}, "cp 2 is not available"),
        ("deepspeed", {"pp": 4, "stage_layers": (9, 8, 8, 7)}, "uneven stages"),
        ("plansim", {"pp": 64}, "more than 32 layers"),
        ("plansim", {"dp": 4, "tp": 2, "etp": 1}, "without expert parallelism experts are cut by tp 2"),
        ("deepspeed", {"dp": 4, "tp": 2, "etp": 1}, "etp 1 is not available; use tp 1"),
    ],
)
def test_refusals_name_the_cause_and_a_remedy(name, parallel, word):
    reasons = BACKENDS[name].check(plan(**parallel), LLAMA_8B)

    assert any(word in reason for reason in reasons), reasons
    assert all(";" in reason for reason in reasons)


def test_who_cuts_experts_and_who_keeps_them_whole():
    cut = plan(dp=8, tp=2, ep=4, zero_stage=2, sequence_parallel=True)
    whole = replace(cut, parallel=replace(cut.parallel, etp=1))
    says = {n: (BACKENDS[n].check(cut, MIXTRAL), BACKENDS[n].check(whole, MIXTRAL)) for n in BACKENDS}

    assert says["megatron"] == ([], [])
    assert "use etp 1" in says["torchtitan"][0][0]
    assert says["torchtitan"][1] == []
    assert any("keeps experts whole" in reason for reason in says["deepspeed"][0])
    assert says["plansim"] == ([], [])


def test_megatron_orders_pp_inside_dp_where_experts_fill_what_lies_inside():
    order = ("tp", "cp", "pp", "dp")
    wide = plan(dp=4, tp=2, pp=2, cp=2, sequence_parallel=True, ep=4, etp=1)
    inside = replace(wide, placement=order)

    assert BACKENDS["megatron"].check(inside, MIXTRAL) == []
    for degrees in ({"ep": 2}, {"ep": 1, "etp": None}):
        other = replace(inside, parallel=replace(wide.parallel, **degrees))
        assert "must be the tp 2 x cp 2 ranks of a stage" in BACKENDS["megatron"].check(other, MIXTRAL)[0]
        assert BACKENDS["megatron"].check(replace(other, placement=wide.placement), MIXTRAL) == []


def test_the_plansim_rules_are_those_of_its_executor():
    from plansim.execute.comm_hooks import HOOKS
    from plansim.execute.outer import OUTER_METHODS
    from plansim.execute.parallel.coded_stage import BOUNDARY_METHODS
    from plansim.execute.sharded_comm import SHARDED_METHODS

    allows = BACKENDS["plansim"].allows

    assert set(allows["compression.gradients"]) == {"none", *HOOKS}
    assert set(allows["compression.parameters"]) == {"none", *SHARDED_METHODS}
    assert set(allows["compression.activations"]) == {"none", *BOUNDARY_METHODS}
    assert set(allows["compression.outer"]) == {"none", *OUTER_METHODS}


@pytest.mark.parametrize(
    ("edge", "method", "stages"),
    [("gradients", "topk", (0, 1)), ("gradients", "int8", (0, 1, 2, 3)), ("parameters", "int8", (2, 3))],
)
def test_methods_run_with_the_zero_stages_they_can(edge, method, stages):
    squeezed = Compression(**{edge: Method(method=method)})

    for stage in range(4):
        reasons = BACKENDS["plansim"].check(
            replace(plan(dp=8, zero_stage=stage), compression=squeezed), LLAMA_8B
        )
        assert (reasons == []) == (stage in stages)


def test_schedule_does_not_matter_without_a_pipeline():
    assert BACKENDS["megatron"].check(plan(dp=8, schedule="zbv"), LLAMA_8B) == []


def test_choices_outside_degrees_are_refused():
    squeezed = replace(plan(dp=8), compression=Compression(gradients=Method(method="powersgd")))
    mixed = replace(plan(pp=2), recompute=("none", "full"))
    swapped = replace(plan(dp=2, tp=2), placement=("dp", "tp", "cp", "pp"))

    assert any("powersgd" in r for r in BACKENDS["megatron"].check(squeezed, LLAMA_8B))
    assert any("differs between stages" in r for r in BACKENDS["torchtitan"].check(mixed, LLAMA_8B))
    assert any("placement dp-tp" in r for r in BACKENDS["megatron"].check(swapped, LLAMA_8B))
    assert BACKENDS["plansim"].check(mixed, LLAMA_8B) == []


def test_tensor_parallel_of_a_model_without_heads_is_no_matter_of_heads():
    mlp = Model(name="mlp", family="mlp", layers=4, hidden=64)

    assert BACKENDS["plansim"].check(plan(tp=2), mlp) == []
