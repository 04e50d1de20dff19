"""The links that one step's transfers share: who uses what alone, and what each gets of it together.

A transfer that is alone on its links takes the time of its closed form. Where transfers that run at once ask
for more than a link has, every flow on it gets the same rate, or what it asks for where that is less (max-min
fair), and the transfers last accordingly longer. Collectives that stand in a rank's own stream (tensor,
context, expert) come in many short pieces between kernels: a transfer beside such an action meets its pieces
for a share of the time.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

FULL = 1.0 + 1e-9
"""A link carries too much when its loads sum to more than this."""


@dataclass(frozen=True, slots=True)
class Link:
    """Links that always carry the same: a level of the fabric, one direction of it, and how many there are.

    Attributes
    ----------
    level : str
        Name of the fabric level.
    what : str
        Which end, in words: ``out of unit 0`` …
    capacity_bytes_per_s : float
        One direction, after oversubscription and other traffic.
    count : int
        How many links of the cluster this one stands for.
    """

    level: str
    what: str
    capacity_bytes_per_s: float
    count: int = 1

    @property
    def name(self) -> str:
        """Level and end, for tables and traces."""
        return f"{self.level} {self.what}"


@dataclass(frozen=True, slots=True)
class Use:
    """What one transfer takes of the links while it runs alone.

    Attributes
    ----------
    loads : tuple of (int, float)
        Number of a link, and the share of its capacity, 0 to 1.
    flow_bytes_per_s : float
        The rate of each of its flows: what max-min fairness compares.
    """

    loads: tuple[tuple[int, float], ...]
    flow_bytes_per_s: float


@dataclass(frozen=True, slots=True)
class Burst:
    """Collectives inside an action: the share of its time alone that they take, their use of the links.

    `pace` is common to those that come together when their actions do: of one kind of action on one chunk.
    """

    fraction: float
    use: Use
    axis: str
    pace: object = None


@dataclass(frozen=True, slots=True)
class Network:
    """Every transfer of a step with its use of the links.

    Attributes
    ----------
    traffic : tuple of ((rank, seconds alone, what), Use)
        Buckets.
    sends : tuple of ((``F`` or ``B``, chunk that sends), Use)
        Messages between stages.
    bursts : tuple of ((kind, chunk), Bursts)
        Actions with collectives within them.

    Where pipelines differ, the class follows in the keys of messages and actions.
    """

    links: tuple[Link, ...]
    traffic: tuple[tuple[tuple[int, float, str], Use], ...] = ()
    sends: tuple[tuple[tuple[Any, ...], Use], ...] = ()
    bursts: tuple[tuple[tuple[Any, ...], tuple[Burst, ...]], ...] = ()


Member = Use | tuple[Burst, ...]
"""One thing that is under way: a transfer, or an action with collectives in it."""


def most_asked(uses: Sequence[Use]) -> dict[int, float]:
    """Return the most that any of some uses asks of every link."""
    most: dict[int, float] = {}
    for use in uses:
        for link, load in use.loads:
            most[link] = max(most.get(link, 0.0), load)
    return most


def binding_links(network: Network) -> frozenset[int]:
    """Return the hot links without those on which nothing asks for more than it does on one other of them."""
    hot = sorted(hot_links(network))
    if len(hot) < 2:
        return frozenset(hot)
    uses = [use for _, use in (*network.traffic, *network.sends)]
    uses += [burst.use for _, bursts in network.bursts for burst in bursts]
    place = {link: i for i, link in enumerate(hot)}
    table = np.zeros((len(hot), len(uses)))
    for column, use in enumerate(uses):
        for link, load in use.loads:
            if link in place:
                table[place[link], column] = load
    kept: list[int] = []
    for row in np.argsort(-table.sum(axis=1), kind="stable").tolist():
        if not kept or not (table[kept] >= table[row] - 1e-12).all(axis=1).any():
            kept.append(row)
    return frozenset(hot[row] for row in kept)


def on_links(use: Use, links: frozenset[int]) -> Use:
    """Return a use of some links alone."""
    return Use(tuple(entry for entry in use.loads if entry[0] in links), use.flow_bytes_per_s)


def hot_links(network: Network) -> frozenset[int]:
    """Return the links on which everything that could run at once asks for more than they have."""
    by_rank: dict[tuple[int, int], float] = {}
    for (rank, _, _), use in network.traffic:
        for link, load in use.loads:
            by_rank[link, rank] = max(by_rank.get((link, rank), 0.0), load)
    asked = [0.0] * len(network.links)
    for (link, _), load in by_rank.items():
        asked[link] += load
    for _, use in network.sends:
        for link, load in use.loads:
            asked[link] += load
    paced: dict[tuple[int, object, str], float] = {}
    for action, bursts in network.bursts:
        for b in bursts:
            pace = action if b.pace is None else b.pace
            for link, load in b.use.loads:
                paced[link, pace, b.axis] = paced.get((link, pace, b.axis), 0.0) + load
    burst = [0.0] * len(network.links)
    for (link, _, _), load in paced.items():
        burst[link] = max(burst[link], load)
    return frozenset(
        i for i, (a, b) in enumerate(zip(asked, burst, strict=True)) if a > FULL or (a > 0 and a + b > FULL)
    )
