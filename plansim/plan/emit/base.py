"""What emitting a plan gives, and what every emitter needs: hosts, portable plan files, refusals."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

from plansim.errors import PlanError
from plansim.hardware.profile import Profile
from plansim.hardware.write import dump_profile
from plansim.plan.backends import BACKENDS
from plansim.plan.model import Plan
from plansim.plan.read import dump_plan
from plansim.workload.model import Model
from plansim.workload.module import ModuleModel
from plansim.workload.read import dump_model


@dataclass(frozen=True, slots=True, kw_only=True)
class Emission:
    """Files that start a plan elsewhere.

    Attributes
    ----------
    files : mapping of str to str
        Text by file name, all for one folder.
    command : str
        What to type in that folder.
    warnings : tuple of str
        What the target does differently from the plan, each with what to do about it.
    """

    files: Mapping[str, str]
    command: str
    warnings: tuple[str, ...] = ()


Write = Callable[[Plan, Model | ModuleModel, Profile], Emission]


@dataclass(frozen=True, slots=True, kw_only=True)
class Emitter:
    """One target of ``plansim emit``.

    Attributes
    ----------
    version : str
        Release of the target whose own parser the files were checked with.
    summary : str
        What is written, in a few words.
    runs : str
        The backend (a key of `BACKENDS`) that executes the plan there, or empty.
    """

    name: str
    version: str
    summary: str
    write: Write
    runs: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Hosts:
    """Machines a job takes: equal numbers of processes on each."""

    nodes: int
    processes: int
    kind: str
    warnings: tuple[str, ...] = field(default=())


def refuse(target: str, reasons: list[str]) -> None:
    """Raise one error that lists every reason, if there is any."""
    if reasons:
        listed = "\n".join(f"  - {reason}" for reason in reasons)
        raise PlanError(f"{target} cannot express this plan:\n{listed}")


def check_backend(backend: str, plan: Plan, model: Model | ModuleModel) -> None:
    """Raise when the backend's rules refuse the plan. A model given as code meets them when it is built."""
    if isinstance(model, Model):
        refuse(backend, BACKENDS[backend].check(plan, model))


def shape_needed(target: str, model: Model | ModuleModel) -> Model:
    """Return the model, or raise when it is Python code of unknown shape."""
    if isinstance(model, Model):
        return model
    refuse(
        target,
        [f"the model is Python code ({model.factory}); use a model file, or a target that runs plansim"],
    )
    raise AssertionError(target)


def hosts_of(plan: Plan, profile: Profile, target: str) -> Hosts:
    """Return the machines the plan's ranks fill, in rank order.

    Raises
    ------
    PlanError
        When there are fewer devices than ranks, or no equal split over the nodes.
    """
    world, per_node = plan.parallel.world_size, profile.devices_per_node
    kind = profile.device.kind
    if kind == "cpu":
        per_node = max(per_node, -(-world // profile.num_nodes))  # ranks may share cores
    elif world > profile.num_devices:
        given = f"{world} ranks on {profile.num_devices} devices of {profile.name}"
        refuse(target, [f"{given}; use fewer ranks or more nodes"])
    if kind not in ("gpu", "cpu"):
        refuse(target, [f"{profile.device.id} is of kind {kind}; torch starts ranks on GPUs and CPUs"])
    if len({group.devices for group in profile.groups}) > 1 and world > per_node:
        refuse(target, ["nodes with different numbers of devices; use a profile with one kind of node"])
    if world <= per_node:
        return Hosts(nodes=1, processes=world, kind=kind)
    processes = max(n for n in range(1, per_node + 1) if world % n == 0)
    nodes = world // processes
    if nodes > profile.num_nodes:
        refuse(
            target,
            [f"{world} ranks in equal parts need {nodes} nodes, {profile.name} has {profile.num_nodes}"],
        )
    return Hosts(nodes=nodes, processes=processes, kind=kind, warnings=_idle(world, processes, per_node))


def gpus_needed(target: str, profile: Profile) -> None:
    """Raise when the profile's devices are not GPUs."""
    if profile.device.kind != "gpu":
        refuse(target, [f"it runs on GPUs, {profile.name} has {profile.device.id}; use torchrun"])


def _idle(world: int, processes: int, per_node: int) -> tuple[str, ...]:
    if processes == per_node:
        return ()
    return (
        f"{world} ranks do not fill nodes of {per_node} devices: each node starts {processes}, "
        f"{per_node - processes} of its devices stay idle",
    )


def portable_files(plan: Plan, model: Model | ModuleModel, profile: Profile) -> dict[str, str]:
    """Return plan, model and profile as files that need nothing else: the plan names the two beside it."""
    files = {"profile.yaml": dump_profile(profile)}
    if isinstance(model, ModuleModel):
        return {"plan.yaml": dump_plan(replace(plan, profile="profile.yaml")), **files}
    here = replace(plan, model="model.yaml", profile="profile.yaml")
    return {"plan.yaml": dump_plan(here), "model.yaml": dump_model(model), **files}


def describe(plan: Plan) -> str:
    """Return the degrees of a plan in a line.

    Examples
    --------
    >>> from plansim.plan.model import Job, Parallel
    >>> job = Job(global_batch=64, seq_len=1024)
    >>> describe(Plan(model="gpt2-xl", profile="a100x8", job=job, parallel=Parallel(dp=2, tp=4)))
    'gpt2-xl: dp 2, tp 4, zero_stage 0, microbatch 1 x 32, global_batch 64, seq_len 1024, bf16'
    """
    p = plan.parallel
    degrees = [f"{axis} {getattr(p, axis)}" for axis in ("dp", "tp", "pp", "cp") if getattr(p, axis) > 1]
    degrees += p.expert_degrees
    if p.pp > 1:
        degrees.append(p.schedule)
    shares = p.batch_shares
    count = f"{min(shares)} to {max(shares)} by replica" if shares else str(plan.num_microbatches)
    batch = f"microbatch {p.microbatch} x {count}, global_batch {plan.job.global_batch}"
    job = f"seq_len {plan.job.seq_len}, {plan.job.dtype}"
    return f"{plan.model}: {', '.join([*degrees, f'zero_stage {p.zero_stage}', batch, job])}"


def notes(emitter: Emitter, plan: Plan, emission: Emission) -> str:
    """Return the text that goes with the files: how to start, and what differs from the plan."""
    differs = "\n".join(f"- {warning}" for warning in emission.warnings) or "- nothing"
    return (
        f"# {emitter.name}: {emitter.summary}\n\n{describe(plan)}\n\nChecked against {emitter.version}.\n\n"
        f"## Start\n\n```sh\n{emission.command}\n```\n\n## Differs from the plan\n\n{differs}\n"
    )
