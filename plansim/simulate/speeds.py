"""How fast everything under way goes: a clock that jumps from one change of speeds to the next."""

from __future__ import annotations

import heapq
from collections.abc import Callable

from plansim.simulate.meeting import Meeting
from plansim.simulate.pieces import COMPUTE, Piece
from plansim.simulate.shares import ALONE, Share, Shares


class Speeds:
    """Pieces under way, their speeds, and when each ends.

    Speeds change only when something starts or ends: the links then share out anew, and a rank's two streams
    slow each other down or no longer do.

    Attributes
    ----------
    now_s : float
        The clock.
    heap : list
        (end, serial number, version, piece); entries of an older version are void.
    active : dict
        Pieces that share links, by their bit.
    sets : list of (float, int)
        From when on which set of things was under way, where that is written down.
    """

    def __init__(
        self,
        shares: Shares,
        beside: Callable[[Piece], float] | None,
        *,
        many: bool = False,
        written: bool = False,
    ) -> None:
        self._shares, self._beside, self._written = shares, beside, written
        self._meeting = Meeting(shares) if many else None
        self.now_s = 0.0
        self.heap: list[tuple[float, int, int, Piece]] = []
        self.active: dict[int, Piece] = {}
        self.changed: list[Piece] = []
        self.sets: list[tuple[float, int]] = []
        self._serial = self._mask = self._applied = 0
        self._got: dict[int, Share] = {}

    def start(self, piece: Piece) -> None:
        """Begin a piece now."""
        piece.since = self.now_s
        if piece.bit >= 0:
            self._turn(piece.bit)
            self.active[piece.bit] = piece
        self.changed.append(piece)

    def next(self) -> Piece | None:
        """Move the clock to the next end of a piece and return it; None when nothing is under way."""
        heap = self.heap
        while heap:
            now, _, version, piece = heapq.heappop(heap)
            if version == piece.version:
                self.now_s = now
                if piece.speed < 1.0:
                    self._settle(piece)
                piece.version = -1
                if piece.bit >= 0:
                    self._turn(piece.bit)
                    del self.active[piece.bit]
                return piece
        return None

    def more_now(self) -> bool:
        """Return whether another piece ends at this very moment."""
        heap = self.heap
        while heap and heap[0][2] != heap[0][3].version:
            heapq.heappop(heap)
        return bool(heap) and heap[0][0] <= self.now_s

    def refresh(self) -> None:
        """Give everything that changed its new speed."""
        changed, meeting, beside, now = self.changed, self._meeting, self._beside, self.now_s
        if meeting is not None:
            changed += self._around()
        elif self._mask != self._applied:
            changed += self._met_anew()
        for piece in changed:
            if piece.version < 0:
                continue
            share = ALONE
            if piece.bit >= 0:
                share = self._got.get(piece.bit, ALONE) if meeting is None else meeting.share(piece.bit)
            factor = 1.0 if beside is None else beside(piece)
            speed = share.speed / factor
            if speed != piece.speed:
                if now != piece.since:
                    self._settle(piece)
                piece.speed, piece.factor, piece.share = speed, factor, share
                piece.version += 1
                self._serial += 1
                end = now + (piece.left if speed == 1.0 else piece.left / speed)
                heapq.heappush(self.heap, (end, self._serial, piece.version, piece))
        self.changed = []

    def _turn(self, bit: int) -> None:
        """Note that something which shares links starts or ends."""
        if self._meeting is None:
            self._mask ^= 1 << bit
        else:
            self._meeting.turn(bit)

    def _met_anew(self) -> list[Piece]:
        """Return what gets another share of its links in the whole set that is now under way."""
        self._applied = self._mask
        if self._written:
            self.sets.append((self.now_s, self._mask))
        before, got = self._got, self._shares.of(self._mask)
        if got is before:
            return []
        self._got = got
        active = self.active
        return [
            active[bit]
            for bit in before.keys() | got.keys()
            if bit in active and before.get(bit) is not got.get(bit)
        ]

    def _around(self) -> list[Piece]:
        """Return what gets another share of its links, looking only around what changed."""
        found = self._meeting.update() if self._meeting is not None else []
        return [self.active[bit] for bit in found if bit in self.active]

    def shift(self, seconds: float, others: list[Piece]) -> None:
        """Move the clock, everything that shares links and `others` later."""
        self.now_s += seconds
        for piece in {id(p): p for p in (*self.active.values(), *others)}.values():
            piece.since += seconds
        self.heap = [(t + seconds, n, v, p) for t, n, v, p in self.heap if v == p.version]
        heapq.heapify(self.heap)

    def _settle(self, piece: Piece) -> None:
        """Count what was done since the last change, and what was lost."""
        passed = self.now_s - piece.since
        piece.left -= passed * piece.speed
        piece.since = self.now_s
        rank = piece.rank
        if piece.kind == COMPUTE and rank is not None and passed > 0 and piece.speed < 1.0:
            rank.slowed_s += passed * (1.0 - 1.0 / piece.factor)
            for axis, part in piece.share.lost_to:
                lost = passed / piece.factor * (1.0 - piece.share.speed) * part
                rank.held_s[axis] = rank.held_s.get(axis, 0.0) + lost
