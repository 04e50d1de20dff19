"""Sizing: the smallest, the cheapest and the fastest cluster that meets a target, or what is short."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from math import inf
from typing import Any

from plansim.capacity.campaigns import simulated_of
from plansim.capacity.evaluate import Group, Planner, best_plan, compact, evaluate_group
from plansim.capacity.executors import Executor, Serial
from plansim.capacity.scenario import Changes, Scenario, key_of
from plansim.errors import InfeasibleError, InputError, UnitError, UnknownNameError
from plansim.hardware.profile import Profile
from plansim.hardware.read import load_profile, profile_names
from plansim.plan.model import Job
from plansim.units import format_seconds, parse

MAX_DEVICES = 16_384
PRICE = "profile.economics.usd_per_device_hour"
REFINEMENTS = 3
"""Sizes tried between the largest that misses a target and the smallest that meets it."""

Row = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Target:
    """What a cluster must reach: at most some ``days`` or ``usd``, or at least some ``tokens_per_s``."""

    kind: str
    value: float
    text: str

    def met(self, row: Row, *, safe: bool = False) -> bool:
        """Whether a result reaches it; `safe` asks it of the slow end of the interval."""
        return row["status"] == "ok" and self.measure(row, safe=safe) * self.sign <= self.value * self.sign

    @property
    def sign(self) -> int:
        """1 where less is better, -1 where more is."""
        return -1 if self.kind == "tokens_per_s" else 1

    def measure(self, row: Row, *, safe: bool = False) -> float:
        """Return what a result gives, in the target's own unit (seconds, $ or tokens/s)."""
        run = row["reality"]
        if self.kind == "seconds":
            return float(run["wall_high_s" if safe else "wall_s"])
        if self.kind == "usd":
            return float(run["usd"]) * (run["wall_high_s"] / run["wall_s"] if safe else 1.0)
        slow = run["wall_s"] / run["wall_high_s"] if safe else 1.0
        return float(run["effective_tokens_per_s"]) * slow

    def miss(self, row: Row) -> float:
        """Return a figure that is smaller the nearer a result comes."""
        return self.sign * self.measure(row)

    def shortfall(self, row: Row) -> str:
        """Return in words how far a result is from the target."""
        value = self.measure(row)
        if self.kind == "seconds":
            return (
                f"takes {time_text(value)}, {time_text(self.value)} asked for ({_times(value / self.value)})"
            )
        if self.kind == "usd":
            return f"costs ${value:,.0f}, ${self.value:,.0f} to spend ({_times(value / self.value)})"
        share = _times(value / self.value)
        return f"gives {value:,.0f} tokens/s, {self.value:,.0f} asked for ({share})"


def parse_target(text: str) -> Target:
    """Return the target in words.

    Raises
    ------
    InputError
        When it is neither a time, nor a rate, nor money.

    Examples
    --------
    >>> parse_target("30 days").value, parse_target("$1M").value, parse_target("2000 tokens/s").kind
    (2592000.0, 1000000.0, 'tokens_per_s')
    """
    given = text.strip()
    money = re.fullmatch(r"(?:\$|USD\s*)\s*([\d.,_]+)\s*([kKMB]?)|([\d.,_]+)\s*([kKMB]?)\s*(?:\$|USD)", given)
    try:
        if money:
            number = re.sub(r"[,_]", "", money[1] or money[3])
            scale = {"": 1.0, "k": 1e3, "K": 1e3, "M": 1e6, "B": 1e9}[money[2] or money[4] or ""]
            target = Target("usd", float(number) * scale, given)
        elif "/s" in given:
            target = Target("tokens_per_s", parse(given, "tokens/s"), given)
        else:
            number = "no unit" if re.fullmatch(r"[\d.]+", given) else given
            target = Target("seconds", parse(number, "seconds"), given)
    except (UnitError, ValueError):
        raise InputError(
            f"--target '{text}' is neither a time, nor a rate, nor money, "
            'such as "30 days", "2000 tokens/s" or "$1M"'
        ) from None
    if not target.value > 0:
        raise InputError(f"--target '{text}' must be more than 0")
    return target


@dataclass(frozen=True, slots=True, kw_only=True)
class Sizing:
    """What sizing found: results that meet the target, by what they are best at, and all that was tried."""

    target: Target
    job: Job
    model: str
    best: dict[str, Row]
    safe: bool = False
    tried: tuple[Row, ...]
    skipped: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """Return plain data; `plansim report` reads it."""
        return {
            "schema": 1,
            "kind": "size",
            "model": self.model,
            "target": self.target.text,
            "best": self.best,
            "rows": list(self.tried),
            "skipped": list(self.skipped),
        }


def catalogue(
    names: Sequence[str] | None = None, prices: Mapping[str, float] | None = None
) -> tuple[list[str], list[str]]:
    """Return the profiles to size over, and why others are left out.

    Without names: every profile of accelerators of one kind that has a price, its own or one of `prices`.
    Of several slices of one device the first counts, as they grow into each other.
    """
    given = prices or {}
    for name in given:
        if name and name not in (names or profile_names()):
            raise UnknownNameError("profile with a --price", name, names or profile_names())
    if names:
        return list(dict.fromkeys(str(n) for n in names)), []
    kept, skipped = [], []
    seen: set[str] = set()
    for name in profile_names():
        profile = load_profile(name)
        if profile.device.kind == "cpu":
            continue
        if profile.mixed:
            skipped.append(f"{name}: mixes devices; sizes of such a cluster are not one number")
        elif not (profile.economics.usd_per_device_hour or name in given or "" in given):
            skipped.append(f"{name}: has no price; --price {name}=2.50 gives it one")
        elif profile.device.id not in seen:
            seen.add(profile.device.id)
            kept.append(name)
    return kept, skipped


def size_clusters(
    model: str,
    job: Job,
    target: Target,
    *,
    profiles: Sequence[str] | None = None,
    max_devices: int = MAX_DEVICES,
    safe: bool = False,
    changes: Changes = (),
    prices: Mapping[str, float] | None = None,
    executor: Executor | None = None,
    planner: Planner = best_plan,
    search: str = "quick",
    progress: Callable[[int, int], None] | None = None,
) -> Sizing:
    """Return the smallest, cheapest and fastest cluster that meets a target.

    Sizes double from one node on; where a profile first meets the target, sizes below it are tried too.

    Parameters
    ----------
    changes : tuple
        Changes to every profile and to the model, by dotted key (``profile.economics.pue``).
    prices : mapping, optional
        Price of a device-hour by profile, $; under ``""`` for all. A profile without a price takes part
        when it is given one.

    Raises
    ------
    InfeasibleError
        When no cluster meets the target; says for each profile what is short.
    """
    asked = prices or {}
    names, skipped = catalogue(profiles, asked)
    if target.kind == "usd":
        _refuse_unpriced(names, asked)
    base = {
        n: Scenario(model=model, profile=n, job=job, search=search, changes=_priced(n, changes, asked))
        for n in names
    }
    first = [replace(base[n], devices=d) for n in names for d in _sizes(load_profile(n), max_devices)]
    if not first:
        least = min((load_profile(n).devices_per_node for n in names), default=0)
        why = f"the smallest node has {least}" if names else "no profile has a price"
        raise InputError(f"--max-devices {max_devices} leaves no cluster to try: {why}")
    run = executor or Serial()
    rows = _run(run, first, planner, progress)
    rows += _run(run, _between(rows, target, safe=safe, base=base), planner, progress)
    meeting = [r for r in rows if target.met(r, safe=safe)]
    tried = tuple(sorted(rows, key=lambda r: (r["scenario"]["profile"], r["scenario"]["devices"])))
    if not meeting:
        raise InfeasibleError(_shortage(rows, target, model, max_devices))
    best = {
        "smallest": min(meeting, key=lambda r: (r["cluster"]["devices"], r["reality"]["usd"] or inf)),
        "cheapest": min(meeting, key=lambda r: (r["reality"]["usd"] or inf, r["cluster"]["devices"])),
        "fastest": min(meeting, key=lambda r: (r["reality"]["wall_s"], r["reality"]["usd"])),
    }
    best = {name: row | {"reality": row["reality"] | _simulated(row)} for name, row in best.items()}
    return Sizing(
        target=target, job=job, model=model, best=best, safe=safe, tried=tried, skipped=tuple(skipped)
    )


def _refuse_unpriced(names: Sequence[str], prices: Mapping[str, float]) -> None:
    """Raise when a budget is asked of a profile that costs nothing."""
    for name in names:
        if not (load_profile(name).economics.usd_per_device_hour or name in prices or "" in prices):
            raise InputError(
                f"{name} has no price to hold against a budget; --price {name}=2.50 gives it one"
            )


def _simulated(row: Row) -> Row:
    """Return the goodput of an answer, simulated often enough to be quoted."""
    found = simulated_of(row["reality"])
    return {"simulated": None if found is None else compact(asdict(found))}


def _priced(name: str, changes: Changes, prices: Mapping[str, float]) -> Changes:
    price = prices.get(name, prices.get(""))
    return changes if price is None else (*changes, (PRICE, repr(price)))


def _run(
    executor: Executor,
    scenarios: Sequence[Scenario],
    planner: Planner,
    progress: Callable[[int, int], None] | None,
) -> list[Row]:
    rows: list[Row] = []
    groups = [Group(((key_of(s), s),), planner) for s in scenarios]
    with closing(executor.run(evaluate_group, groups)) as answers:
        for found in answers:
            rows += found
            if progress:
                progress(len(rows), len(groups))
    return rows


def _sizes(profile: Profile, most: int) -> Iterable[int]:
    """Return the profile's node times powers of two, up to `most`."""
    n = profile.devices_per_node
    while n <= most:
        yield n
        n *= 2


def _between(
    rows: Sequence[Row], target: Target, *, safe: bool, base: Mapping[str, Scenario]
) -> list[Scenario]:
    """Return sizes between the last that misses and the first that meets, for every profile."""
    found: list[Scenario] = []
    for name in dict.fromkeys(r["scenario"]["profile"] for r in rows):
        mine = sorted(
            (r for r in rows if r["scenario"]["profile"] == name), key=lambda r: r["scenario"]["devices"]
        )
        meets = next((i for i, r in enumerate(mine) if target.met(r, safe=safe)), None)
        if not meets:
            continue
        low, high = (mine[i]["scenario"]["devices"] for i in (meets - 1, meets))
        node = load_profile(name).devices_per_node
        steps = {
            low + round((high - low) * k / (REFINEMENTS + 1) / node) * node for k in range(1, REFINEMENTS + 1)
        }
        found += [replace(base[name], devices=d) for d in sorted(steps - {low, high})]
    return found


def _shortage(rows: Sequence[Row], target: Target, model: str, most: int) -> str:
    """Return in words what is short, profile by profile."""
    lines = [f"no cluster of at most {most:,} devices meets {target.text} with {model}:"]
    for name in dict.fromkeys(r["scenario"]["profile"] for r in rows):
        mine = [r for r in rows if r["scenario"]["profile"] == name]
        able = [r for r in mine if r["status"] == "ok"]
        if able:
            nearest = min(able, key=target.miss)
            lines.append(f"  {name} x {nearest['cluster']['devices']:,}: {target.shortfall(nearest)}")
        else:
            last = max(mine, key=lambda r: r["scenario"]["devices"])
            lines += [f"  {name} x {last['scenario']['devices']:,}: {_nearest_miss(str(last['reason']))}"]
    lines.append(_remedy(target))
    return "\n".join(lines)


def _nearest_miss(reason: str) -> str:
    """Return the line of a refusal that says what came nearest; the counts by rule are left out."""
    lines = [line.strip() for line in reason.splitlines()] or [""]
    return next((line for line in lines if line.startswith("nearest miss")), lines[0])


def _remedy(target: Target) -> str:
    if target.kind == "usd":
        return "a lower --price, fewer --tokens or a larger budget would help"
    if target.kind == "seconds":
        return "more --max-devices, a larger --global-batch, fewer --tokens or a later date would help"
    return "more --max-devices, a larger --global-batch or a lower rate would help"


def _times(ratio: float) -> str:
    return f"{ratio:,.0f} x" if ratio >= 10 else f"{ratio:.2g} x"


def time_text(seconds: float) -> str:
    """Return a run's duration as people say it.

    Examples
    --------
    >>> time_text(3 * 86400), time_text(7200.0)
    ('3.0 days', '2.00 h')
    """
    return f"{seconds / 86400:,.1f} days" if seconds >= 172800 else format_seconds(seconds)
