"""What every set of things under way gets of the links: transfers beside each other and beside actions.

A transfer beside an action meets the collectives in it for a share of the time.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import prod

from plansim.simulate.fair import fair
from plansim.simulate.network import (
    FULL,
    Member,
    Network,
    Use,
    binding_links,
    hot_links,
    most_asked,
    on_links,
)


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
SMALL = 64
"""Sets up to this size are remembered; larger ones hardly come again."""


class Shares:
    """What every set of things under way gets; each set is worked out once.

    Sets are bit masks: `number` gives a thing its bit.
    """

    def __init__(self, network: Network, *, every: bool = False, binding: bool = True) -> None:
        self._members: list[Member] = []
        self._bits: dict[object, int] = {}
        self._known: dict[int, dict[int, Share]] = {0: {}}
        self._solved: dict[int, dict[int, Share]] = {}
        self._touched: list[frozenset[int]] = []
        self._asks: list[tuple[bool, tuple[tuple[int, float], ...]]] = []
        if every:
            hot = frozenset(range(len(network.links)))
        else:
            hot = binding_links(network) if binding else hot_links(network)
        for key, use in (*network.traffic, *network.sends):
            if on_links(use, hot).loads:
                self._add(key, on_links(use, hot))
        for action, bursts in network.bursts:
            found = tuple(replace(b, use=on_links(b.use, hot)) for b in bursts if on_links(b.use, hot).loads)
            if found:
                self._add(("burst", *action), found)

    def _add(self, key: object, member: Member) -> None:
        self._bits[key] = len(self._members)
        self._members.append(member)
        uses = [member] if isinstance(member, Use) else [b.use for b in member]
        self._touched.append(frozenset(link for use in uses for link, _ in use.loads))
        self._asks.append((isinstance(member, Use), tuple(most_asked(uses).items())))

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

    def pace(self, bit: int) -> tuple[object, ...] | None:
        """Return what an action's collectives come together with, None for a transfer."""
        return None if self._asks[bit][0] else _pace(self._members[bit], bit)

    def solved(self, part: tuple[int, ...]) -> dict[int, Share]:
        """Return who of some that meet is slower than alone; each set is worked out once, if it is small."""
        bits = sum(1 << i for i in part)
        found = self._solved.get(bits)
        if found is None:
            shares = together([self._members[i] for i in part])
            found = {i: s for i, s in zip(part, shares, strict=True) if s.speed < 1.0}
            if len(part) <= SMALL:
                self._solved[bits] = found
        return found

    def of(self, mask: int) -> dict[int, Share]:
        """Return, by bit, who of a set is slower than alone, and how fast they go."""
        found = self._known.get(mask)
        if found is None:
            found = {}
            for part in self._parts([i for i in range(mask.bit_length()) if mask >> i & 1]):
                found |= self.solved(part)
            found = found or self._known[0]  # one for all: nobody's share changes between two of them
            self._known[mask] = found
        return found

    def _parts(self, active: list[int]) -> list[tuple[int, ...]]:
        """Return the active that meet on links with too little room, by groups that do not touch."""
        asked, paced = dict[int, float](), dict[tuple[int, object], float]()
        for i in active:
            sends, loads = self._asks[i]
            if sends:
                for link, load in loads:
                    asked[link] = asked.get(link, 0.0) + load
            else:
                pace = _pace(self._members[i], i)
                for link, load in loads:
                    paced[link, pace] = paced.get((link, pace), 0.0) + load
        pieces = dict[int, float]()
        for (link, _), load in paced.items():
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


def _pace(member: Member, number: int) -> tuple[object, ...]:
    """Return what an action's collectives come together with; an action without one is on its own."""
    pace = None if isinstance(member, Use) else member[0].pace
    return ("", number) if pace is None else ("pace", pace)


def together(members: Sequence[Member]) -> list[Share]:
    r"""Return how fast everything under way goes.

    With :math:`\phi_q` the share of an action's time that its collective q takes and :math:`y_q` the fair
    speed of that collective beside the transfers, the action goes at

    .. math:: v = \Bigl(1 - \sum_q \phi_q + \sum_q \phi_q / y_q\Bigr)^{-1}

    and a transfer meets q for the share :math:`v \phi_q / y_q` of the time. Exact for one action beside any
    transfers, in the limit of many short pieces; the pieces of several actions come independently, but those
    of one pace come together.
    """
    transfers = [m for m in members if isinstance(m, Use)]
    speeds = fair(transfers)
    factors: list[dict[tuple[object, ...], float]] = [{} for _ in transfers]
    bursts = [(_pace(m, n), b) for n, m in enumerate(members) if not isinstance(m, Use) for b in m]
    actions = []
    for number, member in enumerate(members):
        if isinstance(member, Use):
            continue
        slower, meets, lost, pace = 1.0, [], [], _pace(member, number)
        for burst in member:
            beside = [b.use for p, b in bursts if p == pace and b.axis == burst.axis and b is not burst]
            *others, own = fair([*transfers, *beside, burst.use])
            slower += burst.fraction * (1.0 / own - 1.0)
            lost.append((burst.axis, burst.fraction * (1.0 / own - 1.0)))
            meets.append((burst.fraction / own, others))
        for i, alone in enumerate(speeds):
            kept = 1.0 - sum(share / slower * (1.0 - others[i] / alone) for share, others in meets)
            factors[i][pace] = min(kept, factors[i].get(pace, 1.0))
        if slower > 1.0:
            parts = tuple((axis, part / (slower - 1.0)) for axis, part in lost if part > 0)
            actions.append(Share(1.0 / slower, parts))
        else:
            actions.append(ALONE)
    sent = iter(
        [Share(x * prod(f[p] for p in sorted(f, key=str))) for x, f in zip(speeds, factors, strict=True)]
    )
    acted = iter(actions)
    return [next(sent) if isinstance(m, Use) else next(acted) for m in members]
