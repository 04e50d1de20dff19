"""torchrun: plansim's own executor, started by hand on every node."""

from __future__ import annotations

from plansim.hardware.profile import Profile
from plansim.plan.emit.base import Emission, Emitter, check_backend, hosts_of, portable_files
from plansim.plan.emit.shell import RUN_PLAN, launch_script, start_command
from plansim.plan.model import Plan
from plansim.workload.model import Model
from plansim.workload.module import ModuleModel

VERSION = "torch 2.13"


def write(plan: Plan, model: Model | ModuleModel, profile: Profile) -> Emission:
    """Return a script that starts the plan's ranks of one node with torchrun."""
    check_backend("plansim", plan, model)
    hosts = hosts_of(plan, profile, "torchrun")
    script = launch_script(plan, profile, hosts, VERSION, RUN_PLAN)
    return Emission(
        files={"launch.sh": script, **portable_files(plan, model, profile)},
        command=start_command(hosts, "launch.sh"),
        warnings=hosts.warnings,
    )


TORCHRUN = Emitter(
    name="torchrun", version=VERSION, summary="plansim's executor under torchrun", write=write, runs="plansim"
)
