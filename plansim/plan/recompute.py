"""What a stage runs again before its backward: nothing, modules of layers, whole layers, or some of them.

``full:K`` recomputes the first K layers of every model chunk whole and keeps everything of the others, as
Megatron's ``--recompute-method block`` does. Modules are named and joined by ``+``
(``moe_act+layernorm``, see `plansim.plan.modules`); ``selective`` is the attention core.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from itertools import groupby
from typing import TYPE_CHECKING

from plansim.errors import UnknownNameError

if TYPE_CHECKING:
    from plansim.plan.model import Plan

RECOMPUTE_MODES = ("none", "selective", "full")
MODULE_NAMES = ("core_attn", "moe_act", "layernorm", "mla_up_proj", "mlp", "moe", "shared_experts")
"""What may be recomputed by name, in the order in which sets are written (that of Megatron's own list)."""

CORE = "core_attn"
"""The module that ``selective`` recomputes."""

ENDS = ("embedding", "head")


@lru_cache(maxsize=1024)
def parse_mode(mode: str) -> tuple[str, int | None]:
    """Return the mode as it is written in plans and, for ``full:K``, its number of layers.

    Examples
    --------
    >>> parse_mode("full:4"), parse_mode("core_attn"), parse_mode("mlp+layernorm")
    (('full', 4), ('selective', None), ('layernorm+mlp', None))
    """
    name, colon, count = mode.partition(":")
    if not colon and name in RECOMPUTE_MODES:
        return name, None
    if name == "full" and count.isdecimal() and int(count) > 0:
        return name, int(count)
    parts = {part.strip() for part in mode.split("+")}
    for part in sorted(parts - set(MODULE_NAMES)):
        known = MODULE_NAMES if len(parts) > 1 else (*RECOMPUTE_MODES, "full:K", *MODULE_NAMES)
        raise UnknownNameError("recompute mode" if len(parts) == 1 else "module to recompute", part, known)
    listed = "+".join(module for module in MODULE_NAMES if module in parts)
    return ("selective" if listed == CORE else listed), None


def canonical_mode(mode: str) -> str:
    """Return a mode as it is written in plans.

    Examples
    --------
    >>> canonical_mode("layernorm + moe_act"), canonical_mode("full:2")
    ('moe_act+layernorm', 'full:2')
    """
    name, layers = parse_mode(mode)
    return f"{name}:{layers}" if layers else name


def is_mode(text: str) -> bool:
    """Whether a text is a recompute mode.

    Examples
    --------
    >>> is_mode("moe_act + layernorm"), is_mode("heavy")
    (True, False)
    """
    try:
        parse_mode(text)
    except UnknownNameError:
        return False
    return True


@lru_cache(maxsize=1024)
def modules_of_mode(mode: str) -> tuple[str, ...]:
    """Return the modules that a mode recomputes; whole layers are one (``full``).

    Examples
    --------
    >>> modules_of_mode("selective"), modules_of_mode("mlp+core_attn"), modules_of_mode("full:4")
    (('core_attn',), ('core_attn', 'mlp'), ('full',))
    """
    name, _ = parse_mode(mode)
    plain = {"none": (), "selective": (CORE,), "full": ("full",)}
    return plain[name] if name in plain else tuple(name.split("+"))


def names_modules(mode: str) -> bool:
    """Whether a mode names modules (other than the attention core alone).

    Examples
    --------
    >>> names_modules("mlp"), names_modules("full:4"), names_modules("selective")
    (True, False, False)
    """
    return parse_mode(mode)[0] not in RECOMPUTE_MODES


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
