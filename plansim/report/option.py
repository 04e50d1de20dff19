"""One option of a report: a cluster with its plan, the predicted step and the whole run."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from plansim.capacity.campaigns import Simulated, simulated_of
from plansim.errors import InputError
from plansim.plan.model import Plan
from plansim.plan.read import plan_from_data
from plansim.results import Breakdown, StageMemory

Data = Mapping[str, Any]
BOUNDED = ("usd_reserved", "usd_per_giga_tokens", "usd_per_device_hour", "kwh", "kg_co2")


def number(data: Data, key: str, where: str) -> float:
    """Return a finite number of plain data.

    Raises
    ------
    InputError
        When it is missing or something else.
    """
    value = data.get(key)
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise InputError(f"{where}: {key}: expected a number, got {value!r:.40}")
    return float(value)


def mapping(data: Data, key: str, where: str) -> Data:
    """Return a mapping of plain data, or say that it is missing."""
    value = data.get(key)
    if not isinstance(value, Mapping):
        raise InputError(f"{where}: {key}: expected a mapping of keys")
    return value


MAY_BE_MISSING = frozenset(
    (
        *(f"{what}_{end}" for what in BOUNDED for end in ("low", "high")),
        "usd_reserved",
        "usd_spares",
    )
)
"""Figures that results of an earlier release, or a profile without a reserved price, do not have."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """The whole training: time, money, energy; bounds hold 80 %."""

    target_tokens: float
    wall_s: float
    wall_low_s: float
    wall_high_s: float
    goodput: float
    failures: float
    mtbf_s: float
    interval_s: float
    checkpoint_s: float
    checkpoint_bytes: float
    restart_s: float
    spare_nodes: float
    effective_tokens_per_s: float
    useful_s: float
    usd: float
    usd_low: float
    usd_high: float
    usd_per_giga_tokens: float
    kwh: float
    kg_co2: float
    usd_reserved: float | None = None
    usd_reserved_low: float | None = None
    usd_reserved_high: float | None = None
    usd_per_giga_tokens_low: float | None = None
    usd_per_giga_tokens_high: float | None = None
    usd_per_device_hour_low: float | None = None
    usd_per_device_hour_high: float | None = None
    usd_spares: float | None = None
    kwh_low: float | None = None
    kwh_high: float | None = None
    kg_co2_low: float | None = None
    kg_co2_high: float | None = None
    assumed_target: bool = False

    @classmethod
    def of(cls, data: Data, where: str) -> Run:
        """Return the run in plain data."""
        names = [f.name for f in fields(cls) if f.name != "assumed_target"]
        own = [n for n in names if n not in MAY_BE_MISSING or data.get(n) is not None]
        return cls(
            **{name: number(data, name, where) for name in own},
            assumed_target=bool(data.get("assumed_target")),
        )

    @property
    def simulated(self) -> Simulated | None:
        """The goodput of this run by Monte-Carlo, drawn when it is asked for; the same every time."""
        return simulated_of(asdict(self))


@dataclass(frozen=True, slots=True, kw_only=True)
class Option:
    """One row of a report.

    Attributes
    ----------
    key : str
        Distinguishes it inside the report.
    changes : dict
        What the scenario changed in profile, model or plan, by dotted key.
    cluster : mapping
        What is known of the cluster and its sources.
    """

    key: str
    source: str
    model: str
    profile: str
    devices: int
    plan: Plan
    step_time_s: float
    step_time_low_s: float
    step_time_high_s: float
    tokens_per_s: float
    mfu: float
    peak_memory_bytes: float
    memory_limit_bytes: float
    breakdown: Breakdown
    memory: tuple[StageMemory, ...]
    run: Run | None
    cluster: Data
    changes: Data
    critical_path: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    rank: int = 1
    tied: bool = False

    @property
    def where(self) -> str:
        """Profile and devices."""
        return f"{self.profile} × {self.devices:,}"

    @property
    def counted(self) -> str:
        """What is trained on: tokens, or samples where they have no sequence."""
        return "tokens" if self.plan.job.seq_len > 1 else "samples"

    @property
    def effective_tokens_per_s(self) -> float:
        """Tokens per second of wall time, failures included where they are known."""
        return self.run.effective_tokens_per_s if self.run else self.tokens_per_s


def option_of(
    *,
    key: str,
    source: str,
    plan: Data,
    prediction: Data,
    reality: Data | None,
    cluster: Data,
    changes: Data,
    rank: int = 1,
    tied: bool = False,
) -> Option:
    """Return an option from plain data.

    Raises
    ------
    InputError
        When the data is not what plansim writes.
    """
    where = f"{source}: {key}"
    made = plan_from_data(plan, source=where)
    breakdown = mapping(prediction, "breakdown", where)
    memory = prediction.get("memory")
    if not isinstance(memory, list) or not memory:
        raise InputError(f"{where}: memory: expected a list of stages")
    path = prediction.get("critical_path") or []
    return Option(
        key=key,
        source=source,
        model=made.model,
        profile=made.profile,
        devices=round(number(cluster, "devices", where)),
        plan=made,
        **{
            name: number(prediction, name, where)
            for name in (
                "step_time_s",
                "step_time_low_s",
                "step_time_high_s",
                "tokens_per_s",
                "mfu",
                "peak_memory_bytes",
                "memory_limit_bytes",
            )
        },
        breakdown=Breakdown(**{f.name: number(breakdown, f.name, where) for f in fields(Breakdown)}),
        memory=tuple(_stage(stage, where) for stage in memory),
        run=Run.of(reality, where) if reality is not None else None,
        cluster=cluster,
        changes=changes,
        critical_path=tuple(str(t.get("what")) for t in path if isinstance(t, Mapping)),
        notes=tuple(str(n) for n in prediction.get("notes") or ()),
        rank=rank,
        tied=tied,
    )


def _stage(data: object, where: str) -> StageMemory:
    if not isinstance(data, Mapping):
        raise InputError(f"{where}: memory: expected a mapping for every stage")
    return StageMemory(**{f.name: number(data, f.name, where) for f in fields(StageMemory)})
