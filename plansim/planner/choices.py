"""The choices of a plan as people name them: names, the values there are, and how they are written."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import Any

from plansim.costs.compression import COMPRESSION_METHODS, MODEL_METHODS
from plansim.errors import InputError, UnknownNameError
from plansim.plan.backends.base import schedule_key
from plansim.plan.recompute import canonical_mode
from plansim.schedules import SCHEDULES

DEGREES = ("dp", "tp", "pp", "cp", "ep")
"""Free unless fixed: every divisor of the number of devices."""

PLACEMENTS = (
    ("tp", "cp", "dp", "pp"),
    ("tp", "cp", "pp", "dp"),
)
"""Orders of the axes, innermost first, that the search tries."""

CHOICES: dict[str, tuple[Any, ...]] = {
    "etp": ("tp", 1),
    "zero_stage": (0, 1, 2, 3),
    "zero_group": (None, "node"),
    "sequence_parallel": (False, True),
    "schedule": tuple(SCHEDULES),
    "stage_layers": ("even", "balanced"),
    "batch_shares": ("even", "sized"),
    "recompute": ("none", "selective", "full:1", "full:2", "full:4", "full:8", "full:16", "full"),
    "recompute_per_stage": (True, False),
    "attention": ("flash", "unfused"),
    "offload": (False, True),
    "offload_activations": (0,),
    "placement": PLACEMENTS,
    "aggregation": ("all_reduce", "parameter_server"),
    "overlap.gradients": (True, False),
    "overlap.parameters": (True, False),
    "overlap.tensor_parallel": (False, True),
    "compression.gradients": ("none", "int8", "powersgd"),
    "compression.parameters": ("none", "int8"),
    "compression.activations": ("none",),
    "compression.outer": ("none",),
    "compression.model": ("none",),
}
"""Choices taken from a list, in the words of the plan file, with what the search tries."""

SHORT = {
    "sp": "sequence_parallel",
    "zero": "zero_stage",
    "mbs": "microbatch",
    "vp": "virtual_stages",
    "gradients": "compression.gradients",
    "compression": "compression.gradients",
}
"""Other names people use."""

NUMBERS = (
    *DEGREES, "etp", "microbatch", "virtual_stages", "zero_stage", "zero_group", "servers",
    "offload_activations",
)  # fmt: skip
NAMES = (*DEGREES, "microbatch", "virtual_stages", *CHOICES)


WORDS = (
    "etp",
    "stage_layers",
    "batch_shares",
    "attention",
    "aggregation",
    "zero_stage",
    "sequence_parallel",
    "offload",
    "recompute_per_stage",
)
"""Choices that have no values beyond those of the list."""


def full_name(name: str) -> str:
    """Return the plan file's name of a choice.

    Examples
    --------
    >>> full_name("sp"), full_name("parallel.tp")
    ('sequence_parallel', 'tp')
    """
    key = name.strip().removeprefix("plan.").removeprefix("parallel.")
    key = SHORT.get(key, key).removesuffix(".method")
    if key not in NAMES:
        raise UnknownNameError("choice", name, NAMES)
    return key


def named(given: Mapping[str, Any] | None) -> dict[str, tuple[Any, ...]]:
    """Return choices by the plan file's names, each with its values; recompute modes as plans write them."""
    found = {full_name(name): _several(value) for name, value in (given or {}).items()}
    if "recompute" in found:
        found["recompute"] = tuple(dict.fromkeys(canonical_mode(str(v)) for v in found["recompute"]))
    return found


def _several(value: object) -> tuple[Any, ...]:
    if isinstance(value, tuple | list) and sorted(map(str, value)) == ["cp", "dp", "pp", "tp"]:
        return (tuple(value),)  # one placement
    return tuple(value) if isinstance(value, tuple | list | set | frozenset) else (value,)


def check_value(name: str, value: object) -> None:
    """Refuse a value that a choice cannot have."""
    if name in (*DEGREES, "microbatch", "virtual_stages") and (type(value) is not int or value < 1):
        raise InputError(f"{name}={value}: expected a whole number of at least 1")
    if name == "zero_group" and type(value) is int and value < 1:
        raise InputError(f"{name}={value}: expected a whole number of at least 1, node or all")
    if name == "offload_activations" and (type(value) is not int or value < 0):
        raise InputError(f"{name}={value}: expected a whole number of layers, 0 for none")
    if name == "schedule" and schedule_key(str(value)) not in SCHEDULES:
        raise UnknownNameError("schedule", value, SCHEDULES)
    if name == "recompute":
        canonical_mode(str(value))
    if name == "placement" and sorted(map(str, _axes(value))) != sorted(PLACEMENTS[0]):
        given = "-".join(map(str, _axes(value)))
        raise InputError(f"{name}={given}: expected each of tp, cp, dp and pp once, such as tp-cp-dp-pp")
    edge = name.partition("compression.")[2]
    methods: Collection[str] = MODEL_METHODS if edge == "model" else COMPRESSION_METHODS
    if edge and value not in methods:
        raise UnknownNameError(f"{'model ' if edge == 'model' else ''}compression method", value, methods)
    known = CHOICES.get(name)
    if known and (name in WORDS or name.startswith("overlap.")) and value not in known:
        raise InputError(f"{name}={value}: expected one of {', '.join(map(str, known))}")


def _axes(value: object) -> Iterable[object]:
    return value if isinstance(value, tuple | list) else (value,)


def parse_choices(text: str) -> dict[str, tuple[Any, ...]]:
    """Return choices written as ``tp=8,pp=1``; ``|`` separates several values of one choice.

    Examples
    --------
    >>> parse_choices("tp=8, sp=on, zero=1|3")
    {'tp': (8,), 'sequence_parallel': (True,), 'zero_stage': (1, 3)}
    """
    found: dict[str, tuple[Any, ...]] = {}
    for part in filter(None, (p.strip() for p in text.split(","))):
        name, equals, value = part.partition("=")
        if not equals or not value.strip():
            raise InputError(f"'{part}' is no choice; write NAME=VALUE, such as tp=8")
        key = full_name(name)
        if key in found:
            raise InputError(f"{key} is given twice")
        found[key] = tuple(_value(key, v.strip()) for v in value.split("|"))
        for each in found[key]:
            check_value(key, each)
    return found


def _value(name: str, text: str) -> object:
    words = {"true": True, "on": True, "yes": True, "false": False, "off": False, "no": False}
    if name == "placement":
        return tuple(text.replace("/", "-").split("-"))
    if name == "zero_group" and text.lower() in ("none", "null", "all"):
        return None
    if name == "etp" and text.lower() == "tp":
        return "tp"
    if name in NUMBERS and text != "node":
        try:
            return int(text)
        except ValueError:
            raise InputError(f"{name}={text}: expected a whole number") from None
    known = CHOICES.get(name, ())
    if True in known and False in known:
        if text.lower() not in words:
            raise InputError(f"{name}={text}: expected on or off")
        return words[text.lower()]
    return text
