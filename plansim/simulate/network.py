"""The links that one step's transfers share: who uses what alone, and what each gets of it together.

A transfer that is alone on its links takes the time of its closed form. Where transfers that run at once ask
for more than a link has, every flow on it gets the same rate, or what it asks for where that is less (max-min
fair), and the transfers last accordingly longer. Collectives that stand in a rank's own stream (tensor,
context, expert) come in many short pieces between kernels: a transfer beside such an action meets its pieces
for a share of the time.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

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
    """Collectives inside an action: the share of its time alone that they take, their use of the links."""

    fraction: float
    use: Use
    axis: str


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
    """

    links: tuple[Link, ...]
    traffic: tuple[tuple[tuple[int, float, str], Use], ...] = ()
    sends: tuple[tuple[tuple[str, int], Use], ...] = ()
    bursts: tuple[tuple[tuple[str, int], tuple[Burst, ...]], ...] = ()


Member = Use | tuple[Burst, ...]
"""One thing that is under way: a transfer, or an action with collectives in it."""


@dataclass(frozen=True, slots=True)
class Share:
    """How fast something goes beside the others.

    Attributes
    ----------
    speed : float
        Of its speed alone, 0 to 1.
    lost_to : tuple of (str, float)
        For an action: the axes whose collectives make it slower, with their parts of the loss.
    """

    speed: float = 1.0
    lost_to: tuple[tuple[str, float], ...] = ()


ALONE = Share()


class Shares:
    """What every set of things under way gets; each set is worked out once.

    Sets are bit masks: `number` gives a thing its bit.
    """

    def __init__(self, network: Network, *, every: bool = False) -> None:
        self._members: list[Member] = []
        self._bits: dict[object, int] = {}
        self._known: dict[int, dict[int, Share]] = {0: {}}
        self._solved: dict[int, dict[int, Share]] = {}
        self._touched: list[frozenset[int]] = []
        self._asks: list[tuple[bool, tuple[tuple[int, float], ...]]] = []
        hot = frozenset(range(len(network.links))) if every else binding_links(network)
        for key, use in (*network.traffic, *network.sends):
            if _on(use, hot).loads:
                self._add(key, _on(use, hot))
        for action, bursts in network.bursts:
            found = tuple(replace(b, use=_on(b.use, hot)) for b in bursts if _on(b.use, hot).loads)
            if found:
                self._add(("burst", *action), found)

    def _add(self, key: object, member: Member) -> None:
        self._bits[key] = len(self._members)
        self._members.append(member)
        uses = [member] if isinstance(member, Use) else [b.use for b in member]
        self._touched.append(frozenset(link for use in uses for link, _ in use.loads))
        self._asks.append((isinstance(member, Use), tuple(_most_asked(uses).items())))

    def __bool__(self) -> bool:
        """Whether anything could ever wait for a link."""
        return bool(self._members)

    def number(self, key: object) -> int:
        """Return the bit of a bucket, a message or (``burst``, kind, chunk); -1: no link can hold it up."""
        return self._bits.get(key, -1)

    def member(self, bit: int) -> Member:
        """Return what has a bit."""
        return self._members[bit]

    def asks(self, bit: int) -> tuple[tuple[int, float], ...]:
        """Return the most that one thing asks of every link at a time."""
        return self._asks[bit][1]

    def of(self, mask: int) -> dict[int, Share]:
        """Return, by bit, who of a set is slower than alone, and how fast they go."""
        found = self._known.get(mask)
        if found is None:
            found = {}
            for part in self._parts([i for i in range(mask.bit_length()) if mask >> i & 1]):
                bits = sum(1 << i for i in part)
                if bits not in self._solved:
                    shares = together([self._members[i] for i in part])
                    self._solved[bits] = {i: s for i, s in zip(part, shares, strict=True) if s.speed < 1.0}
                found |= self._solved[bits]
            self._known[mask] = found
        return found

    def _parts(self, active: list[int]) -> list[tuple[int, ...]]:
        """Return the active that meet on links with too little room, by groups that do not touch."""
        asked, pieces = dict[int, float](), dict[int, float]()
        for i in active:
            sends, loads = self._asks[i]
            if sends:
                for link, load in loads:
                    asked[link] = asked.get(link, 0.0) + load
            else:
                for link, load in loads:
                    if load > pieces.get(link, 0.0):
                        pieces[link] = load
        tight = {link for link, load in asked.items() if load + pieces.get(link, 0.0) > FULL}
        if not tight:
            return []
        owner: dict[int, list[int]] = {}
        for i in active:
            group = [i]
            for link in self._touched[i] & tight:
                if link in owner and owner[link] is not group:
                    group += owner[link]
                    for other in [k for k, g in owner.items() if g is owner[link]]:
                        owner[other] = group
                owner[link] = group
        return [tuple(sorted(set(group))) for group in {id(g): g for g in owner.values()}.values()]

    def loads(self, mask: int) -> dict[int, float]:
        """Return how much of its capacity every link carries, on average over the pieces of actions."""
        shares, total = self.of(mask), dict[int, float]()
        for i, member in enumerate(self._members):
            if not mask >> i & 1:
                continue
            speed = shares.get(i, ALONE).speed
            parts = [(1.0, member)] if isinstance(member, Use) else [(b.fraction, b.use) for b in member]
            for part, use in parts:
                for link, load in use.loads:
                    total[link] = total.get(link, 0.0) + part * speed * load
        return total


def _most_asked(uses: Sequence[Use]) -> dict[int, float]:
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


def _on(use: Use, links: frozenset[int]) -> Use:
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
    burst = [0.0] * len(network.links)
    for _, bursts in network.bursts:
        for b in bursts:
            for link, load in b.use.loads:
                burst[link] = max(burst[link], load)
    return frozenset(
        i for i, (a, b) in enumerate(zip(asked, burst, strict=True)) if a > FULL or (a > 0 and a + b > FULL)
    )


def together(members: Sequence[Member]) -> list[Share]:
    r"""Return how fast everything under way goes.

    With :math:`\phi_q` the share of an action's time that its collective q takes and :math:`y_q` the fair
    speed of that collective beside the transfers, the action goes at

    .. math:: v = \Bigl(1 - \sum_q \phi_q + \sum_q \phi_q / y_q\Bigr)^{-1}

    and a transfer meets q for the share :math:`v \phi_q / y_q` of the time. Exact for one action beside any
    transfers, in the limit of many short pieces; the pieces of several actions come independently.
    """
    transfers = [m for m in members if isinstance(m, Use)]
    speeds = fair(transfers)
    factors = [1.0] * len(transfers)
    actions = []
    for member in members:
        if isinstance(member, Use):
            continue
        slower, meets, lost = 1.0, [], []
        for burst in member:
            *others, own = fair([*transfers, burst.use])
            slower += burst.fraction * (1.0 / own - 1.0)
            lost.append((burst.axis, burst.fraction * (1.0 / own - 1.0)))
            meets.append((burst.fraction / own, others))
        for i, alone in enumerate(speeds):
            factors[i] *= 1.0 - sum(share / slower * (1.0 - others[i] / alone) for share, others in meets)
        parts = tuple((axis, part / (slower - 1.0)) for axis, part in lost if part > 0)
        actions.append(Share(1.0 / slower, parts) if slower > 1.0 else ALONE)
    sent = iter([Share(x * f) for x, f in zip(speeds, factors, strict=True)])
    acted = iter(actions)
    return [next(sent) if isinstance(m, Use) else next(acted) for m in members]


def fair(uses: Sequence[Use]) -> list[float]:
    """Return the max-min fair speed of every transfer, as a share of its speed alone.

    Progressive filling: all flows grow at the same rate until they have what they ask for or a link is full.

    References
    ----------
    Bertsekas and Gallager, Data Networks, 1992, section 6.5.2.

    Examples
    --------
    >>> wide, narrow = Use(((0, 1.0),), 10.0), Use(((0, 0.25),), 2.5)
    >>> fair([wide, narrow])
    [0.75, 1.0]
    """
    speeds = [1.0] * len(uses)
    carried = loads_of(uses)
    if all(load <= FULL for load in carried.values()):
        return speeds
    growing = {i for i, use in enumerate(uses) if use.loads}
    taken = dict.fromkeys(carried, 0.0)
    while growing:
        slope = dict.fromkeys(carried, 0.0)
        for i in growing:
            for link, load in uses[i].loads:
                slope[link] += load / uses[i].flow_bytes_per_s
        full = {link: (1.0 - taken[link]) / s for link, s in slope.items() if s > 0}
        rate = min(*full.values(), *(uses[i].flow_bytes_per_s for i in growing))
        narrow = {link for link, at in full.items() if at <= rate * FULL}
        for i in sorted(growing):
            use = uses[i]
            if use.flow_bytes_per_s <= rate * FULL or any(link in narrow for link, _ in use.loads):
                speeds[i] = min(1.0, rate / use.flow_bytes_per_s)
                growing.discard(i)
                for link, load in use.loads:
                    taken[link] += load * speeds[i]
    return speeds


def loads_of(uses: Iterable[Use]) -> dict[int, float]:
    """Return what every link is asked for."""
    total: dict[int, float] = {}
    for use in uses:
        for link, load in use.loads:
            total[link] = total.get(link, 0.0) + load
    return total
