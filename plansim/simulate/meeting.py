"""Who meets whom on links now, kept up to date as things start and end: for steps of very many parts."""

from __future__ import annotations

from plansim.simulate.network import FULL
from plansim.simulate.shares import ALONE, Share, Shares


class Meeting:
    """The loads of all links, and the shares of those that meet on links with too little room.

    The same shares as `Shares.of` a whole set gives, worked out anew only around what changed. Loads are
    exact sums, so they can be added and taken off again.
    """

    def __init__(self, shares: Shares) -> None:
        self._shares = shares
        self._users: dict[int, set[int]] = {}
        self._sent: dict[int, float] = {}
        self._paced: dict[int, dict[tuple[object, ...], float]] = {}
        self._tight: set[int] = set()
        self._dirty: set[int] = set()
        self._changed: set[int] = set()
        self._active: set[int] = set()
        self._got: dict[int, Share] = {}

    def turn(self, bit: int) -> None:
        """Note that one thing starts or ends."""
        starts = bit not in self._active
        (self._active.add if starts else self._active.discard)(bit)
        sign = 1.0 if starts else -1.0
        pace = self._shares.pace(bit)
        for link, load in self._shares.asks(bit):
            users = self._users.setdefault(link, set())
            (users.add if starts else users.discard)(bit)
            if pace is None:
                self._sent[link] = self._sent.get(link, 0.0) + sign * load
            else:
                paced = self._paced.setdefault(link, {})
                paced[pace] = paced.get(pace, 0.0) + sign * load
            self._dirty.add(link)
        self._changed.add(bit)
        if not starts:
            self._got.pop(bit, None)

    def update(self) -> list[int]:
        """Return the things whose share has changed since the last call."""
        around = set(self._changed)
        for link in self._dirty:
            tight = self._is_tight(link)
            if tight or link in self._tight:
                around |= self._users[link]
            (self._tight.add if tight else self._tight.discard)(link)
        self._dirty.clear()
        self._changed.clear()
        found: list[int] = []
        seen: set[int] = set()
        for bit in around:
            if bit in seen or bit not in self._active:
                continue
            group = self._group(bit)
            seen |= group
            shares = self._shares.solved(tuple(sorted(group))) if len(group) > 1 else {}
            for member in group:
                share = shares.get(member, ALONE)
                if share != self._got.get(member, ALONE):
                    found.append(member)
                    self._got[member] = share
        return found

    def share(self, bit: int) -> Share:
        """Return what one thing gets now."""
        return self._got.get(bit, ALONE)

    def _is_tight(self, link: int) -> bool:
        sent = self._sent.get(link, 0.0)
        return sent > 0 and sent + max(self._paced.get(link, {}).values(), default=0.0) > FULL

    def _group(self, bit: int) -> set[int]:
        """Return everything that meets a thing on tight links, directly or through others."""
        group, reach = {bit}, [bit]
        crossed: set[int] = set()
        while reach:
            for link, _ in self._shares.asks(reach.pop()):
                if link in self._tight and link not in crossed:
                    crossed.add(link)
                    new = self._users[link] - group
                    group |= new
                    reach += new
        return group
