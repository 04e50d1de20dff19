"""The planner against brute force: on small clusters everything is simulated; nothing beats the answer."""

from dataclasses import replace
from itertools import chain, product

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from plansim.costs.layout import Layout, default_stack
from plansim.errors import InfeasibleError, InputError
from plansim.hardware.read import load_profile
from plansim.plan.model import Job, Overlap, Parallel, Plan
from plansim.plan.rule import Rejected
from plansim.plan.rules import check_plan
from plansim.planner import plan
from plansim.planner.choices import CHOICES
from plansim.planner.counts import counts
from plansim.planner.evaluate import Evaluator, peak_memory
from plansim.planner.fit import shard_rows
from plansim.planner.objective import OBJECTIVES, Constraints
from plansim.planner.plan import ask
from plansim.planner.pool import Pool, Stock
from plansim.planner.sieve import Pipelines
from plansim.planner.tables import Workbench
from plansim.schedules import find_schedule
from plansim.workload.model import MTP, Mamba, Model, MoE

GPU, SLOW = "a100x8", "t4x4"
FREE = {
    "attention": "flash",
    "overlap.parameters": True,
    "overlap.gradients": True,
    "aggregation": "all_reduce",
}
FREE |= {"compression.gradients": "none", "compression.parameters": "none", "zero_group": None}


AWAY = st.sampled_from([0, 1, 3, 64])
"""Layers of a chunk whose activations are in host memory; of most chunks 64 is all."""


def as_hybrid(draw, model):
    """Return the model with some of its layers Mamba-2, MLP or experts alone."""
    letters = "M*-E" if model.moe else "M*-"
    pattern = "".join(draw(st.sampled_from(letters)) for _ in range(model.layers))
    mixer = Mamba(heads=model.heads, head_dim=32, state=32, groups=draw(st.sampled_from([1, 2])))
    return replace(model, family="hybrid", pattern=pattern, mamba=mixer)


@st.composite
def problems(draw):
    """Return a small model, cluster and job."""
    layers = draw(st.integers(2, 9))
    heads = draw(st.sampled_from([4, 6, 8]))
    hidden = heads * draw(st.sampled_from([32, 64, 128]))
    moe = draw(st.booleans()) and MoE(
        experts=draw(st.sampled_from([2, 4, 8])), top_k=2, ffn=hidden, dense_layers=draw(st.integers(0, 2))
    )
    model = Model(
        name="small",
        family="moe" if moe else draw(st.sampled_from(["gpt", "llama"])),
        layers=layers,
        hidden=hidden,
        ffn=4 * hidden,
        heads=heads,
        kv_heads=heads,
        vocab=draw(st.sampled_from([1000, 32000])),
        seq_len=draw(st.sampled_from([256, 1024])),
        gated=bool(moe),
        positions="rotary",
        tied_embeddings=draw(st.booleans()),
        moe=moe or None,
    )
    if draw(st.integers(0, 3)) == 0:
        model = as_hybrid(draw, model)
    elif draw(st.integers(0, 3)) == 0:
        model = replace(model, mtp=MTP(depth=1, pattern="*E" if moe else "*-", wide=draw(st.booleans())))
    nodes = draw(st.sampled_from([1, 2]))
    name = draw(st.sampled_from([GPU, SLOW]))
    size = draw(st.sampled_from([2, 4]))
    domain = size
    if draw(st.integers(0, 4)) == 0:  # four nodes of two, three of which fill a domain: two lie in each
        nodes, size, domain = 4, 2, 6
    profile = load_profile(
        name, {"node.count": str(nodes), "node.devices": str(size), "fabric.0.group": str(domain)}
    )
    job = Job(global_batch=draw(st.sampled_from([4, 6, 8, 16])), seq_len=model.seq_len, dtype="fp16")
    return model, profile, job


def every_plan(model, profile, job, world):
    """Yield every plan of the space on so many devices, written out with plain loops."""
    base = Plan(model=model.name, profile=profile.name, job=job)
    degrees = [d for d in range(1, world + 1) if world % d == 0]
    experts = [e for e in range(1, world + 1) if model.moe and model.moe.experts % e == 0] or [1]
    orders = [("1f1b", 1), ("zb-h1", 1), ("interleaved", 2)]
    for tp, pp, cp, ep, etp in product(degrees, degrees, degrees, experts, (None, 1)):
        if world % (tp * pp * cp) or (etp and (tp == 1 or ep == 1)):
            continue
        for mb, zero, sp, mode, (schedule, v) in product(
            (1, 4), (0, 1, 3), (False, True), ("none", "full"), orders
        ):
            if (pp == 1 and (schedule, v) != ("1f1b", 1)) or (sp and tp == 1):
                continue
            parallel = Parallel(
                dp=world // (tp * pp * cp),
                tp=tp,
                pp=pp,
                cp=cp,
                ep=ep,
                etp=etp,
                zero_stage=zero,
                sequence_parallel=sp,
                microbatch=mb,
                schedule=schedule,
                virtual_stages=v,
            )
            if zero and parallel.dp * cp == 1:
                continue
            probe = replace(base, parallel=parallel, recompute=mode)
            stack = default_stack(model, profile, probe)
            overlap = Overlap(tensor_parallel=stack.tp_overlap and tp > 1)
            yield replace(probe, overlap=overlap)
            balance = Workbench(model, profile, probe, stack).balance() if pp > 1 else {}
            owner = find_schedule(schedule).rank_of_chunk
            owners = tuple(owner(c, pp, v) for c in range(pp * v))
            for layers in {b.on_ranks(owners) for b in balance.values()} - {None}:
                yield replace(probe, overlap=overlap, parallel=replace(parallel, stage_layers=layers))


@settings(max_examples=10, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    problem=problems(),
    objective=st.sampled_from(["throughput", "cost", "memory"]),
    shrink=st.sampled_from([1.0, 0.02, 0.05]),
    away=st.sampled_from([0, 0, 2]),
    slack=st.sampled_from([None, 1.001, 1.2]),
)
def test_nothing_beats_the_answer(problem, objective, shrink, away, slack):
    """Not even with a deadline only just feasible, nor with fewer devices where these cost less."""
    model, profile, job = problem
    job = replace(job, target_tokens=float(job.global_batch * job.seq_len))  # one step
    profile = replace(
        profile,
        groups=tuple(
            replace(g, device=replace(g.device, memory_bytes=g.device.memory_bytes * shrink))
            for g in profile.groups
        ),
    )
    fix = {
        **FREE,
        "recompute": ("none", "full"),
        "recompute_per_stage": False,  # the loops above give all stages one mode
        "schedule": ("1f1b", "interleaved", "zb-h1"),
        "offload": False,
        "offload_activations": away,
    }
    fix |= {
        "placement": ("tp", "cp", "dp", "pp"),
        "microbatch": (1, 4),
        "zero_stage": (0, 1, 3),
        "virtual_stages": (1, 2),
    }
    evaluate = Evaluator(model, profile)
    score = OBJECTIVES[objective].score
    every = []
    most = profile.num_devices
    numbers = counts(most, profile.devices_per_node) if objective == "cost" else (most,)
    for other in chain.from_iterable(every_plan(model, profile, job, n) for n in numbers):
        candidate = replace(other, offload_activations=away)
        if check_plan(candidate, model, profile):
            continue
        figures = evaluate(candidate)
        if not isinstance(figures, Rejected):
            every.append(figures)
    fastest = min((f.effective_step_s for f in every), default=float("inf"))
    limits = Constraints(deadline_s=slack * fastest if slack and every else None)
    best = min((score(f) for f in every if not limits.broken(f, job)), default=float("inf"))

    try:
        found = plan(
            model, profile, job, objective=objective, top=1, fix=fix, constraints=limits, exhaustive=True
        )
    except InfeasibleError:
        assert best == float("inf")
        return

    assert found.best.score == pytest.approx(best, rel=1e-12)


def bare_bound(pool, number):
    """Return the bound of a candidate before its memory is looked at."""
    part, frame, _ = pool._pairs[number]
    one, some = part.columns.take(np.array([frame])), np.ones((1, 1), dtype=bool)
    options = replace(part.options, microbatches=(int(one.microbatch[0]),))
    shares, row = shard_rows(part.bench, one, options.microbatches)
    stock = Stock(part.bench, options, part.factor, part.most_s, shares, part.cells, part.tails)
    return pool._bare(stock, Pipelines(one, some, some, row, row))[0]


@settings(max_examples=10, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    problem=problems(),
    away=AWAY,
    rate=st.sampled_from([1e8, 25e9]),
    seed=st.randoms(use_true_random=False),
)
def test_bounds_are_below_what_is_simulated_and_memory_floors_below_the_peak(problem, away, rate, seed):
    model, profile, job = problem
    profile = replace(profile, host=replace(profile.host, pcie_bytes_per_s=rate))
    question = replace(ask(model, profile, job, fix={"recompute": CHOICES["recompute"]}), offloaded=away)
    pool = Pool(question, (profile.num_devices,))
    evaluate = Evaluator(model, profile)
    pairs = []
    while pool.floor() < float("inf") and len(pairs) < 3000:
        pairs += pool.take()

    for bound, number in seed.sample(pairs, min(40, len(pairs))):
        candidate = pool.plan(number)
        assert not check_plan(candidate, model, profile), candidate
        figures = evaluate(candidate)
        if isinstance(figures, Rejected):
            assert figures.rule in ("memory", "compression")
        else:
            assert figures.effective_step_s >= bound, candidate
            assert figures.effective_step_s >= bare_bound(pool, number), candidate


@settings(max_examples=8, deadline=None, suppress_health_check=list(HealthCheck))
@given(problem=problems(), away=AWAY, seed=st.randoms(use_true_random=False))
def test_what_memory_rejects_does_not_fit(problem, away, seed):
    """The floor of memory is below the peak, so nothing that fits is dropped."""
    model, profile, job = problem
    question = ask(model, profile, job, "memory", fix={"recompute": CHOICES["recompute"]})
    question = replace(question, offloaded=away)
    pool = Pool(question, (profile.num_devices,))
    pairs = pool.take()

    for floor, number in seed.sample(pairs, min(40, len(pairs))):
        peak, _ = peak_memory(Layout.of(model, profile, pool.plan(number)))
        assert floor <= peak


def test_every_candidate_is_accounted_for():
    model = Model(
        name="m", family="gpt", layers=8, hidden=512, ffn=2048, heads=8, kv_heads=8, vocab=1000, seq_len=512
    )
    profile = load_profile(GPU)
    found = plan(model, profile, Job(global_batch=16, seq_len=512))

    stats = found.search
    assert stats.candidates == sum(stats.infeasible_by_rule.values()) + stats.bounded_out + stats.simulated
    assert stats.complete


SPARSE = Model(
    name="m", family="moe", layers=8, hidden=512, ffn=2048, heads=8, kv_heads=8, vocab=1000, seq_len=512,
    gated=True, positions="rotary", moe=MoE(experts=8, top_k=2, ffn=512),
)  # fmt: skip


@pytest.mark.parametrize("etp", [1, "tp"])
def test_experts_are_cut_or_whole_as_asked(etp):
    """Fixed, every plan has it; left out are whole experts without ep, unless they are asked for."""
    found = plan(
        SPARSE, load_profile(GPU), Job(global_batch=16, seq_len=512), fix={"etp": etp, "tp": 2}, top=3
    )

    stats = found.search
    assert {p.plan.parallel.etp for p in found.plans} == {1 if etp == 1 else None}
    assert stats.candidates == sum(stats.infeasible_by_rule.values()) + stats.bounded_out + stats.simulated


def test_runtimes_choose_what_they_can_of_experts():
    job, profile = Job(global_batch=16, seq_len=512), load_profile(GPU)
    wide = {"tp": 2, "ep": 4}

    for backend in ("torchtitan", "plansim"):
        assert plan(SPARSE, profile, job, fix=wide, backend=backend, top=1).best.plan.parallel.etp == 1
    with pytest.raises(InputError, match="etp=1: deepspeed has none; use tp 1"):
        plan(SPARSE, profile, job, fix={"etp": 1}, backend="deepspeed")
    with pytest.raises(InputError, match="etp=1: d has no experts"):
        plan(replace(SPARSE, name="d", family="llama", moe=None), profile, job, fix={"etp": 1})
    with pytest.raises(InputError, match="etp=2: expected one of tp, 1"):
        plan(SPARSE, profile, job, fix={"etp": 2})


def test_megatron_has_experts_fill_what_lies_inside_the_pipeline():
    """With pp inside dp, of all ep only tp x cp is left; elsewhere others are answers too."""
    profile = load_profile(GPU, {"node.count": "2", "node.devices": "4", "fabric.0.group": "4"})
    fix = {"tp": 2, "pp": 2, "dp": 2, "ep": (2, 4), "etp": 1, "zero_stage": 0}
    orders = (("tp", "cp", "dp", "pp"), ("tp", "cp", "pp", "dp"))

    def eps(order):
        fixed = {**fix, "placement": order}
        job = Job(global_batch=16, seq_len=512)
        found = plan(SPARSE, profile, job, fix=fixed, backend="megatron", top=1000)
        return {p.plan.parallel.ep for p in found.plans}

    assert [eps(order) for order in orders] == [{2, 4}, {2}]
