"""A plan in one line: in words, and as short as it goes."""

from __future__ import annotations

from itertools import groupby
from typing import TYPE_CHECKING

from plansim.plan.recompute import recompute_words

if TYPE_CHECKING:
    from plansim.plan.model import Plan

USUAL_PLACEMENT = ("tp", "cp", "dp", "pp")
WRITTEN_CHUNKS = 16
"""Chunks whose layers are written one by one."""


def plan_words(plan: Plan) -> str:
    """Return the choices of a plan in one line; what is off or 1 is left out."""
    p = plan.parallel
    words = [f"{name} {degree}" for name in ("dp", "tp", "pp", "cp") if (degree := getattr(p, name)) > 1]
    words += p.expert_degrees
    words = words or ["one device"]
    if p.zero_stage:
        words.append(f"ZeRO-{p.zero_stage}" + (f" in groups of {p.zero_group}" if p.zero_group else ""))
    if p.sequence_parallel and p.tp > 1:
        words.append("sequence parallel")
    if p.split_features:
        words.append("split features")
    words.append(f"microbatch {p.microbatch}")
    if p.pp > 1:
        chunks = f" x {p.virtual_stages} chunks" if p.virtual_stages > 1 else ""
        words.append(p.schedule + chunks)
        if p.stage_layers:
            words.append("layers " + _stage_layers(p.stage_layers))
    if p.batch_shares:
        words.append("shares of " + _shares(p.batch_shares) + " microbatches")
    words += _switches(plan)
    return ", ".join(words)


def _stage_layers(layers: tuple[int, ...]) -> str:
    """Return the layers of every chunk in words; long lists as runs.

    Examples
    --------
    >>> _stage_layers((1, 2, 2, 1)), _stage_layers((3,) * 31 + (1,))
    ('1-2-2-1', '31 x 3, 1')
    """
    return "-".join(map(str, layers)) if len(layers) <= WRITTEN_CHUNKS else _shares(layers)


def _shares(shares: tuple[int, ...]) -> str:
    """Return unequal shares of the batch in words, runs of equal ones once.

    Examples
    --------
    >>> _shares((3, 3, 3, 1))
    '3 x 3, 1'
    """
    runs = [(m, sum(1 for _ in run)) for m, run in groupby(shares)]
    return ", ".join(f"{n} x {m}" if n > 1 else str(m) for m, n in runs)


def _switches(plan: Plan) -> list[str]:
    words = [f"recompute {recompute_words(plan.recompute)}"] if plan.recompute != "none" else []
    if plan.attention != "flash":
        words.append(f"{plan.attention} attention")
    if plan.aggregation == "parameter_server":
        words.append(f"{plan.servers} parameter server" + ("s" if plan.servers > 1 else ""))
    if plan.offload:
        words.append("optimizer offload")
    if plan.offload_activations:
        words.append(f"activations of {plan.offload_activations} layers a chunk offloaded")
    words += [
        f"{name} not overlapped" for name in ("gradients", "parameters") if not getattr(plan.overlap, name)
    ]
    if tuple(plan.placement) != USUAL_PLACEMENT and plan.parallel.pp > 1:
        words.append("placed " + "-".join(plan.placement))
    words += [f"{m.method} {edge}" for edge, m in plan.compression.items() if m.method != "none"]
    return words


def plan_short(plan: Plan) -> str:
    """Return the choices of a plan as short as they go, for a column.

    Examples
    --------
    >>> from plansim.plan.model import Job, Parallel, Plan
    >>> job = Job(global_batch=64, seq_len=1024)
    >>> parallel = Parallel(dp=4, tp=2, zero_stage=1, microbatch=2, sequence_parallel=True)
    >>> plan_short(Plan(model="m", profile="p", job=job, parallel=parallel))
    'dp4 tp2 zero1 sp mb2'
    """
    p = plan.parallel
    words = [f"{name}{degree}" for name in ("dp", "tp", "pp", "cp") if (degree := getattr(p, name)) > 1]
    words += [degree.replace(" ", "") for degree in p.expert_degrees]
    words += [f"zero{p.zero_stage}" + (f"/{p.zero_group}" if p.zero_group else "")] if p.zero_stage else []
    words += ["sp"] if p.sequence_parallel and p.tp > 1 else []
    words += [f"mb{p.microbatch}"]
    words += [p.schedule + (f"x{p.virtual_stages}" if p.virtual_stages > 1 else "")] if p.pp > 1 else []
    if p.batch_shares:
        words.append(f"shares {max(p.batch_shares)}:{min(p.batch_shares)}")
    words += [f"rc:{recompute_words(plan.recompute).replace(' ', '')}"] if plan.recompute != "none" else []
    words += ["unfused"] if plan.attention != "flash" else []
    words += ["ps"] if plan.aggregation == "parameter_server" else []
    words += ["offload"] if plan.offload else []
    words += [f"offload:{plan.offload_activations}"] if plan.offload_activations else []
    words += [f"{name} apart" for name in ("gradients", "parameters") if not getattr(plan.overlap, name)]
    if tuple(plan.placement) != USUAL_PLACEMENT and p.pp > 1:
        words.append(
            "pp before dp" if tuple(plan.placement) == ("tp", "cp", "pp", "dp") else "-".join(plan.placement)
        )
    words += [
        f"{edge if edge == 'model' else edge[:4]}:{m.method}"
        for edge, m in plan.compression.items()
        if m.method != "none"
    ]
    return " ".join(words)
