"""Slurm: one torchrun per node, its ranks numbered by the node's place in the allocation."""

from __future__ import annotations

from plansim.hardware.profile import Profile
from plansim.plan.emit.base import Emission, Emitter, Hosts, check_backend, hosts_of, portable_files
from plansim.plan.emit.shell import RUN_PLAN, header, job_name, torchrun
from plansim.plan.model import Plan
from plansim.workload.model import Model
from plansim.workload.module import ModuleModel

VERSION = "bash (Slurm options as its manual names them; not submitted)"


def write(plan: Plan, model: Model | ModuleModel, profile: Profile) -> Emission:
    """Return a batch script for ``sbatch``."""
    check_backend("plansim", plan, model)
    hosts = hosts_of(plan, profile, "slurm")
    lines = [f"#SBATCH --{option}" for option in _options(plan, profile, hosts)]
    start = torchrun(hosts, RUN_PLAN)
    script = (
        "#!/bin/bash\n"
        + header(plan, profile, "Slurm")
        + "\n".join(lines)
        + "\nset -euo pipefail\n"
        + 'MASTER_ADDR=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)\n'
        + "MASTER_PORT=$((20000 + SLURM_JOB_ID % 20000))\n"
        + "export MASTER_ADDR MASTER_PORT\n"
        + f"srun --kill-on-bad-exit=1 bash -c 'NODE_RANK=$SLURM_NODEID; exec {start}'\n"
    )
    return Emission(
        files={"job.sbatch": script, **portable_files(plan, model, profile)},
        command="sbatch job.sbatch",
        warnings=(*hosts.warnings, *_placement_warning(hosts)),
    )


def _options(plan: Plan, profile: Profile, hosts: Hosts) -> list[str]:
    options = [f"job-name={job_name(plan)}", f"nodes={hosts.nodes}", "ntasks-per-node=1", "exclusive"]
    if hosts.kind == "gpu":
        options.append(f"gpus-per-node={hosts.processes}")
    options += [f"cpus-per-task={max(profile.host.cores, 1)}", "output=%x-%j.out"]
    return options


def _placement_warning(hosts: Hosts) -> tuple[str, ...]:
    if hosts.nodes == 1:
        return ()
    return (
        "nodes are numbered as Slurm allocates them; add --switches or a topology plugin to keep them close",
    )


SLURM = Emitter(
    name="slurm", version=VERSION, summary="a batch script that runs plansim", write=write, runs="plansim"
)
