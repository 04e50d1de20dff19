"""What searching only the usual part of the space costs: the answer against that of the whole space."""

import random
import statistics

import pytest

from plansim.hardware.read import load_profile
from plansim.plan.model import Job
from plansim.planner import plan
from plansim.planner.objective import Constraints
from plansim.planner.plan import ask
from plansim.planner.solve import best_first, helpful, solve
from plansim.planner.space import LEFT_OUT, space_of, widened
from plansim.workload.model import Model

BATCHES = (4, 6, 8, 12, 16, 64)


def problem(seed):
    """Return a small model, cluster and job."""
    draw = random.Random(seed)
    heads = draw.choice([4, 6, 8, 16])
    hidden = heads * draw.choice([32, 64, 128])
    model = Model(
        name="small",
        family=draw.choice(["gpt", "llama"]),
        layers=draw.randint(2, 12),
        hidden=hidden,
        ffn=4 * hidden,
        heads=heads,
        kv_heads=heads,
        vocab=draw.choice([1000, 32000]),
        seq_len=draw.choice([256, 1024, 2048]),
        positions="rotary",
    )
    size = draw.choice([2, 4, 8])
    given = {"node.count": str(draw.choice([1, 2])), "node.devices": str(size), "fabric.0.group": str(size)}
    profile = load_profile(draw.choice(["a100x8", "t4x4"]), given)
    return model, profile, Job(global_batch=draw.choice(BATCHES), seq_len=model.seq_len, dtype="fp16")


def test_the_usual_space_costs_less_than_one_percent_on_average():
    regrets = []
    for seed in range(10):
        usual = plan(*problem(seed), top=1)
        whole = plan(*problem(seed), top=1, exhaustive=True)
        assert usual.search.candidates < whole.search.candidates
        regrets.append(usual.best.score / whole.best.score - 1.0)

    assert min(regrets) >= -1e-12, "the whole space holds the usual one"
    assert statistics.mean(regrets) <= 0.01
    assert sum(r > 0.01 for r in regrets) <= 1, regrets


@pytest.mark.parametrize("seed", range(6))
def test_a_choice_left_out_comes_back_when_it_helps(seed):
    """A switch that alone speeds up the first answer is in the space of the last one."""
    question = ask(*problem(seed))
    first, last = best_first(question, Constraints(), 1), solve(question, Constraints())

    assert last.found.best[0][0] <= first.found.best[0][0]
    if helpful(first):
        assert last.question.space.given > first.question.space.given
        assert last.found.best[0][0] < first.found.best[0][0]


def test_what_is_named_is_not_widened():
    model, profile, job = problem(0)
    space = space_of(model, profile, job, fix={"attention": "flash"})

    assert widened(space, ["attention"]).of("attention") == ("flash",)
    assert widened(space, ["overlap.gradients"]).of("overlap.gradients") == (True, False)


def test_a_runtime_is_asked_before_the_space_is_widened():
    model, profile, job = problem(0)
    space = space_of(model, profile, job, backend="megatron")

    assert widened(space, ["compression.gradients"]).of("compression.gradients") == ("none",)


def test_what_is_left_out_is_said():
    assert LEFT_OUT in " ".join(plan(*problem(1), top=1).notes)
