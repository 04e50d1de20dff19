"""Sweep files: axes, each one value or several, and the scenarios they span."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from plansim.capacity.scenario import Scenario
from plansim.errors import InputError, UnknownNameError
from plansim.files import Count, Name, Schema, Tokens, check, read_yaml
from plansim.plan.model import Job
from plansim.plan.read import DType, Optimizer, job_from_data

MAX_SCENARIOS = 1_000_000
"""More than this is refused with its size; a study of that many points is several studies."""

ALIASES: dict[str, str] = {
    "price": "profile.economics.usd_per_device_hour",
    "usd_per_device_hour": "profile.economics.usd_per_device_hour",
    "usd_per_device_hour_reserved": "profile.economics.usd_per_device_hour_reserved",
    "power": "profile.economics.power_watts",
    "pue": "profile.economics.pue",
    "kg_co2_per_kwh": "profile.economics.kg_co2_per_kwh",
    "mtbf_device_hours": "profile.reliability.mtbf_device_hours",
    "restart": "profile.reliability.restart_s",
    "bandwidth": "profile.fabric.1.bandwidth_per_direction",
    "compression": "plan.compression.gradients",
}
"""Short names of axes that people sweep most."""

OWN_AXES = ("model", "profile", "devices", "global_batch", "seq_len", "dtype", "optimizer", "target_tokens")
PREFIXES = ("profile.", "model.", "plan.")


class Span(Schema):
    """Numbers from `first` to `last`: multiplied by `factor`, or with `step` between them."""

    first: Annotated[float, Field(alias="from")]
    last: Annotated[float, Field(alias="to")]
    factor: Annotated[float, Field(gt=1)] | None = None
    step: Annotated[float, Field(gt=0)] | None = None

    def count(self) -> int:
        """Return how many numbers there are, without making them."""
        if self.last < self.first:
            return 0
        if self.factor is not None:
            if self.first <= 0:
                raise InputError(f"from: {self.first:g} cannot be multiplied by a factor; start above 0")
            return math.floor(math.log(self.last / self.first) / math.log(self.factor) + 1e-9) + 1
        return math.floor((self.last - self.first) / (self.step or 1.0) + 1e-9) + 1

    def values(self) -> Iterator[int | float]:
        """Yield the numbers; whole ones as integers."""
        for i in range(self.count()):
            x = self.first * self.factor**i if self.factor else self.first + i * (self.step or 1.0)
            yield round(x) if abs(x - round(x)) < 1e-9 else x


class JobDefaults(Schema):
    """``job:`` of a sweep: what all scenarios share unless an axis says otherwise."""

    global_batch: Count | None = None
    seq_len: Count | None = None
    dtype: DType = "bf16"
    optimizer: Optimizer = "adamw"
    target_tokens: Annotated[Tokens, Field(gt=0)] | None = None


class SweepSchema(Schema):
    """A sweep file."""

    schema_: Annotated[Literal[1], Field(alias="schema")] = 1
    name: Name = "sweep"
    about: str = ""
    grid: dict[str, Any]
    job: JobDefaults = JobDefaults()
    set: dict[str, Any] = {}  # noqa: RUF012  (pydantic copies defaults)
    fix: dict[str, Any] = {}  # noqa: RUF012
    objective: Literal["throughput", "cost", "energy", "memory"] = "throughput"
    search: Literal["quick", "full"] = "quick"


@dataclass(frozen=True, slots=True, kw_only=True)
class Grid:
    """A checked sweep file.

    Attributes
    ----------
    axes : dict
        Axis in full words -> its values, lazily for spans.
    fixed : dict
        Changes that every scenario carries.
    """

    name: str
    about: str
    axes: dict[str, tuple[Any, ...] | Span]
    fixed: dict[str, Any]
    fix: dict[str, Any]
    job: JobDefaults
    objective: str
    search: str

    @property
    def size(self) -> int:
        """How many scenarios there are."""
        return math.prod(self.lengths.values())

    @property
    def lengths(self) -> dict[str, int]:
        """How many values each axis has."""
        return {name: v.count() if isinstance(v, Span) else len(v) for name, v in self.axes.items()}

    def scenarios(self) -> Iterator[Scenario]:
        """Yield every scenario; the last axis changes fastest."""
        names = list(self.axes)
        columns = [tuple(v.values()) if isinstance(v, Span) else v for v in self.axes.values()]
        for values in product(*columns):
            yield self._scenario(self.fixed | dict(zip(names, values, strict=True)))

    def _scenario(self, values: Mapping[str, Any]) -> Scenario:
        own = {name: values[name] for name in OWN_AXES if name in values}
        defaults = self.job.model_dump()
        job = {name: own.get(name, default) for name, default in defaults.items()}
        changes = {k: _text(v) for k, v in values.items() if k.startswith(("profile.", "model."))}
        fix = self.fix | {k.removeprefix("plan."): v for k, v in values.items() if k.startswith("plan.")}
        return Scenario(
            model=str(own["model"]),
            profile=str(own["profile"]),
            devices=own.get("devices"),
            job=Job(**job),
            changes=tuple(changes.items()),
            fix=tuple((k, _text(v)) for k, v in fix.items()),
            objective=self.objective,
            search=self.search,
        )


def load_grid(path: str | Path, overrides: Mapping[str, str] | None = None) -> Grid:
    """Return the sweep in a file.

    Raises
    ------
    InputError
        When a key or an axis is wrong, an axis is empty, or the grid is larger than `MAX_SCENARIOS`.
    """
    return grid_from_data(read_yaml(Path(path)), source=str(path), overrides=overrides)


def grid_from_data(data: Any, *, source: str = "sweep", overrides: Mapping[str, str] | None = None) -> Grid:  # noqa: ANN401
    """Return the sweep in plain data."""
    file = check(data, SweepSchema, source=source, overrides=overrides)
    axes = {_full_name(name, source): _values(name, given, source) for name, given in file.grid.items()}
    fixed = {_full_name(name, source): _fixed(name, value, source) for name, value in file.set.items()}
    for name in ("model", "profile"):
        if name not in axes and name not in fixed:
            raise InputError(f"{source}: grid: the axis '{name}' is missing; every scenario needs one")
    for name in ("global_batch", "seq_len"):
        if name not in axes and name not in fixed and getattr(file.job, name) is None:
            raise InputError(f"{source}: say {name}, as an axis of grid or under job")
    grid = Grid(
        name=file.name,
        about=file.about,
        axes=axes,
        fixed=fixed,
        fix=file.fix,
        job=file.job,
        objective=file.objective,
        search=file.search,
    )
    _refuse_size(grid, source)
    return grid


def _full_name(name: str, source: str) -> str:
    full = ALIASES.get(name, name)
    if full in OWN_AXES or full.startswith(PREFIXES):
        return full
    known = (*OWN_AXES, *ALIASES, "profile.KEY", "model.KEY", "plan.KEY")
    raise InputError(f"{source}: grid: {UnknownNameError('axis', name, known)}")


def _fixed(name: str, given: Any, source: str) -> Any:  # noqa: ANN401
    """Return the one value that all scenarios share."""
    if ALIASES.get(name, name) not in OWN_AXES:
        return given
    values = _values(name, given, source)
    if isinstance(values, Span) or len(values) != 1:
        raise InputError(f"{source}: set.{name}: expected one value; several make an axis of grid")
    return values[0]


def _job_value(name: str, value: object, source: str) -> object:
    """Return a value of the job, checked as a plan's is."""
    return getattr(job_from_data({"global_batch": 1, name: value}, source=f"{source}: grid"), name)


def _values(name: str, given: Any, source: str) -> tuple[Any, ...] | Span:  # noqa: ANN401
    whole = ALIASES.get(name, name) in ("devices", "global_batch", "seq_len")
    if isinstance(given, Mapping):
        span = check(given, Span, source=f"{source}: grid.{name}")
        if whole and any(x is not None and (x % 1 or x < 1) for x in (span.first, span.factor, span.step)):
            raise InputError(f"{source}: grid.{name}: expected whole numbers from 1")
        return span
    values = tuple(given) if isinstance(given, list) else (given,)
    if any(isinstance(v, list | Mapping) or v is None for v in values):
        raise InputError(f"{source}: grid.{name}: every value must be a plain number or text")
    if whole:
        for v in values:
            if type(v) is not int or v < 1:
                raise InputError(f"{source}: grid.{name}: expected whole numbers from 1, got {v!r}")
    if name in ("dtype", "optimizer", "target_tokens"):
        values = tuple(_job_value(name, v, source) for v in values)
    return tuple(dict.fromkeys(values))


def _refuse_size(grid: Grid, source: str) -> None:
    lengths = grid.lengths
    empty = [name for name, n in lengths.items() if n == 0]
    if empty or not lengths:
        what = f"the axis '{empty[0]}' has no values" if empty else "it has no axes"
        raise InputError(f"{source}: the grid is empty: {what}")
    if grid.size > MAX_SCENARIOS:
        sizes = " x ".join(f"{name.rsplit('.', 1)[-1]} {n:,}" for name, n in lengths.items() if n > 1)
        raise InputError(
            f"{source}: the grid spans {grid.size:,} scenarios ({sizes}); at most "
            f"{MAX_SCENARIOS:,} are swept. Use fewer or coarser values (factor: 2 in place of step: 1)"
        )


def _text(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value)
