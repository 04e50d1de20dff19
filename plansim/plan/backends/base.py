"""What a runtime can execute, as data: allowed choices, relations between degrees, pairs it refuses."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from plansim.plan.model import Plan
from plansim.plan.recompute import MODULE_NAMES, RECOMPUTE_MODES, modules_of_mode, names_modules, parse_mode
from plansim.schedules.find import ALIASES
from plansim.workload.model import ATTENTION_FAMILIES, PREDICTED_ONLY, Model
from plansim.workload.totals import pipeline_layers

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Mask = bool | NDArray[np.bool_]

Degrees = Mapping[str, Any]
"""Integers of a plan by name, each a number or an array of one shape.

Of the plan: ``dp tp pp cp ep etp zero_stage zero_group microbatch virtual_stages num_microbatches seq_len
offload_activations`` and the booleans ``sequence_parallel uneven``. Of the model, a plain value each:
``heads kv_heads layers experts``, ``tied`` and ``pooled`` (its head takes a mean over the sequence, or a part
of it). Where the plan leaves them out, `etp` is `tp` and `zero_group` is ``dp * cp``; `heads` and `experts`
are 0 where there are none.
"""

FEATURES: dict[str, Callable[[Degrees], Mask]] = {
    "dp": lambda d: d["dp"] > 1,
    "tp": lambda d: d["tp"] > 1,
    "pp": lambda d: d["pp"] > 1,
    "cp": lambda d: d["cp"] > 1,
    "ep": lambda d: d["ep"] > 1,
    "cut experts": lambda d: (d["tp"] > 1) & (d["etp"] == d["tp"]) & (d["experts"] > 0),
    "zero 0": lambda d: d["zero_stage"] == 0,
    "zero 1": lambda d: d["zero_stage"] == 1,
    "zero 2": lambda d: d["zero_stage"] == 2,
    "zero 3": lambda d: d["zero_stage"] == 3,
    "hybrid shard": lambda d: (d["zero_stage"] > 0) & (d["zero_group"] != d["dp"] * d["cp"]),
    "virtual stages": lambda d: d["virtual_stages"] > 1,
    "uneven stages": lambda d: d["uneven"],
    "sequence parallel": lambda d: d["sequence_parallel"],
    "tied embeddings": lambda d: d["tied"],
    "pooled sequence": lambda d: d["pooled"],
    "offloaded activations": lambda d: d["offload_activations"] > 0,
}
"""What a pair may name, by its test on `Degrees` (element-wise on arrays)."""

CHOICES: dict[str, Callable[[Plan], Any]] = {
    "schedule": lambda p: schedule_key(p.parallel.schedule) if p.parallel.pp > 1 else None,
    "zero_stage": lambda p: p.parallel.zero_stage,
    "etp": lambda p: p.parallel.expert_tp if p.parallel.folds_experts else "tp",
    "recompute": lambda p: p.recompute,
    "attention": lambda p: p.attention,
    "aggregation": lambda p: p.aggregation,
    "offload": lambda p: p.offload,
    "dtype": lambda p: p.job.dtype,
    "optimizer": lambda p: p.job.optimizer,
    "phase": lambda p: p.job.phase,
    "placement": lambda p: order_of(p),
    "compression.gradients": lambda p: p.compression.gradients.method,
    "compression.parameters": lambda p: p.compression.parameters.method,
    "compression.activations": lambda p: p.compression.activations.method,
    "compression.outer": lambda p: p.compression.outer.method,
    "compression.model": lambda p: p.compression.model.method,
}
"""The choices that `Backend.allows` restricts, by how they are read from a plan (None: does not matter)."""


SAME_SHARES = "plan again with --fix batch_shares=even"
"""What to do where a runtime has no unequal shares."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Relation:
    """A rule between degrees. `broken` gives True, or an array of booleans, where the rule does not hold.

    Attributes
    ----------
    message : str
        What is wrong and what was expected; a format string over `Degrees`.
    remedy : str
        What to change; a format string too.
    """

    name: str
    broken: Callable[[Degrees], Mask]
    message: str
    remedy: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Pair:
    """Features (names in `FEATURES`) that the runtime does not run together."""

    features: tuple[str, ...]
    reason: str
    remedy: str
    schedules: tuple[str, ...] = ()
    """Only with these schedules; empty means with any."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Backend:
    """The rules of one runtime.

    Attributes
    ----------
    name, version : str
        The runtime and the release its rules were read from.
    families : tuple of str
        Model families it can build.
    allows : mapping of str to tuple
        Accepted values of every choice named in `CHOICES`; a name left out is not restricted.
    devices : tuple of str
        Kinds of device that it runs on.
    schedule_names : mapping of str to str
        Its own spelling of our schedule names.
    virtual_stages, hybrid_shard, uneven_stages, batch_shares : bool
        Whether a pipeline rank may hold several chunks, one sharded copy may span fewer ranks than
        ``dp * cp``, stages may hold unequal numbers of layers, and replicas unequal shares of the batch.
    context_parallel, expert_parallel, tensor_parallel, pipeline_parallel : bool
        Whether that degree may exceed 1.
    recompute_per_stage, recompute_layers : bool
        Whether stages may recompute differently, and some layers of a chunk whole (``full:K``).
    recompute_modules : tuple of str
        Modules that it can recompute by name.
    offload_activations : str
        Whether it keeps activations in host memory: ``never``, those of layers that recompute nothing
        (``kept``), the inputs of recomputed layers, all of them (``recomputed``), or of layers that
        recompute no modules (``whole``).
    fused_norms : bool
        Whether norms of dense layers are parts of the products behind them, and cannot be recomputed apart.
    relations : tuple of Relation
    order_relations : tuple of Relation
        Relations on plans whose stages are neighbours inside each replica group (`placement` has pp before
        dp, both more than 1); the degrees are ``dp tp pp cp ep etp``.
    pairs : tuple of Pair
    zero_stages_of : mapping of str to tuple of int
        For compression methods (``"gradients int4"``) that work with some ZeRO stages only, those stages.
    remedies : mapping of str to str
        What to do instead, by choice.
    """

    name: str
    version: str
    families: tuple[str, ...]
    allows: Mapping[str, tuple[Any, ...]]
    devices: tuple[str, ...] = ("gpu", "cpu")
    schedule_names: Mapping[str, str] = field(default_factory=dict)
    tensor_parallel: bool = True
    pipeline_parallel: bool = True
    context_parallel: bool = True
    expert_parallel: bool = True
    virtual_stages: bool = True
    hybrid_shard: bool = True
    uneven_stages: bool = True
    batch_shares: bool = False
    recompute_per_stage: bool = False
    recompute_layers: bool = False
    recompute_modules: tuple[str, ...] = ()
    offload_activations: str = "never"
    fused_norms: bool = False
    relations: tuple[Relation, ...] = ()
    order_relations: tuple[Relation, ...] = ()
    pairs: tuple[Pair, ...] = ()
    zero_stages_of: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    remedies: Mapping[str, str] = field(default_factory=dict)

    def check(self, plan: Plan, model: Model) -> list[str]:
        """Return why this runtime cannot run the plan, each reason with its remedy; empty when it can.

        Examples
        --------
        >>> from plansim.plan.backends import BACKENDS
        >>> from plansim.plan.model import Job, Parallel
        >>> gpt = Model(name="tiny", family="gpt", layers=4, hidden=64, ffn=256, heads=4, kv_heads=4)
        >>> job = Job(global_batch=8, seq_len=128)
        >>> plan = Plan(model="tiny", profile="a100x8", job=job, parallel=Parallel(dp=2, pp=2, zero_stage=2))
        >>> BACKENDS["deepspeed"].check(plan, gpt)
        ['zero 2 with pp: the pipeline engine keeps gradients whole; use zero_stage 0 or 1']
        """
        degrees = degrees_of(plan, model)
        reasons = [
            *self._family_reasons(model),
            *self._choice_reasons(plan, model),
            *self._compression_reasons(plan),
            *self._offload_reasons(plan, model),
        ]
        reasons += [
            f"{r.message.format(**degrees)}; {r.remedy.format(**degrees)}"
            for r in (*self._all_relations(), *(self.order_relations if _pp_inside(plan) else ()))
            if r.broken(degrees)
        ]
        reasons += [
            f"{_pair_name(pair)}: {pair.reason}; {pair.remedy}"
            for pair in self.pairs
            if _pair_holds(pair, degrees, schedule_key(plan.parallel.schedule))
        ]
        return reasons

    def rejections(self, degrees: Degrees, schedule: str = "1f1b") -> dict[str, Mask]:
        """Return, by rule, which entries of arrays of degrees this runtime refuses.

        The counterpart of `check` for a whole search space: same relations and pairs, applied element-wise.
        What is chosen from a list (schedule, recompute, compression) is in `allows` and restricted before.

        Parameters
        ----------
        degrees : mapping of str to array
            As `Degrees` describes.
        schedule : str
            The schedule that all entries share.
        """
        found = {relation.name: relation.broken(degrees) for relation in self._all_relations()}
        for pair in self.pairs:
            found[_pair_name(pair)] = _pair_holds(pair, degrees, schedule_key(schedule))
        return found

    def _all_relations(self) -> tuple[Relation, ...]:
        return (*_switches(self), *self.relations)

    def _family_reasons(self, model: Model) -> list[str]:
        if model.family in self.families:
            return []
        elsewhere = "no runtime builds it" if model.family in PREDICTED_ONLY else "plansim builds all"
        return [
            f"model family {model.family} is not available; "
            f"{self.name} builds {', '.join(self.families)}, {elsewhere}"
        ]

    def _choice_reasons(self, plan: Plan, model: Model) -> list[str]:
        reasons = []
        if plan.parallel.batch_shares is not None and not self.batch_shares:
            reasons.append("batch_shares: every replica runs as many microbatches; " + SAME_SHARES)
        for choice, allowed in self.allows.items():
            given = CHOICES[choice](plan)
            if choice == "recompute":
                modes = given if isinstance(given, tuple) else (given,)
                reasons += self._recompute_reasons(modes, allowed)
                reasons += self.norm_reasons(modes, model)
            elif given is not None and given not in allowed:
                reasons.append(self._refusal(choice, given, allowed))
        return reasons

    def _compression_reasons(self, plan: Plan) -> list[str]:
        stage = plan.parallel.zero_stage
        named = [f"{edge} {method.method}" for edge, method in plan.compression.items()]
        return [
            f"compression.{name} does not work with zero_stage {stage}; "
            f"use zero_stage {' or '.join(str(s) for s in self.zero_stages_of[name])}"
            for name in named
            if stage not in self.zero_stages_of.get(name, (stage,))
        ]

    def offloads_with(self, mode: str) -> bool:
        """Whether it keeps activations in host memory of stages that recompute in a mode."""
        name, _ = parse_mode(mode)
        modes = {"never": (), "kept": ("none",), "recomputed": ("full",), "whole": RECOMPUTE_MODES}
        return name in modes[self.offload_activations]

    def _offload_reasons(self, plan: Plan, model: Model) -> list[str]:
        layers = plan.offload_activations
        modes = {plan.recompute_of(stage) for stage in range(plan.parallel.pp)} if layers else set()
        if modes and self.offload_activations == "never":
            return [f"offload_activations {layers} is not available; use 0, or recompute"]
        reasons = []
        if not all(map(self.offloads_with, modes)):
            known = " or ".join(mode for mode in RECOMPUTE_MODES if self.offloads_with(mode))
            reasons.append(
                f"offload_activations {layers} works with recompute {known}; use that, or 0 layers"
            )
        if layers and self.offload_activations == "recomputed" and layers < pipeline_layers(model):
            reasons.append(
                f"offload_activations {layers}: the inputs of all recomputed layers leave or none do; "
                f"use {pipeline_layers(model)} or 0"
            )
        return reasons

    def recomputes(self, mode: str) -> bool:
        """Whether it can recompute in a mode; which modules a model has is asked elsewhere."""
        name, layers = parse_mode(mode)
        if names_modules(mode):
            return set(modules_of_mode(mode)) <= set(self.recompute_modules)
        return name in self.allows.get("recompute", (name,)) and (self.recompute_layers or not layers)

    def _recompute_reasons(self, given: tuple[str, ...], allowed: tuple[Any, ...]) -> list[str]:
        named = tuple(name for name in MODULE_NAMES[1:] if name in self.recompute_modules)
        reasons = [
            self._refusal("recompute", mode, (*allowed, *named))
            for mode in sorted(set(given))
            if not self.recomputes(mode)
        ]
        if len(set(given)) > 1 and not self.recompute_per_stage:
            reasons.append("recompute differs between stages; use one mode for all of them")
        return reasons

    def norm_reasons(self, given: tuple[str, ...], model: Model) -> list[str]:
        """Return why norms cannot be recomputed where they are parts of the products behind them."""
        named = any(names_modules(mode) and "layernorm" in modules_of_mode(mode) for mode in given)
        if not named or not self.fused_norms or model.moe or model.mla:
            return []
        return [
            "recompute layernorm: the norms of dense layers are fused into the products behind them; "
            "use mlp or full"
        ]

    def _refusal(self, choice: str, given: object, allowed: tuple[Any, ...]) -> str:
        remedy = self.remedies.get(choice) or f"use {' or '.join(_spell(value) for value in allowed)}"
        return f"{choice} {_spell(given)} is not available; {remedy}"


def schedule_key(name: str) -> str:
    """Return the schedule's own name for any of its spellings; a table file stays as it is."""
    if name.endswith(".csv"):
        return name
    key = name.lower().replace("_", "-")
    return ALIASES.get(key, key)


def order_of(plan: Plan) -> tuple[str, ...] | None:
    """Return the axes of the plan that have more than one rank, innermost first; None below two."""
    axes = tuple(axis for axis in plan.placement if getattr(plan.parallel, axis) > 1)
    return axes if len(axes) > 1 else None


def _pp_inside(plan: Plan) -> bool:
    order = order_of(plan) or ()
    return "dp" in order and "pp" in order[: order.index("dp")]


def orders_within(*placements: tuple[str, ...]) -> tuple[tuple[str, ...], ...]:
    """Return every order of two or more axes that agrees with one of the placements."""
    found = set()
    for placement in placements:
        for chosen in range(1 << len(placement)):
            found.add(tuple(axis for i, axis in enumerate(placement) if chosen >> i & 1))
    return tuple(sorted(order for order in found if len(order) > 1))


def degrees_of(plan: Plan, model: Model) -> dict[str, Any]:
    """Return the degrees of one plan."""
    p = plan.parallel
    attention = model.family in ATTENTION_FAMILIES
    share = p.dp * p.microbatch
    return {
        **{name: getattr(p, name) for name in ("dp", "tp", "pp", "cp", "ep", "zero_stage", "microbatch")},
        "etp": p.expert_tp,
        "zero_group": p.zero_group or p.dp * p.cp,
        "virtual_stages": p.virtual_stages,
        "num_microbatches": max(1, plan.job.global_batch // share),
        "sequence_parallel": p.sequence_parallel,
        "offload_activations": plan.offload_activations,
        "uneven": p.stage_layers is not None and len(set(p.stage_layers)) > 1,
        "seq_len": plan.job.seq_len,
        "heads": model.heads if attention else 0,
        "kv_heads": model.kv_heads if attention else 0,
        "layers": pipeline_layers(model),
        "experts": model.moe.experts if model.moe else 0,
        "tied": model.tied_embeddings,
        "pooled": pools_the_sequence(model),
    }


def pools_the_sequence(model: Model) -> bool:
    """Return whether the head of a model takes a mean over the sequence, or looks at a part of it."""
    return model.family == "vit" or float(model.options.get("masked_fraction") or 1.0) < 1.0


def _switches(backend: Backend) -> list[Relation]:
    """Return the refusals of degrees the runtime does not have at all."""
    off = {
        "tensor_parallel": ("tp", "{tp}"),
        "pipeline_parallel": ("pp", "{pp}"),
        "context_parallel": ("cp", "{cp}"),
        "expert_parallel": ("ep", "{ep}"),
        "virtual_stages": ("virtual stages", "{virtual_stages}"),
        "hybrid_shard": ("hybrid shard", "(zero_group {zero_group})"),
        "uneven_stages": ("uneven stages", ""),
    }
    return [
        Relation(
            name=switch,
            broken=FEATURES[feature],
            message=f"{feature} {shown}".rstrip() + f" is not available in {backend.name}",
            remedy=backend.remedies.get(switch, f"do without {feature}"),
        )
        for switch, (feature, shown) in off.items()
        if not getattr(backend, switch)
    ]


def _pair_holds(pair: Pair, degrees: Degrees, schedule: str) -> Mask:
    holds: Mask = FEATURES[pair.features[0]](degrees)
    for feature in pair.features[1:]:
        holds = holds & FEATURES[feature](degrees)
    return holds & (not pair.schedules or schedule in pair.schedules)


def _pair_name(pair: Pair) -> str:
    name = " with ".join(pair.features)
    return f"{name} under {', '.join(pair.schedules)}" if pair.schedules else name


def _spell(value: object) -> str:
    return "-".join(value) if isinstance(value, tuple) else str(value)
