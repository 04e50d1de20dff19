"""What a reader of a plan must know beside its figures."""

from __future__ import annotations

from plansim.costs.hostdata import own_cores
from plansim.plan.model import Plan
from plansim.plan.rules import INT8_TRAINING
from plansim.planner.objective import Constraints
from plansim.planner.question import Question, one_second
from plansim.planner.solve import counts_devices
from plansim.planner.space import LEFT_OUT


def notes_on(question: Question, limits: Constraints, best: Plan) -> tuple[str, ...]:
    """Return what a reader must know: devices left idle, choices left out or without effect."""
    used, there = best.parallel.world_size, question.profile.num_devices
    notes = []
    if question.objective.unit == "device s":
        notes.append(
            f"{question.profile.name} does not say what the objective {question.objective.name} needs "
            "(profile.economics: usd_per_device_hour, power_watts): ranked by device time"
        )
    most = limits.most_devices(there, one_second(question.profile, 1).watts)
    if used < most and counts_devices(question):
        notes.append(
            f"uses {used:,} of {there:,} devices: {question.objective.about} is least with them, of every "
            f"number searched up to {most:,}; a deadline (--limit deadline=...) asks for more"
        )
    elif used < most and used == own_cores(question.profile):
        notes.append(
            f"uses {used:,} of {there:,} devices: the host has {used:,} cores, and ranks that share one wait "
            "for each other (fixed degrees, such as --fix dp=4, may ask for more)"
        )
    elif used < most:
        notes.append(
            f"uses {used:,} of {there:,} devices: with all of them no plan keeps every rule and fits"
        )
    if best.offload_activations and "offload_activations" not in question.space.given:
        notes.append(
            "with all activations on the devices no plan fits or is as fast: those of "
            f"{best.offload_activations} layers of every chunk go to host memory, the best of the few "
            "numbers tried "
            "(--fix offload_activations=N|M tries others)"
        )
    idle = [name for name in ("schedule", "virtual_stages") if name in question.space.given]
    if idle and best.parallel.pp == 1:
        notes.append(f"{' and '.join(idle)}: no effect on the best plan, which has no pipeline (pp 1)")
    if best.job.dtype == "int8" and best.job.phase == "train":
        notes.append(INT8_TRAINING)
    if not question.space.exhaustive:
        notes.append(f"Left out unless fixed (--fix) or --exhaustive: {LEFT_OUT}.")
    return tuple(notes)
