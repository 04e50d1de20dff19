"""Emitters: a plan as files another tool starts from. What a target cannot express is refused or listed."""

from plansim.errors import UnknownNameError
from plansim.hardware.profile import Profile
from plansim.plan.backends import BACKENDS
from plansim.plan.backends.base import SAME_SHARES
from plansim.plan.emit.accelerate import ACCELERATE
from plansim.plan.emit.base import Emission, Emitter, notes, refuse
from plansim.plan.emit.chakra import CHAKRA
from plansim.plan.emit.deepspeed import DEEPSPEED
from plansim.plan.emit.kubernetes import KUBERNETES
from plansim.plan.emit.megatron import MEGATRON
from plansim.plan.emit.skypilot import SKYPILOT
from plansim.plan.emit.slurm import SLURM
from plansim.plan.emit.torchrun import TORCHRUN
from plansim.plan.emit.torchtitan import TORCHTITAN
from plansim.plan.model import Plan
from plansim.plan.rules import check_plan, require
from plansim.workload.model import Model
from plansim.workload.module import ModuleModel

EMITTERS: dict[str, Emitter] = {
    "torchrun": TORCHRUN,
    "torchtitan": TORCHTITAN,
    "megatron": MEGATRON,
    "deepspeed": DEEPSPEED,
    "accelerate": ACCELERATE,
    "slurm": SLURM,
    "kubernetes": KUBERNETES,
    "skypilot": SKYPILOT,
    "chakra": CHAKRA,
}


def emission(plan: Plan, model: Model | ModuleModel, profile: Profile, target: str) -> Emission:
    """Return the files for one target with the command that starts them and what they do differently."""
    if target not in EMITTERS:
        raise UnknownNameError("emit target", target, EMITTERS)
    if isinstance(model, Model) and model.family == "module":
        require(check_plan(plan, model, profile))
        model = ModuleModel(factory=model.name)  # traced from code: only code can build it again
    if isinstance(model, Model):
        require(check_plan(plan, model, profile))
    runtime = BACKENDS.get(EMITTERS[target].runs)
    if plan.parallel.batch_shares is not None and not (runtime and runtime.batch_shares):
        refuse(target, [f"batch_shares: it gives every replica as many microbatches; {SAME_SHARES}"])
    return EMITTERS[target].write(plan, model, profile)


def emit(plan: Plan, model: Model | ModuleModel, profile: Profile, target: str) -> dict[str, str]:
    """Return the text of every file for one target by name; ``NOTES.md`` has the command and the differences.

    Raises
    ------
    PlanError
        Lists everything the target cannot express, each with a remedy.
    """
    made = emission(plan, model, profile, target)
    return {**made.files, "NOTES.md": notes(EMITTERS[target], plan, made)}


__all__ = ["EMITTERS", "Emission", "Emitter", "emission", "emit", "notes"]
