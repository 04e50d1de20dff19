"""Spans: what ran when and where. The simulator's only output, and the format of measured traces too."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Span:
    """One piece of work on one stream of one rank.

    Attributes
    ----------
    rank : int
        Rank (or the representative of a class of equal ranks).
    stream : str
        ``compute``, ``dp``, ``tp``, ``pp_send``, ``pp_recv``, ``host`` …
    name : str
        What ran, e.g. ``F3`` or ``all_reduce bucket 2``.
    category : str
        A part of the breakdown without ``_s``: ``compute``, ``recompute``, ``dp_exposed`` …
    start_s, end_s : float
        Seconds since the step began.
    """

    rank: int
    stream: str
    name: str
    category: str
    start_s: float
    end_s: float
    microbatch: int | None = None
    chunk: int | None = None
    flow: str | None = None

    @property
    def duration_s(self) -> float:
        """Length of the span, seconds."""
        return self.end_s - self.start_s
