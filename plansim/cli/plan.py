"""``plansim plan``: the best plans for a model on a cluster."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from plansim.cli.options import (
    Json,
    ModelName,
    Override,
    ProfileName,
    read_cluster,
    read_shape,
    require_agreement,
    require_known,
    split_overrides,
    usage,
)

if TYPE_CHECKING:
    from plansim.hardware.profile import Profile
    from plansim.plan.model import Job
    from plansim.planner import Constraints, PlanningResult
    from plansim.workload.model import Model


def plan(
    profile: ProfileName,
    model: ModelName = None,
    nodes: Annotated[
        int | None, typer.Option("--nodes", metavar="N", min=1, help="Nodes instead of the profile's.")
    ] = None,
    global_batch: Annotated[
        int | None,
        typer.Option("--global-batch", metavar="B", min=1, help="Sequences (samples) in one step."),
    ] = None,
    seq_len: Annotated[
        int | None, typer.Option("--seq-len", metavar="S", min=1, help="Tokens in a sequence.")
    ] = None,
    objective: Annotated[
        str,
        typer.Option(
            "--objective",
            help="throughput, cost, energy, memory or time-to-target; cost and energy may use fewer devices.",
        ),
    ] = "throughput",
    top: Annotated[
        int, typer.Option("--top", metavar="K", min=1, max=1000, help="How many plans to list.")
    ] = 5,
    fix: Annotated[
        str | None, typer.Option("--fix", metavar="CHOICES", help="Choices to keep: tp=8,pp=1,zero=1|3.")
    ] = None,
    forbid: Annotated[
        str | None, typer.Option("--forbid", metavar="CHOICES", help="Choices to leave out: schedule=gpipe.")
    ] = None,
    backend: Annotated[
        str | None,
        typer.Option("--backend", help="Keep to what plansim, torchtitan, megatron or deepspeed runs."),
    ] = None,
    limit: Annotated[
        str | None,
        typer.Option(
            "--limit",
            metavar="LIMITS",
            help='devices=64, memory="70 GiB", budget=1e6 ($), deadline=30 (days), power=50000 (W), '
            "quality=1.1 (most steps to the same loss, as a factor).",
        ),
    ] = None,
    quality_budget: Annotated[
        str | None,
        typer.Option(
            "--quality-budget",
            metavar="PART",
            help="Most that compression may cost at worst, such as 5%: more steps to the same loss, and "
            "score lost by compressing the model. 0 refuses everything lossy.",
        ),
    ] = None,
    exhaustive: Annotated[
        bool, typer.Option("--exhaustive", help="Search also what seldom wins (slower).")
    ] = False,
    robust: Annotated[
        bool,
        typer.Option(
            "--robust", help="Rank by the pessimistic end of the intervals; memory must fit there too."
        ),
    ] = False,
    pareto: Annotated[
        bool, typer.Option("--pareto", help="Also the front of time, $ a token, memory and devices.")
    ] = False,
    sensitivity: Annotated[
        bool, typer.Option("--sensitivity", help="Also what a better cluster or a larger batch would buy.")
    ] = False,
    compression_report: Annotated[
        bool,
        typer.Option(
            "--compression-report",
            help="Also every compression method on the best plan, and the bandwidth below which it pays.",
        ),
    ] = False,
    out: Annotated[
        Path | None, typer.Option("--out", metavar="FILE", help="Write the best plan here.")
    ] = None,
    trace: Annotated[
        Path | None, typer.Option("--trace", metavar="FILE", help="Write the best plan's step as a trace.")
    ] = None,
    override: Override = None,
    json: Json = False,
) -> None:
    """Choose the best plan for a model on a cluster.

    Searches the space and proves the answer: what is not listed is not better. What seldom wins is left out
    unless fixed (the output says what). With only a profile it
    plans pre-training of Llama 3.1 8B on sequences of 8,192 tokens; batches not given follow GPT-3's table by
    model size.
    """
    from plansim.cli import console, show_plan
    from plansim.cli.pulse import Pulse
    from plansim.files import require_writable
    from plansim.plan.backends import BACKENDS
    from plansim.planner import OBJECTIVES, parse_choices
    from plansim.planner import plan as choose

    require_known("--objective", objective, OBJECTIVES)
    require_known("--backend", backend, BACKENDS)
    with usage("--fix"):
        fixed = parse_choices(fix or "")
    with usage("--forbid"):
        forbidden = parse_choices(forbid or "")
    with usage("--fix"):
        _require_choice(fixed, forbidden)
    limits = _constraints(limit, quality_budget)
    shape, cluster, job = _question(profile, model, nodes, global_batch, seq_len, override)
    for path in filter(None, (out, trace)):
        require_writable(path)
    with Pulse("searching") as pulse:

        def tell(simulated: int, best: float) -> None:
            pulse.text = show_plan.searching(objective, simulated, best)

        found = choose(
            shape,
            cluster,
            job,
            objective=objective,
            top=top,
            fix=fixed,
            forbid=forbidden,
            backend=backend,
            constraints=limits,
            exhaustive=exhaustive,
            robust=robust,
            pareto=pareto,
            sensitivity=sensitivity,
            compression_report=compression_report,
            progress=tell,
        )
    found = found.renamed(model=model or shape.name, profile=profile, overrides=_kept(nodes, override))
    if out is not None:
        _write(found, out)
    if trace is not None:
        show_plan.write_trace(found.best.plan, shape, cluster, trace)
    if json:
        console.emit_json(found.to_json())
    else:
        console.show(*show_plan.answer(found, shape, cluster))
    if found.interrupted or not found.search.complete:
        raise typer.Exit(130)


def _require_choice(fixed: Mapping[str, Any], forbidden: Mapping[str, Any]) -> None:
    """Refuse a choice of which everything that is fixed is forbidden too."""
    from plansim.errors import InputError

    for name, values in fixed.items():
        if set(values) <= set(forbidden.get(name, ())):
            raise InputError(f"{name}: every value given is forbidden as well")


def _kept(nodes: int | None, given: list[str] | None) -> tuple[tuple[str, str], ...]:
    """Return what a plan must say of its profile and model beside their names."""
    changes = split_overrides(given, ("profile", "model", "job"))
    kept = {f"{kind}.{key}": value for kind in ("profile", "model") for key, value in changes[kind].items()}
    if nodes is not None:
        kept["profile.node.count"] = str(nodes)
    return tuple(kept.items())


def _question(
    profile: str,
    model: str | None,
    nodes: int | None,
    batch: int | None,
    seq_len: int | None,
    given: list[str] | None,
) -> tuple[Model, Profile, Job]:
    from plansim.plan.read import job_from_data
    from plansim.planner.defaults import DEFAULT_MODEL, default_job

    changes = split_overrides(given, ("profile", "model", "job"))
    said = {
        "--nodes": (nodes, "profile.node.count"),
        "--global-batch": (batch, "job.global_batch"),
        "--seq-len": (seq_len, "job.seq_len"),
    }
    require_agreement(changes, said)
    cluster = read_cluster(profile, changes["profile"], nodes)
    shape = read_shape(model or DEFAULT_MODEL, changes["model"])
    job = default_job(shape, cluster, global_batch=batch, seq_len=seq_len)
    if changes["job"]:
        from dataclasses import asdict

        job = job_from_data(asdict(job), source="job", overrides=changes["job"])
    return shape, cluster, job


LIMITS = {
    "devices": "devices",
    "memory": "memory_bytes",
    "budget": "budget_usd",
    "deadline": "deadline_s",
    "power": "power_watts",
    "quality": "max_inflation",
}
"""A limit as typed -> the field of `Constraints`."""


def _constraints(text: str | None, quality_budget: str | None = None) -> Constraints:
    from plansim.errors import InputError
    from plansim.planner import Constraints

    with usage("--limit"):
        found = dict(_limit(part.strip()) for part in (text or "").split(",") if part.strip())
    if "deadline_s" in found:
        found["deadline_s"] *= 86400.0
    with usage("--quality-budget"):
        if quality_budget is not None:
            if "max_inflation" in found:
                raise InputError("--limit quality says the same; give one of them")
            lost = _part(quality_budget)
            found["max_inflation"], found["max_quality_loss"] = 1.0 + lost, lost
    if "devices" in found:
        return Constraints(**{**found, "devices": int(found["devices"])})  # type: ignore[arg-type]
    return Constraints(**found)  # type: ignore[arg-type]


def _limit(part: str) -> tuple[str, float]:
    """Return a field of `Constraints` and its value, written as ``memory=70 GiB``."""
    from plansim.errors import InputError, UnknownNameError
    from plansim.units import parse

    name, equals, value = (piece.strip() for piece in part.partition("="))
    if not equals:
        raise InputError(f"'{part}' is no limit; write NAME=VALUE, such as devices=64")
    if name not in LIMITS:
        raise UnknownNameError("limit", name, LIMITS)
    number = parse(value, "bytes") if name == "memory" else _number(part, value)
    if name == "quality" and number < 1:
        raise InputError(f"{part}: expected a factor from 1, which refuses everything lossy")
    if name == "devices" and (number % 1 or number < 1):
        raise InputError(f"{part}: expected a whole number from 1")
    if number <= 0:
        raise InputError(f"{part}: expected more than 0")
    return LIMITS[name], number


def _part(text: str) -> float:
    """Return a part of one, written as 5% or 0.05."""
    from plansim.errors import InputError

    try:
        value = float(text.strip().removesuffix("%")) / (100.0 if text.strip().endswith("%") else 1.0)
    except ValueError:
        value = math.nan
    if not 0 <= value <= 1:
        raise InputError(f"'{text}': expected 0 to 100%, such as 5% or 0.05")
    return value


def _number(part: str, value: str) -> float:
    from plansim.errors import InputError

    try:
        number = float(value)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise InputError(f"'{part}': expected a number")
    return number


def _write(found: PlanningResult, path: Path) -> None:
    from plansim.cli import console
    from plansim.files import write_atomic
    from plansim.plan.read import dump_plan

    write_atomic(path, dump_plan(found.best.plan))
    console.say(f"wrote {path}")
