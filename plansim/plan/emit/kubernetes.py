"""Kubernetes: a Kubeflow TrainJob; its torch runtime sets the rendezvous, the job carries the plan itself."""

from __future__ import annotations

from plansim.files import dump_yaml
from plansim.hardware.profile import Profile
from plansim.plan.emit.base import Emission, Emitter, Hosts, check_backend, hosts_of, portable_files, refuse
from plansim.plan.emit.shell import heredoc, job_name
from plansim.plan.model import Plan
from plansim.workload.model import Model
from plansim.workload.module import ModuleModel

VERSION = "Kubeflow Trainer 2.3 (trainer.kubeflow.org/v1alpha1)"
IMAGE = "docker.io/pytorch/pytorch:2.9.1-cuda12.8-cudnn9-runtime"
RESOURCES = {"nvidia": "nvidia.com/gpu", "amd": "amd.com/gpu", "intel": "gpu.intel.com/i915"}
"""Device-plugin resource by vendor."""


def write(plan: Plan, model: Model | ModuleModel, profile: Profile) -> Emission:
    """Return a TrainJob manifest."""
    check_backend("plansim", plan, model)
    hosts = hosts_of(plan, profile, "kubernetes")
    manifest = {
        "apiVersion": "trainer.kubeflow.org/v1alpha1",
        "kind": "TrainJob",
        "metadata": {"name": job_name(plan)},
        "spec": {
            "runtimeRef": {
                "apiGroup": "trainer.kubeflow.org",
                "kind": "ClusterTrainingRuntime",
                "name": "torch-distributed",
            },
            "trainer": {
                "image": IMAGE,
                "numNodes": hosts.nodes,
                "numProcPerNode": hosts.processes,
                "command": ["bash", "-c"],
                "args": [_script(plan, model, profile)],
                "resourcesPerNode": _resources(profile, hosts),
            },
        },
    }
    return Emission(
        files={"trainjob.yaml": dump_yaml(manifest), **portable_files(plan, model, profile)},
        command="kubectl apply -f trainjob.yaml",
        warnings=(
            *hosts.warnings,
            f"the image {IMAGE} installs plansim when it starts; use an image that holds it to start faster",
            *(
                ()
                if hosts.nodes == 1
                else ("pods are numbered by their index; ask for close nodes with a pod group",)
            ),
        ),
    )


def _script(plan: Plan, model: Model | ModuleModel, profile: Profile) -> str:
    """Return what each pod runs; torchrun reads the rendezvous from the runtime's ``PET_`` variables."""
    files = "".join(heredoc(name, text) for name, text in portable_files(plan, model, profile).items())
    return (
        "set -euo pipefail\n"
        "command -v plansim > /dev/null || pip install --quiet 'plansim[execute]'\n"
        f"mkdir -p /tmp/plan && cd /tmp/plan\n{files}"
        "exec torchrun --no-python plansim run plan.yaml\n"
    )


def _resources(profile: Profile, hosts: Hosts) -> dict[str, dict[str, str]]:
    if hosts.kind == "cpu":
        amounts = {"cpu": str(max(profile.host.cores, hosts.processes))}
    else:
        vendor = profile.device.vendor.lower()
        if vendor not in RESOURCES:
            refuse(
                "kubernetes",
                [f"no device-plugin resource is known for vendor '{vendor}' (known: {', '.join(RESOURCES)})"],
            )
        amounts = {RESOURCES[vendor]: str(hosts.processes)}
    return {"limits": amounts, "requests": dict(amounts)}


KUBERNETES = Emitter(
    name="kubernetes",
    version=VERSION,
    summary="a Kubeflow TrainJob that runs plansim",
    write=write,
    runs="plansim",
)
