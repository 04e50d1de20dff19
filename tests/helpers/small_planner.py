"""Planners quick enough for tests: the answer is made up, its prediction is not."""

from plansim.capacity.evaluate import Answer
from plansim.errors import InfeasibleError
from plansim.plan.model import Parallel, Plan
from plansim.simulate.predict import predict


def small_planner(model, profile, job, fix, objective):
    """Plain data parallelism with a sharded optimizer; refuses what does not divide, as a planner would."""
    world = profile.num_devices
    if job.global_batch % world:
        raise InfeasibleError(f"batch {job.global_batch} over {world} replicas", {"batch": 1})
    parallel = Parallel(dp=world, zero_stage=3, microbatch=1)
    plan = Plan(model=model.name, profile=profile.name, job=job, parallel=parallel, recompute="full")
    return Answer(plan=plan, prediction=predict(model, profile, plan), search={"candidates": 1})


def broken_planner(model, profile, job, fix, objective):
    """A planner with a bug."""
    raise ZeroDivisionError("a bug")
