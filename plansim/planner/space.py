"""The space of plans: which values every choice may take, after what is fixed, forbidden or refused.

The whole space is what `CHOICES`, `MICROBATCHES`, `VIRTUAL_STAGES` and the divisors of the number of devices
span. Searched by default is the part that may win in practice (`LEFT_OUT` says what is not and why); naming a
choice in `fix`, or `exhaustive`, brings all its values back.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from plansim.errors import InputError, UnknownNameError
from plansim.hardware.profile import Profile
from plansim.hardware.stack import find_stack
from plansim.plan.backends import BACKENDS, Backend
from plansim.plan.backends.base import schedule_key
from plansim.plan.model import Job
from plansim.plan.modules import modules_in
from plansim.plan.recompute import canonical_mode, modules_of_mode, names_modules
from plansim.planner.choices import CHOICES, PLACEMENTS, check_value, named
from plansim.schedules import SCHEDULES
from plansim.workload.model import ATTENTION_FAMILIES, Model

VIRTUAL_STAGES = (2, 3, 4, 5, 6, 8, 10, 12, 16, 20)
MICROBATCHES = (1, 2, 3, 4, 6, 8, 12, 16, 32, 64)
USUAL_MICROBATCHES = (1, 2, 3, 4, 6, 8, 16)
SHORT_TOKENS = 16_384
"""Up to so many tokens every divisor of the batch is a microbatch too: short samples need large ones."""

SHORTEST_PIECE = 1024
"""Tokens of a sequence that context parallelism leaves on a rank, at least, unless `cp` is fixed."""

MOST_MODES = 12
"""Recompute modes that one search compares, at most."""

FEW_DEVICES = 16
"""Up to here uneven virtual stages and shorter pieces are searched as well: they cost little there."""

BACKEND_STACKS = {"torchtitan": "torchtitan", "megatron": "megatron-core-26.06", "deepspeed": "deepspeed"}
"""The software stack whose costs a runtime has; the others follow from the plan."""

EXPERT_STACKS = {"megatron": ("megatron-core-captured", "megatron-core-26.02")}
"""The same for mixtures of experts: in block-scaled types whole steps are captured, else parts of layers."""

BLOCK_SCALED = ("fp8", "fp4")
"""Types that devices with 4-bit products scale block by block in hardware."""

USUAL: dict[str, tuple[Any, ...]] = {
    "schedule": tuple(name for name in SCHEDULES if name not in ("gpipe", "zb-h2")),
    "attention": ("flash",),
    "aggregation": ("all_reduce",),
    "overlap.gradients": (True,),
    "overlap.parameters": (True,),
}
"""What is searched by default of the choices that have a value which seldom or never wins."""

LEFT_OUT = (
    "gpipe (1f1b takes as long and holds less), "
    "zb-h2 (zb-h1 or zbv hold half as much), "
    "parameter servers, sharding within nodes below ZeRO-3, whole experts (etp 1) without ep, "
    "experts cut by tp where tp x ep ranks may hold whole ones, "
    "microbatches other than 1, 2, 3, 4, 6, 8, 16 and (up to 16,384 tokens) divisors of the batch; "
    "on more than 16 devices virtual stages that do not "
    "divide a rank's layers, and context parallelism below 1,024 tokens a rank; all recomputation but the "
    "fastest that fits, and that of fused attention's core; offload and ZeRO-2 where the same plan fits well "
    "without (10 % of memory to spare); activations in host memory unless nothing fits without or the host's "
    "link is faster than PCIe; "
    "unfused attention and overlap switched off unless they speed up the best plan"
)
"""The cut, in words."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Space:
    """What every choice may be.

    Attributes
    ----------
    values : mapping of str to tuple
        Allowed values by choice; degrees, `microbatch` and `virtual_stages` are free where they are missing.
    forbidden : mapping of str to tuple
        Values that are taken out of free numbers.
    given : frozenset of str
        Choices that someone named: nothing of them is left out.
    exhaustive : bool
        Search the whole space: nothing is left out because it seldom wins.
    """

    values: Mapping[str, tuple[Any, ...]]
    forbidden: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)
    backend: Backend | None = None
    stack: str | None = None
    given: frozenset[str] = frozenset()
    exhaustive: bool = False

    def cut(self, name: str) -> bool:
        """Whether values of `name` that seldom win are left out."""
        return not self.exhaustive and name not in self.given

    def allows(self, name: str, value: object) -> bool:
        """Whether `value` may be chosen for `name`."""
        if name in self.values and value not in self.values[name]:
            return False
        return value not in self.forbidden.get(name, ())

    def of(self, name: str, free: Iterable[Any] = ()) -> tuple[Any, ...]:
        """Return the allowed values in order: those written down, else those of `free`."""
        given = self.values.get(name)
        return tuple(v for v in (free if given is None else given) if v not in self.forbidden.get(name, ()))

    def may_offload(self, profile: Profile) -> bool:
        """Whether activations can be sent to host memory here, and nobody said of how many layers."""
        if "offload_activations" in self.given or profile.device.kind == "cpu":
            return False
        return self.backend is None or self.backend.offload_activations != "never"

    def offloading(self) -> Space:
        """Return the space of plans that do: some runtimes keep them there in some recompute modes only."""
        modes = self.of("recompute")
        if self.backend is not None:
            modes = tuple(m for m in modes if self.backend.offloads_with(m)) or modes
        return replace(self, values={**self.values, "recompute": modes})

    def fixed(self, name: str) -> bool:
        """Whether someone chose for us."""
        return name in self.values and len(self.values[name]) == 1


def space_of(
    model: Model,
    profile: Profile,
    job: Job,
    *,
    fix: Mapping[str, Any] | None = None,
    forbid: Mapping[str, Iterable[Any]] | None = None,
    backend: str | None = None,
    exhaustive: bool = False,
) -> Space:
    """Return the space for a model on a cluster.

    Parameters
    ----------
    fix : mapping of str to value
        Choice to its value (a tuple allows several).
    forbid : mapping of str to values
        Values to leave out.
    backend : str, optional
        A name in `plansim.plan.backends.BACKENDS`, whose rules the plans keep.
    exhaustive : bool
        Leave nothing out of the whole space.

    Raises
    ------
    InputError
        When a name is unknown, or what is fixed contradicts itself or the cluster.
    """
    fixed = named(fix)
    forbidden = named({name: tuple(values) for name, values in (forbid or {}).items()})
    runtime = _backend(backend)
    values = {name: _sensible(name, listed, model, profile) for name, listed in CHOICES.items()}
    if runtime is not None:
        values = {name: _allowed(runtime, name, listed) for name, listed in values.items()}
        fixed = {name: _runnable(runtime, name, given) for name, given in fixed.items()}
    if not exhaustive:
        values = {name: _usual(name, listed, forbidden.get(name, ())) for name, listed in values.items()}
    stack = _stack(backend or "", model, profile, job)
    if not exhaustive and fixed.get("attention", values["attention"]) == ("flash",):
        values["recompute"] = _without_core(
            values["recompute"], forbidden.get("recompute", ()), profile, stack
        )
    values.update(fixed)
    values["schedule"] = tuple(schedule_key(str(name)) for name in values["schedule"])
    space = Space(
        values=values,
        forbidden=forbidden,
        backend=runtime,
        stack=stack,
        given=frozenset(fixed),
        exhaustive=exhaustive,
    )
    _check(space, fixed, model, profile)
    return space


def _stack(backend: str, model: Model, profile: Profile, job: Job) -> str | None:
    """Return the software stack that a runtime's usual recipe for a model is."""
    if model.family == "moe" and backend in EXPERT_STACKS:
        block_scaled = job.dtype in BLOCK_SCALED and "fp4" in profile.device.peak_flop_per_s
        return EXPERT_STACKS[backend][not block_scaled]
    return BACKEND_STACKS.get(backend)


def widened(space: Space, names: Iterable[str]) -> Space:
    """Return the space with every value of some choices, as far as they were neither named nor refused."""
    free = [n for n in names if n not in space.given]
    listed = {n: _allowed(space.backend, n, CHOICES[n]) if space.backend else CHOICES[n] for n in free}
    return replace(space, values={**space.values, **listed}, given=space.given | set(free))


def _backend(name: str | None) -> Backend | None:
    if name is None:
        return None
    if name not in BACKENDS:
        raise UnknownNameError("backend", name, BACKENDS)
    return BACKENDS[name]


def _allowed(runtime: Backend, name: str, listed: tuple[Any, ...]) -> tuple[Any, ...]:
    """Return what a runtime accepts of a list; orders of axes are judged plan by plan."""
    if name == "batch_shares":
        return tuple(v for v in listed if v == "even" or runtime.batch_shares)
    if name == "offload_activations":
        return tuple(v for v in listed if not v or runtime.offload_activations != "never")
    if name == "recompute_per_stage":
        return tuple(v for v in listed if not v or runtime.recompute_per_stage)
    allowed = runtime.allows.get(name)
    if allowed is None or name == "placement":
        return listed
    if name == "recompute":
        return tuple(v for v in listed if runtime.recomputes(v))
    return tuple(v for v in listed if v in allowed)


def _runnable(runtime: Backend, name: str, given: tuple[Any, ...]) -> tuple[Any, ...]:
    """Return what a runtime can run of the values someone chose.

    Raises
    ------
    InputError
        When it can run none of them.
    """
    if name not in CHOICES:
        return given  # degrees are judged together
    spelled = tuple(schedule_key(str(v)) for v in given) if name == "schedule" else given
    found = _allowed(runtime, name, spelled)
    if not found:
        known = _allowed(runtime, name, CHOICES[name])
        remedy = runtime.remedies.get(name) or f"use {' or '.join(map(_spelled, known))}"
        raise InputError(f"--fix {name}={'|'.join(map(_spelled, given))}: {runtime.name} has none; {remedy}")
    return found


def _spelled(value: object) -> str:
    """Return a value as `--fix` takes it."""
    return {"True": "on", "False": "off"}.get(str(value), str(value))


def _usual(name: str, listed: tuple[Any, ...], forbidden: tuple[Any, ...]) -> tuple[Any, ...]:
    """Return the values searched by default; all of them where none of those may be chosen."""
    usual = tuple(v for v in listed if v in USUAL.get(name, listed))
    return usual if any(v not in forbidden for v in usual) else listed


def _sensible(name: str, listed: tuple[Any, ...], model: Model, profile: Profile) -> tuple[Any, ...]:
    """Return a list without what cannot apply to this model or cluster."""
    if name == "attention" and model.family not in ATTENTION_FAMILIES:
        return ("flash",)
    if name == "etp" and model.moe is None:
        return ("tp",)
    if name == "recompute" and model.family not in ATTENTION_FAMILIES:
        return ("none", "full")
    if name == "recompute":
        return (*listed[:2], *module_sets(model, profile), *listed[2:])
    if name == "batch_shares" and not profile.mixed:
        return ("even",)
    if name == "offload" and profile.device.kind == "cpu":
        return (False,)
    if name == "placement" and len(profile.fabric) == 1 and not profile.fabric[0].is_grid:
        return PLACEMENTS[:1]
    return listed


def _without_core(
    listed: tuple[Any, ...], forbidden: tuple[Any, ...], profile: Profile, stack: str | None
) -> tuple[Any, ...]:
    """Return recompute modes without the core of fused attention, which saves four bytes a head and token."""
    if profile.device.kind == "cpu" or (stack and find_stack(stack).selective != "core"):
        return listed
    kept = tuple(v for v in listed if v != "selective")
    return kept if any(v not in forbidden for v in kept) else listed


def module_sets(model: Model, profile: Profile) -> tuple[str, ...]:
    """Return the sets of modules that are worth repeating in a model; smaller ones save little beside them.

    Each saves much for what it repeats: norms and activations of experts cost little, projections from a
    latent width are small beside what they make, and an MLP holds most of a dense layer but has no part in
    attention over long sequences. On a CPU times are measured, block by block, and of whole layers only.
    """
    if profile.device.kind == "cpu":
        return ()
    light = [*(["moe_act"] if model.moe else []), *(["mla_up_proj"] if model.mla else [])]
    return (canonical_mode("+".join((*light, "layernorm"))),) if light else ("mlp",)


def _check(space: Space, fixed: Mapping[str, tuple[Any, ...]], model: Model, profile: Profile) -> None:
    """Refuse what contradicts itself before anything is searched."""
    for name in fixed:
        if not space.of(name):
            raise InputError(f"--fix {name}: every value given is forbidden as well")
        for value in fixed[name]:
            check_value(name, value)
    for name, listed in space.values.items():
        if not [v for v in listed if v not in space.forbidden.get(name, ())]:
            raise InputError(f"nothing is left to choose for {name}: {_left_out(space, name)}")
    _check_modes(space.of("recompute"), model, space.backend)
    if any(fixed.get("offload_activations", ())) and profile.device.kind == "cpu":
        raise InputError(
            f"--fix offload_activations: the activations of {profile.name} are in host memory already"
        )
    if fixed.get("etp") == (1,) and model.moe is None:
        raise InputError(f"--fix etp=1: {model.name} has no experts")
    if fixed.get("batch_shares") == ("sized",) and not profile.mixed:
        raise InputError(f"--fix batch_shares=sized: the devices of {profile.name} are all alike")
    smallest = 1
    for name in ("dp", "tp", "pp", "cp"):
        if name in fixed:
            smallest *= min(fixed[name])
    if smallest > profile.num_devices and profile.device.kind != "cpu":
        given = " x ".join(f"{n} {min(fixed[n])}" for n in ("dp", "tp", "pp", "cp") if n in fixed)
        raise InputError(f"--fix {given} needs {smallest} devices, {profile.name} has {profile.num_devices}")


def _check_modes(modes: tuple[str, ...], model: Model, backend: Backend | None) -> None:
    """Refuse modules that a model has not or a runtime fuses, and more modes than a search compares."""
    fused = backend.norm_reasons(modes, model) if backend else []
    if fused:
        raise InputError(f"--fix {fused[0]}")
    if len(modes) >= MOST_MODES:
        raise InputError(f"--fix recompute: {len(modes)} modes; at most {MOST_MODES - 1} are compared")
    there = modules_in(model)
    for mode in filter(names_modules, modes):
        absent = [name for name in modules_of_mode(mode) if name not in there]
        if absent:
            known = f"it has {', '.join(there)}" if there else "use none or full"
            raise InputError(
                f"--fix recompute={mode}: {model.name} has no {' and no '.join(absent)}; {known}"
            )


def _left_out(space: Space, name: str) -> str:
    who = f"backend {space.backend.name} and --forbid" if space.backend else "--forbid"
    return f"{who} leave none of {', '.join(map(str, CHOICES.get(name, ())))}"
