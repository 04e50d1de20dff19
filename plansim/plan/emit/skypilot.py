"""SkyPilot: a task that rents the plan's machines from any cloud and runs plansim on them."""

from __future__ import annotations

from typing import Any

from plansim.files import dump_yaml
from plansim.hardware.profile import Profile
from plansim.plan.emit.base import Emission, Emitter, Hosts, check_backend, hosts_of, portable_files, refuse
from plansim.plan.emit.shell import RUN_PLAN, job_name, torchrun
from plansim.plan.model import Plan
from plansim.workload.model import Model
from plansim.workload.module import ModuleModel

VERSION = "SkyPilot 0.14"
ACCELERATORS = {
    "a100-sxm4-80gb": "A100-80GB",
    "a100-pcie-80gb": "A100-80GB",
    "a100-sxm4-40gb": "A100",
    "a100-pcie-40gb": "A100",
    "a10g-24gb": "A10G",
    "h100-sxm5-80gb": "H100",
    "h100-pcie-80gb": "H100",
    "h200-sxm-141gb": "H200",
    "b200-sxm-180gb": "B200",
    "b300-sxm-288gb": "B300",
    "gb200-186gb": "GB200",
    "gh200-96gb": "GH200",
    "l4-24gb": "L4",
    "l40s-48gb": "L40S",
    "mi300x-192gb": "MI300X",
    "rtx-4090-24gb": "RTX4090",
    "rtx-5090-32gb": "RTX5090",
    "t4-16gb": "T4",
    "p100-16gb": "P100",
    "v100-sxm2-16gb": "V100",
    "v100-sxm2-32gb": "V100-32GB",
}
"""SkyPilot's accelerator name by our device id."""


def write(plan: Plan, model: Model | ModuleModel, profile: Profile) -> Emission:
    """Return a SkyPilot task."""
    check_backend("plansim", plan, model)
    hosts = hosts_of(plan, profile, "skypilot")
    task = {
        "name": job_name(plan),
        "workdir": ".",
        "num_nodes": hosts.nodes,
        "resources": _resources(profile, hosts),
        "setup": "pip install 'plansim[execute]'\n",
        "run": _run(hosts),
    }
    return Emission(
        files={"task.yaml": dump_yaml(task), **portable_files(plan, model, profile)},
        command=f"sky launch -c {job_name(plan)} task.yaml",
        warnings=(*hosts.warnings, *_machine_warning(profile, hosts)),
    )


def _run(hosts: Hosts) -> str:
    if hosts.nodes == 1:
        return f"{torchrun(hosts, RUN_PLAN)}\n"
    return (
        'export NODE_RANK="$SKYPILOT_NODE_RANK"\n'
        'MASTER_ADDR=$(head -n 1 <<< "$SKYPILOT_NODE_IPS")\n'
        f"export MASTER_ADDR\n{torchrun(hosts, RUN_PLAN)}\n"
    )


def _resources(profile: Profile, hosts: Hosts) -> dict[str, Any]:
    if hosts.kind == "cpu":
        return {"cpus": f"{max(profile.host.cores, hosts.processes)}+"}
    device = profile.device.id
    if device not in ACCELERATORS:
        refuse(
            "skypilot",
            [f"device {device} has no accelerator name there (known: {', '.join(sorted(ACCELERATORS))})"],
        )
    resources: dict[str, Any] = {"accelerators": f"{ACCELERATORS[device]}:{hosts.processes}"}
    if hosts.nodes > 1:
        resources["network_tier"] = "best"
    return resources


def _machine_warning(profile: Profile, hosts: Hosts) -> tuple[str, ...]:
    if hosts.kind == "cpu":
        return ()
    return (
        f"SkyPilot picks any machine with that accelerator: check that its links match {profile.name} "
        "(add infra: to fix the cloud, instance_type: to fix the machine)",
    )


SKYPILOT = Emitter(
    name="skypilot", version=VERSION, summary="a cloud task that runs plansim", write=write, runs="plansim"
)
