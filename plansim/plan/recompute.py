"""What a stage runs again before its backward: nothing, a part of every layer, whole layers, or some of them.

``full:K`` recomputes the first K layers of every model chunk whole and keeps everything of the others, as
Megatron's ``--recompute-method block`` does.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from typing import TYPE_CHECKING

from plansim.errors import UnknownNameError

if TYPE_CHECKING:
    from plansim.plan.model import Plan

RECOMPUTE_MODES = ("none", "selective", "full")
ENDS = ("embedding", "head")


def parse_mode(mode: str) -> tuple[str, int | None]:
    """Return the mode and, for ``full:K``, its number of layers.

    Examples
    --------
    >>> parse_mode("full:4"), parse_mode("selective")
    (('full', 4), ('selective', None))
    """
    name, colon, count = mode.partition(":")
    if not colon and name in RECOMPUTE_MODES:
        return name, None
    if name == "full" and count.isdecimal() and int(count) > 0:
        return name, int(count)
    raise UnknownNameError("recompute mode", mode, (*RECOMPUTE_MODES, "full:K"))


def recompute_words(recompute: str | Sequence[str]) -> str:
    """Return a plan's recomputation in words, runs of stages that recompute alike once.

    Examples
    --------
    >>> recompute_words("selective"), recompute_words(("full", "full", "none"))
    ('selective', '2 x full/none')
    """
    if isinstance(recompute, str):
        return recompute
    runs = [(mode, sum(1 for _ in run)) for mode, run in groupby(recompute)]
    return "/".join(f"{n} x {mode}" if n > 1 else mode for mode, n in runs)


def modes_of_blocks(mode: str, kinds: Sequence[str]) -> tuple[str, ...]:
    """Return the mode of every block of one chunk; under ``full:K`` layers differ.

    Examples
    --------
    >>> modes_of_blocks("full:1", ("embedding", "layer", "layer"))
    ('none', 'full', 'none')
    """
    name, count = parse_mode(mode)
    if count is None:
        return (name,) * len(kinds)
    found, layers = [], 0
    for kind in kinds:
        body = kind not in ENDS
        found.append(name if body and layers < count else "none")
        layers += body
    return tuple(found)


def modes_of_plan(plan: Plan) -> tuple[str, ...]:
    """Return the modes that single blocks of a plan may have; ``full:K`` makes blocks of two kinds.

    Examples
    --------
    >>> from plansim.plan.model import Job, Parallel, Plan
    >>> job = Job(global_batch=2, seq_len=1)
    >>> modes_of_plan(Plan(model="m", profile="p", job=job, parallel=Parallel(pp=2), recompute="full:3"))
    ('full', 'none')
    """
    found: dict[str, None] = {}
    for stage in range(plan.parallel.pp):
        name, layers = parse_mode(plan.recompute_of(stage))
        found.update(dict.fromkeys((name, "none") if layers else (name,)))
    return tuple(found)
