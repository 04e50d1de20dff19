"""Stages sized to what their layers cost: dynamic programming against brute force, and what it buys."""

from dataclasses import replace
from itertools import combinations, pairwise, product

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from plansim.hardware.read import load_profile, with_nodes
from plansim.plan.backends import BACKENDS
from plansim.plan.layout import chunk_layers
from plansim.plan.model import Job
from plansim.plan.read import dump_plan, load_plan
from plansim.plan.rules import check_plan
from plansim.planner import plan
from plansim.planner.balance import WORTH, Balance
from plansim.planner.evaluate import Evaluator
from plansim.planner.plan import ask
from plansim.planner.pool import Pool
from plansim.workload.model import Model
from plansim.workload.read import load_model

costs = st.lists(st.floats(0.1, 5.0), min_size=2, max_size=9)


def every_split(layers, chunks):
    """Yield every way to cut so many layers into so many chunks of one layer or more."""
    for cuts in combinations(range(1, layers), chunks - 1):
        edges = (0, *cuts, layers)
        yield tuple(b - a for a, b in pairwise(edges))


@settings(max_examples=200)
@given(body=costs, embedding=st.floats(0.0, 5.0), head=st.floats(0.0, 20.0), data=st.data())
def test_no_split_has_a_shorter_longest_chunk(body, embedding, head, data):
    chunks = data.draw(st.integers(2, len(body)))
    balance = Balance(np.array(body), embedding, head)
    best = min(balance.longest(split) for split in every_split(len(body), chunks))
    even = balance.longest(chunk_layers(len(body), chunks))
    found = balance.layers(chunks)

    if found is None:
        assert best > even * (1.0 - WORTH)
    else:
        assert sum(found) == len(body)
        assert len(found) == chunks
        assert min(found) >= 1
        assert balance.longest(found) == pytest.approx(best)


@settings(max_examples=150, deadline=None)
@given(
    layers=st.integers(2, 9),
    ranks=st.integers(1, 3),
    embedding=st.floats(0.0, 3.0),
    head=st.floats(0.0, 9.0),
)
def test_no_split_of_equal_layers_has_a_shorter_longest_rank(layers, ranks, embedding, head):
    """Every way to deal layers to ranks of two chunks, the outer of which may have none."""
    chunks, owners = 2 * ranks, tuple(c % ranks for c in range(2 * ranks))
    assume(layers >= chunks)
    balance = Balance(np.ones(layers), embedding, head)

    def longest(split):
        held = np.array(split, dtype=float)
        held[0] += embedding
        held[-1] += head
        return np.bincount(owners, held).max()

    inner = range(1, layers + 1)
    every = (
        (first, *middle, layers - first - sum(middle))
        for first in range(layers + 1)
        for middle in product(inner, repeat=chunks - 2)
        if first + sum(middle) <= layers
    )
    dealt, found, even = balance._dealt(owners), balance.on_ranks(owners), chunk_layers(layers, chunks)

    assert sum(dealt) == layers
    assert min(dealt[1:-1], default=1) >= 1
    assert longest(dealt) == pytest.approx(min(map(longest, every)))
    if found is None:
        assert balance.pace(dealt, owners) > balance.pace(even, owners) * (1.0 - WORTH)
    else:
        assert balance.pace(found, owners) <= min(balance.pace(s, owners) for s in (dealt, even))


def test_a_rank_with_a_heavy_head_holds_fewer_layers_in_all():
    """94 layers on 4 ranks of 12 chunks: no chunk outlasts the head, but the last rank would."""
    owners = tuple(c % 4 for c in range(48))
    balance = Balance(np.ones(94), 0.0, 3.0)
    split = balance.on_ranks(owners)

    assert balance.layers(48) is None
    assert split is not None
    held = np.bincount(owners, split)
    assert held.tolist() == [25.0, 24.0, 24.0, 21.0]
    assert split[-1] == 0


def test_equal_layers_stay_even():
    balance = Balance(np.ones(24), 0.0, 0.0)

    assert all(balance.layers(chunks) is None for chunks in range(1, 26))


def test_a_heavy_head_takes_layers_off_the_last_stage():
    split = Balance(np.ones(16), 0.0, 3.0).layers(4)

    assert split is not None
    assert (max(split), split[-1]) == (5, 2)


MODEL = Model(
    name="heavy", family="llama", layers=16, hidden=2048, ffn=5504, heads=16, kv_heads=16, vocab=256000,
    seq_len=2048, gated=True, positions="rotary",
)  # fmt: skip
JOB = Job(global_batch=64, seq_len=2048)
PIPED = {"pp": 4, "dp": 2, "schedule": "1f1b", "zero_stage": 1, "recompute": "none"}


def test_a_pipeline_with_a_heavy_head_is_faster_with_stages_sized_to_it():
    profile = load_profile("a100x8")
    even = plan(MODEL, profile, JOB, top=1, fix={**PIPED, "stage_layers": "even"}).best
    sized = plan(MODEL, profile, JOB, top=1, fix=PIPED).best

    layers = sized.plan.parallel.stage_layers
    assert layers is not None
    assert sum(layers) == 16
    assert layers[-1] < layers[0]
    assert sized.score < 0.95 * even.score
    assert sized.prediction.breakdown.bubble_s < even.prediction.breakdown.bubble_s
    assert even.plan.parallel.stage_layers is None


def test_the_plan_is_written_with_its_stages(tmp_path):
    best = plan(MODEL, load_profile("a100x8"), JOB, top=1, fix=PIPED).best.plan
    path = tmp_path / "plan.yaml"
    path.write_text(dump_plan(best), encoding="utf-8")

    assert load_plan(path) == best
    assert best.parallel.stage_layers is not None


def test_no_split_of_one_pipeline_is_faster():
    """Brute force: every split of 8 layers over 4 stages is simulated; the planner's is within 1 %."""
    model = Model(
        name="small", family="llama", layers=8, hidden=1024, ffn=2752, heads=8, kv_heads=8, vocab=128000,
        seq_len=1024, gated=True, positions="rotary",
    )  # fmt: skip
    profile, job = load_profile("a100x8"), Job(global_batch=64, seq_len=1024)
    best = plan(
        model,
        profile,
        job,
        top=1,
        fix={**PIPED, "tp": 1, "microbatch": 2, "placement": ("tp", "cp", "dp", "pp")},
    )
    evaluate = Evaluator(model, profile)
    times = []
    for split in every_split(8, 4):
        other = replace(best.best.plan, parallel=replace(best.best.plan.parallel, stage_layers=split))
        times.append(evaluate(other).step_time_s)
    assert best.best.score <= min(times) * 1.01


@pytest.mark.parametrize("name", [n for n, b in BACKENDS.items() if not b.uneven_stages])
def test_runtimes_without_uneven_stages_are_spared_them(name):
    pool = Pool(ask(MODEL, load_profile("a100x8"), JOB, backend=name), (8,))

    assert not any(
        part.options.structures[i].sized_at
        for part in pool.parts
        for i in set(part.columns.structure.tolist())
    )


def test_a_pipeline_may_give_embedding_and_head_chunks_of_their_own():
    """126 layers on 16 ranks of 8 chunks: how Llama 3.1 405B is trained (arXiv 2407.21783, section 3.3.2)."""
    model, profile = load_model("llama-3.1-405b"), with_nodes(load_profile("h100x8"), 16)
    fix = {
        "tp": 8,
        "pp": 16,
        "virtual_stages": 8,
        "schedule": "interleaved",
        "microbatch": 1,
    }
    found = plan(model, profile, Job(global_batch=32, seq_len=8192), top=1, fix=fix)

    assert not check_plan(found.best.plan, model, profile)
    assert found.best.plan.parallel.virtual_stages == 8
