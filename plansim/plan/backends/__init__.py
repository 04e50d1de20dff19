"""Runtimes that can execute a plan, each a file of rules: what the planner's ``--backend`` keeps to."""

from plansim.plan.backends.base import CHOICES, FEATURES, Backend, Degrees, Pair, Relation, degrees_of
from plansim.plan.backends.deepspeed import DEEPSPEED
from plansim.plan.backends.megatron import MEGATRON
from plansim.plan.backends.plansim import PLANSIM
from plansim.plan.backends.torchtitan import TORCHTITAN

BACKENDS: dict[str, Backend] = {
    "plansim": PLANSIM,
    "torchtitan": TORCHTITAN,
    "megatron": MEGATRON,
    "deepspeed": DEEPSPEED,
}

__all__ = ["BACKENDS", "CHOICES", "FEATURES", "Backend", "Degrees", "Pair", "Relation", "degrees_of"]
