"""Clusters of unlike devices: layers and shares of the batch sized to speed, against brute force."""

from dataclasses import replace
from itertools import combinations, product

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from plansim.costs.layout import Layout, default_stack
from plansim.errors import InfeasibleError, InputError, PlanError
from plansim.hardware.read import at_speed, load_profile
from plansim.hardware.stack import find_stack
from plansim.plan.emit import EMITTERS, emit
from plansim.plan.kinds import kinds_of_replicas
from plansim.plan.model import Job, Overlap, Parallel, Plan
from plansim.plan.rule import Rejected
from plansim.plan.rules import check_plan
from plansim.planner import plan
from plansim.planner.evaluate import Evaluator
from plansim.planner.plan import ask
from plansim.planner.pool import Pool
from plansim.planner.shares import least_longest, sized
from plansim.planner.tables import Workbench
from plansim.simulate.predict import predict
from plansim.simulate.replicas import replica_seconds
from plansim.workload.model import Model
from plansim.workload.read import load_model

MIXED, MODEL = load_profile("mixed-a100-v100"), load_model("gpt3-1.3b")
JOB = Job(global_batch=64, seq_len=2048, dtype="fp16")
CALM = {"deadline": None, "suppress_health_check": list(HealthCheck)}
FAST, SLOW = (load_profile(name).device for name in ("a100x8", "t4x4"))


def splits(total, count):
    """Yield every way to write a number as so many numbers of at least one."""
    for bars in combinations(range(1, total), count - 1):
        yield tuple(b - a for a, b in zip((0, *bars), (*bars, total), strict=True))


def cluster(sizes, devices, node=2):
    """Return node groups of these sizes, each of one device."""
    base = load_profile("mixed-a100-v100")
    group = base.groups[0]
    groups = tuple(
        replace(group, device=d, devices=node, count=n) for n, d in zip(sizes, devices, strict=True)
    )
    fabric = (replace(base.fabric[0], group=node), *base.fabric[1:])
    return replace(base, groups=groups, fabric=fabric)


@st.composite
def problems(draw):
    """Return a small model, a cluster of two or three groups, and a job."""
    heads = draw(st.sampled_from([4, 8]))
    hidden = heads * draw(st.sampled_from([64, 128]))
    model = Model(
        name="small",
        family=draw(st.sampled_from(["gpt", "llama"])),
        layers=draw(st.integers(3, 8)),
        hidden=hidden,
        ffn=4 * hidden,
        heads=heads,
        kv_heads=heads,
        vocab=draw(st.sampled_from([1000, 32000])),
        seq_len=512,
        positions="rotary",
    )
    kinds = [FAST, draw(st.sampled_from([SLOW, at_speed(FAST, 0.6)]))]
    order = draw(st.sampled_from([(0, 1), (1, 0), (0, 1, 0)]))
    sizes = draw(st.sampled_from([(1, 1), (2, 1), (1, 2)] if len(order) == 2 else [(1, 1, 1)]))
    profile = cluster(sizes, [kinds[i] for i in order])
    return model, profile, Job(global_batch=draw(st.sampled_from([6, 8])), seq_len=512, dtype="fp16")


def every_plan(model, profile, job):
    """Yield every plan of the space with every split of the batch, written out with plain loops."""
    world = profile.num_devices
    base = Plan(model=model.name, profile=profile.name, job=job)
    degrees = [d for d in range(1, world + 1) if world % d == 0]
    orders = [("tp", "cp", "dp", "pp"), ("tp", "cp", "pp", "dp")]
    for tp, pp in product(degrees, degrees):
        if world % (tp * pp):
            continue
        for mb, zero, order, schedule in product((1, 2), (0, 1, 3), orders, ("1f1b", "zb-h1")):
            dp = world // (tp * pp)
            if (pp == 1 and schedule != "1f1b") or (dp == 1 and zero):
                continue
            parallel = Parallel(dp=dp, tp=tp, pp=pp, zero_stage=zero, microbatch=mb, schedule=schedule)
            probe = replace(base, parallel=parallel, placement=order)
            stack = default_stack(model, profile, probe)
            probe = replace(probe, overlap=Overlap(tensor_parallel=stack.tp_overlap and tp > 1))
            bench = Workbench(model, profile, probe, stack)
            rows = kinds_of_replicas(probe, profile)
            slowest = max(rows, key=sum)
            layouts = {None, *(b.layers(pp, slowest) for b in bench.balance().values() if pp > 1)}
            for layers in layouts:
                one = replace(parallel, stage_layers=layers)
                yield replace(probe, parallel=one)
                if dp > 1 and zero < 2 and job.global_batch % mb == 0 and job.global_batch // mb >= dp:
                    for shares in splits(job.global_batch // mb, dp):
                        dealt = list(zip(rows, shares, strict=True))
                        if any(a[0] == b[0] and a[1] < b[1] for a, b in combinations(dealt, 2)):
                            continue  # the same replicas in another order
                        yield replace(probe, parallel=replace(one, batch_shares=shares))


@settings(max_examples=2, **CALM)
@given(problem=problems())
def test_nothing_beats_the_answer_whatever_the_stages_and_shares(problem):
    model, profile, job = problem
    evaluate = Evaluator(model, profile)
    figures = [evaluate.apart(p) for p in every_plan(model, profile, job)]
    best = min((f.step_time_s for f in figures if not isinstance(f, Rejected)), default=float("inf"))
    fix = {"schedule": ("1f1b", "zb-h1"), "microbatch": (1, 2), "zero_stage": (0, 1, 3), "cp": 1}
    fix |= {"recompute": "none", "sequence_parallel": False, "offload": False, "attention": "flash"}
    fix |= {"overlap.gradients": True, "overlap.parameters": True, "zero_group": None}
    fix |= {"compression.gradients": "none", "compression.parameters": "none", "aggregation": "all_reduce"}
    try:
        found = plan(model, profile, job, top=1, fix=fix, exhaustive=True).best.plan
    except InfeasibleError:
        assert best == float("inf")
        return

    assert evaluate.apart(found).step_time_s == pytest.approx(best, rel=1e-12)


@settings(max_examples=4, **CALM)
@given(problem=problems(), seed=st.randoms(use_true_random=False))
def test_bounds_are_below_what_is_simulated(problem, seed):
    model, profile, job = problem
    question = ask(model, profile, job)
    pool = Pool(question, (profile.num_devices,))
    evaluate, pairs = Evaluator(model, profile), []
    while pool.floor() < float("inf"):
        pairs += pool.take()

    for bound, number in seed.sample(pairs, min(60, len(pairs))):
        figures = evaluate.apart(pool.plan(number))
        if isinstance(figures, Rejected):
            assert figures.rule in ("memory", "batch shares", "schedule")
        else:
            assert question.objective.score(figures) >= bound, pool.plan(number)


@settings(max_examples=60, **CALM)
@given(
    kinds=st.lists(st.integers(0, 2), min_size=2, max_size=4),
    total=st.integers(4, 11),
    steps=st.lists(st.lists(st.sampled_from([0.0, 0.5, 1.0, 3.0]), min_size=12, max_size=12), min_size=3),
)
def test_no_split_of_the_batch_ends_before_the_sized_one(kinds, total, steps):
    """Whatever a microbatch more costs, as long as it costs no less than nothing."""
    after = [np.cumsum([0.01, *each]) for each in steps[:3]]

    def longest(shares):
        return max(after[k][m] for k, m in zip(kinds, shares, strict=True))

    found = sized(total, kinds, lambda kind, m: float(after[kind][m]))

    assert sum(found) == total
    assert longest(found) == min(longest(s) for s in splits(total, len(kinds)))


@settings(max_examples=60, **CALM)
@given(
    each=st.lists(st.tuples(st.floats(0.5, 4.0), st.integers(1, 2)), min_size=2, max_size=3),
    total=st.integers(6, 12),
)
def test_whole_shares_are_bounded_by_the_least_longest_time(each, total):
    kinds = [k for k, (_, count) in enumerate(each) for _ in range(count)]
    longest = (
        max(each[k][0] * m for k, m in zip(kinds, shares, strict=True))
        for shares in splits(total, len(kinds))
    )

    bound = least_longest(np.array([[float(total)]]), [(np.array([[w]]), n) for w, n in each])[0, 0]
    assert bound <= min(longest) * (1 + 1e-8)


def test_a_mixed_cluster_is_planned_by_speed_and_says_so():
    found = plan(MODEL, MIXED, JOB, top=1)
    p, words = found.best.plan.parallel, " ".join(found.notes)
    slowest = replace(MIXED, groups=(replace(MIXED.groups[1], count=2),))

    assert p.batch_shares is not None
    assert min(p.batch_shares[:8]) > max(p.batch_shares[8:])  # the A100s come first
    assert found.best.score < plan(MODEL, slowest, JOB, top=1).best.score
    assert f"{p.batch_shares[0]} microbatches on NVIDIA A100 SXM4 80 GB" in words
    alone = plan(MODEL, replace(MIXED, groups=MIXED.groups[:1]), JOB, top=1).best
    gain = f"{alone.score / found.best.score - 1:+.1%}"
    assert f"Its 8 x NVIDIA A100 SXM4 80 GB alone: time of one step's progress {gain}" in words


def test_stages_hold_layers_by_the_speed_of_their_devices():
    """One layer costs a V100 about 2.5 times what it costs an A100 here, and the head is the V100's."""
    found = plan(MODEL, MIXED, JOB, top=1, fix={"pp": 2, "placement": ("tp", "cp", "dp", "pp"), "vp": 1})
    fast, slow = found.best.plan.parallel.stage_layers

    assert fast + slow == MODEL.layers
    assert fast / slow > 2.0
    splits_ = [replace(found.best.plan.parallel, stage_layers=(n, 24 - n)) for n in range(12, 24)]
    steps = [predict(MODEL, MIXED, replace(found.best.plan, parallel=p)).step_time_s for p in splits_]
    assert found.best.prediction.step_time_s == pytest.approx(min(steps), rel=0.01)
    assert steps[0] > 1.2 * min(steps), "even stages wait for the slow device"


def test_stages_are_sized_to_the_microbatch_that_runs():
    """Launches cost all devices alike: with larger microbatches the fast one takes more layers."""
    stack = replace(find_stack("pytorch-ddp"), operator_host_s=1e-4)
    bench = Workbench(MODEL, MIXED, ask(MODEL, MIXED, JOB).tabled, stack)
    sized = {m: b.layers(2, (0, 1)) for m, b in bench.balance().items()}
    fast = [layers[0] for layers in sized.values() if layers]

    assert list(sized) == [1, 2, 4, 8]
    assert fast == sorted(fast)
    assert fast[0] < fast[-1]


def test_a_slow_node_takes_a_smaller_share():
    whole = load_profile("a100x8", {"node.count": "2"})
    group = replace(whole.groups[0], count=1)
    slow = replace(group, device=at_speed(group.device, 0.5))
    job = replace(JOB, dtype="bf16")
    narrow = {"tp": 1, "pp": 1, "cp": 1}
    found = plan(MODEL, replace(whole, groups=(group, slow)), job, top=1, fix=narrow).best

    shares = found.plan.parallel.batch_shares
    assert shares is not None
    assert min(shares[:8]) > max(shares[8:])
    assert found.score > plan(MODEL, whole, job, top=1, fix=narrow).best.score


def test_the_step_ends_with_the_replica_that_is_last():
    parallel = Parallel(dp=16, zero_stage=1, microbatch=1, batch_shares=(6,) * 8 + (2,) * 8)
    candidate = Plan(model="m", profile="p", job=JOB, parallel=parallel)
    found = predict(MODEL, MIXED, candidate)
    alone = replica_seconds(Layout.of(MODEL, MIXED, candidate))

    assert [(r.num_microbatches, r.count) for r, _ in alone] == [(6, 8), (2, 8)]
    assert found.step_time_s == pytest.approx(max(seconds for _, seconds in alone), rel=0.01)
    assert found.mfu == pytest.approx(found.model_flop_per_s_per_device / ((312e12 + 125e12) / 2), rel=1e-6)


def test_every_stage_is_held_against_its_own_devices():
    """17 of 24 layers fit an A100 and not a V100."""
    tight = cluster((1, 1), (FAST, replace(FAST, id="small", memory_bytes=6 * 2**30)), node=8)
    stages = Parallel(dp=8, pp=2, zero_stage=1, stage_layers=(20, 4))
    candidate = Plan(model="m", profile="p", job=JOB, parallel=stages)
    turned = replace(tight, groups=tight.groups[::-1])

    assert not isinstance(Evaluator(MODEL, tight).apart(candidate), Rejected)
    assert Evaluator(MODEL, turned).apart(candidate).rule == "memory"


def test_a_runtime_with_equal_shares_gets_equal_shares():
    found = plan(MODEL, MIXED, JOB, top=3, backend="megatron", fix={"cp": 1})
    assert all(r.plan.parallel.batch_shares is None for r in found.plans)


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"batch_shares": (1, 2, 3)}, "16 numbers"),
        ({"batch_shares": (4,) * 16}, "leave them out"),
        ({"batch_shares": (5, *(4,) * 14, 3), "zero_stage": 3}, "zero_stage"),
        ({"batch_shares": (63, *(1,) * 15)}, "global_batch 64"),
    ],
)
def test_shares_that_cannot_be_are_refused(change, word):
    parallel = Parallel(dp=16, microbatch=1, **change)
    broken = check_plan(Plan(model="m", profile="p", job=JOB, parallel=parallel), MODEL, MIXED)
    assert any(r.rule == "batch shares" and word in str(r) for r in broken)


@pytest.mark.parametrize("target", sorted(EMITTERS))
def test_our_own_executor_alone_takes_unequal_shares(target):
    parallel = Parallel(dp=16, zero_stage=1, microbatch=1, batch_shares=(6,) * 8 + (2,) * 8)
    candidate = Plan(model="gpt3-1.3b", profile="mixed-a100-v100", job=JOB, parallel=parallel)

    if EMITTERS[target].runs == "plansim":
        assert "microbatch 1 x 2 to 6 by replica" in emit(candidate, MODEL, MIXED, target)["NOTES.md"]
        return
    with pytest.raises(PlanError, match="batch_shares=even"):
        emit(candidate, MODEL, MIXED, target)


def test_shares_by_speed_need_unlike_devices():
    with pytest.raises(InputError, match="all alike"):
        plan(MODEL, load_profile("a100x8"), JOB, fix={"batch_shares": "sized"})


def test_a_uniform_cluster_says_nothing_of_kinds():
    assert "alone" not in " ".join(plan(MODEL, load_profile("a100x8"), JOB, top=1).notes)
