"""Concurrent transfers on a network: shares are max-min fair and change when a transfer starts or ends."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from plansim.costs.network import max_min_rates
from plansim.errors import InputError


@dataclass(frozen=True, slots=True, kw_only=True)
class Flow:
    """A transfer of `nbytes` over the links of `path`, from `start_s` on; `latency_s` is added at its end."""

    path: tuple[Hashable, ...]
    nbytes: float
    start_s: float = 0.0
    latency_s: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class FlowResult:
    """When transfers end, and how busy the links were.

    Attributes
    ----------
    finish_s : tuple of float
        When the last byte of each flow has arrived, seconds, in the order of the flows.
    utilisation : dict
        Link to the share of its capacity that was used, from the first start to the last byte sent.
    solves : int
        How often the shares were worked out.
    """

    finish_s: tuple[float, ...]
    utilisation: dict[Hashable, float] = field(default_factory=dict)
    solves: int = 0

    @property
    def end_s(self) -> float:
        """When the last flow has arrived, seconds."""
        return max(self.finish_s, default=0.0)


def simulate_flows(
    flows: Sequence[Flow],
    capacities: Mapping[Hashable, float],
    background_bytes_per_s: Mapping[Hashable, float] | None = None,
) -> FlowResult:
    """Return when each of some concurrent flows ends.

    Parameters
    ----------
    capacities : mapping
        Capacity of each link in one direction, bytes per second.
    background_bytes_per_s : mapping
        Other traffic on a link, taken off its capacity.

    Notes
    -----
    A fluid model: exact for transfers that share links max-min fairly at every moment; packets, queues and
    adaptive routing are below its resolution.

    Examples
    --------
    >>> flows = [Flow(path=("a",), nbytes=10.0), Flow(path=("a",), nbytes=5.0)]
    >>> simulate_flows(flows, {"a": 1.0}).finish_s
    (15.0, 10.0)
    """
    free = _free_capacities(flows, capacities, background_bytes_per_s or {})
    left = np.array([float(f.nbytes) for f in flows])
    starts = np.array([f.start_s for f in flows], dtype=float)
    sent_s = np.full(len(flows), np.nan)
    order = np.argsort(starts, kind="stable")
    active: list[int] = []
    coming, solves = 0, 0
    now = float(starts.min()) if len(flows) else 0.0
    while active or coming < len(order):
        while coming < len(order) and starts[order[coming]] <= now:
            active.append(int(order[coming]))
            coming += 1
        if not active:
            now = float(starts[order[coming]])
            continue
        which = np.array(active)
        rates = max_min_rates([flows[i].path for i in active], free)
        solves += 1
        until = left[which] / rates
        following = float(starts[order[coming]]) - now if coming < len(order) else np.inf
        step = min(float(until.min()), following)
        ended = until <= step * (1 + 1e-12)
        left[which] = np.where(ended, 0.0, left[which] - rates * step if np.isfinite(step) else 0.0)
        now += step
        sent_s[which[ended]] = now
        active = [i for i, over in zip(active, ended.tolist(), strict=True) if not over]
    finish = tuple(float(t) + f.latency_s for t, f in zip(sent_s, flows, strict=True))
    return FlowResult(
        finish_s=finish, utilisation=_utilisation(flows, capacities, starts, sent_s), solves=solves
    )


def _free_capacities(
    flows: Sequence[Flow], capacities: Mapping[Hashable, float], background: Mapping[Hashable, float]
) -> dict[Hashable, float]:
    """Return what other traffic leaves of each link that a flow uses."""
    free: dict[Hashable, float] = {}
    for flow in flows:
        if flow.nbytes < 0:
            raise InputError(f"a flow cannot carry {flow.nbytes} bytes")
        for link in flow.path:
            if link not in capacities:
                raise InputError(f"no capacity given for link {link!r}")
            free[link] = capacities[link] - background.get(link, 0.0)
            if free[link] <= 0:
                raise InputError(
                    f"other traffic leaves nothing of link {link!r} ({capacities[link]} bytes/s)"
                )
    return free


def _utilisation(
    flows: Sequence[Flow], capacities: Mapping[Hashable, float], starts: np.ndarray, sent_s: np.ndarray
) -> dict[Hashable, float]:
    """Return the share of its capacity that each link carried."""
    carried: dict[Hashable, float] = {}
    for flow in flows:
        for link in dict.fromkeys(flow.path):
            carried[link] = carried.get(link, 0.0) + flow.nbytes
    span_s = float(np.nanmax(sent_s) - starts.min()) if len(flows) else 0.0
    if span_s <= 0:
        return dict.fromkeys(carried, 0.0)
    return {link: nbytes / capacities[link] / span_s for link, nbytes in carried.items()}
