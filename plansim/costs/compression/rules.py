"""The rule of compression for `plansim.plan.rules.check_plan`: what each edge's method supports here."""

from __future__ import annotations

from plansim.costs.compression.base import Traffic
from plansim.costs.compression.model.registry import MODEL_METHODS
from plansim.costs.compression.registry import COMPRESSION_METHODS
from plansim.errors import InputError, UnknownNameError
from plansim.plan.model import Method
from plansim.plan.rule import Broken, Case, Rule


def compression_supported(case: Case) -> Broken | None:
    """Every edge's method knows its options, suits the edge, the sharding and the device."""
    for edge, method in case.plan.compression.items():
        if method.method == "none":
            continue
        try:
            reason = _model(case, method) if edge == "model" else _message(case, edge, method)
        except InputError as error:
            return Broken(
                detail=f"compression.{edge}: {error}", remedy="see `plansim catalog list compression`"
            )
        if reason:
            detail, _, remedy = reason.partition("; ")
            return Broken(detail=f"compression.{edge}: {detail}", remedy=remedy)
    return None


def _model(case: Case, method: Method) -> str | None:
    if method.method not in MODEL_METHODS:
        raise UnknownNameError("model compression method", method.method, MODEL_METHODS)
    entry = MODEL_METHODS[method.method]
    entry.resolve(method.options)
    return entry.supports(case.profile.device, case.plan.job.phase, method.options)


def _message(case: Case, edge: str, method: Method) -> str | None:
    if method.method not in COMPRESSION_METHODS:
        raise UnknownNameError("compression method", method.method, COMPRESSION_METHODS)
    entry, p = COMPRESSION_METHODS[method.method], case.plan.parallel
    options = entry.resolve(method.options)
    if edge == "gradients" and case.plan.aggregation == "parameter_server" and entry.blocking:
        return f"{entry.name} needs a collective, a parameter server only adds; use bf16 or fp16 there"
    if edge not in entry.edges:
        fitting = [n for n, m in COMPRESSION_METHODS.items() if edge in m.edges and n != "none"]
        return (
            f"{entry.name} does not work on {edge} (it works on {', '.join(sorted(entry.edges))}); "
            f"use one of {', '.join(fitting)}"
        )
    for option, its_edge in (("secondary", "parameters"), ("hierarchical", "gradients")):
        if method.options.get(option) and edge != its_edge:
            return f"{option} is an option of compression.{its_edge}; leave it out here"
    if edge == "activations" and method.options.get("error_feedback"):
        return "error_feedback adds what was lost to the next gradient, activations have none; leave it out"
    if edge == "outer" and case.plan.compression.gradients.method != "none":
        return (
            f"replicas that step alone with {entry.name} send no gradients; "
            "set compression.gradients to none, or compression.outer to none"
        )
    if edge == "gradients" and p.zero_group and not entry.shards:
        return (
            f"{entry.name} needs the whole local gradient, shard groups of {p.zero_group} scatter it; "
            "leave zero_group out with zero_stage 0 or 1, or use one of bf16, fp16, fp8, int8, int4"
        )
    if edge == "outer" and p.zero_stage:
        return (
            f"replicas that step alone with {entry.name} hold all their weights, zero_stage {p.zero_stage} "
            "shares them out; use zero_stage 0"
        )
    reason = entry.supports(
        edge, zero_stage=p.zero_stage, backend=case.profile.backend, device=case.profile.device
    )
    if reason is None and "rank" in options:
        side = max(1, case.model.hidden)
        cut = max(1, side // p.tp)
        entry.payload_bytes(Traffic(num_elements=float(side * cut), matrix=(side, cut)), options)
    return reason


COMPRESSION_RULES: dict[str, Rule] = {"compression": compression_supported}
"""To pass as ``extra`` to `check_plan`."""
