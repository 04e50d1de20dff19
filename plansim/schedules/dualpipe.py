"""DualPipeV: DeepSeek's bidirectional pipeline folded into a V, so that each rank holds two chunks once."""

from __future__ import annotations

from collections import deque

from plansim.schedules.base import Action, Kind, RuleSchedule
from plansim.schedules.zero_bubble import two_chunks


def enough_microbatches(pp: int, num_microbatches: int, virtual_stages: int) -> str | None:
    """Return the reason when there are fewer microbatches than chunks, or None."""
    if num_microbatches < 2 * pp:
        return f"it needs at least 2 pp = {2 * pp} microbatches, got {num_microbatches}"
    return two_chunks(pp, num_microbatches, virtual_stages)


class _Writer:
    """Writes one rank's actions; counts microbatches by chunk and keeps the weight gradients owed."""

    def __init__(self) -> None:
        self.actions: list[Action] = []
        self._forwards: dict[int, int] = {}
        self._backwards: dict[int, int] = {}
        self._owed: deque[Action] = deque()

    def forward(self, chunk: int) -> None:
        """Append the chunk's next forward."""
        m = self._forwards.get(chunk, 0)
        self.actions.append(Action("F", m, chunk))
        self._forwards[chunk] = m + 1

    def backward(self, chunk: int, *, split: bool = False) -> None:
        """Append the chunk's next backward; when split, its weight gradient is owed."""
        m = self._backwards.get(chunk, 0)
        kind: Kind = "I" if split else "B"
        self.actions.append(Action(kind, m, chunk))
        self._backwards[chunk] = m + 1
        if split:
            self._owed.append(Action("W", m, chunk))

    def weight(self) -> None:
        """Append the oldest weight gradient owed, if any."""
        if self._owed:
            self.actions.append(self._owed.popleft())


def dualpipev_order(rank: int, pp: int, num_microbatches: int, virtual_stages: int) -> list[Action]:
    """Return DualPipeV's order; where it runs a forward beside a backward, the forward stands first.

    References
    ----------
    DeepSeek-AI, DualPipe (github.com/deepseek-ai/DualPipe, `dualpipev.py`, eight steps);
    ``torch.distributed.pipelining.ScheduleDualPipeV`` has the same order.
    """
    down, up = rank, 2 * pp - 1 - rank
    w = _Writer()
    for _ in range(2 * (pp - rank - 1)):
        w.forward(down)
    for _ in range(rank + 1):
        w.forward(down)
        w.forward(up)
    for _ in range(pp - rank - 1):
        w.backward(up, split=True)
        w.weight()
        w.forward(up)
    for _ in range(num_microbatches - 2 * pp + rank + 1):
        w.forward(down)
        w.backward(up)
        w.forward(up)
        w.backward(down)
    for _ in range(pp - rank - 1):
        w.backward(up)
        w.forward(up)
        w.backward(down)
    split = _cool_down(w, rank, down, up)
    for _ in range(pp - rank - 1):
        w.weight()
        w.backward(down, split=split)
    for _ in range(rank + 1):
        w.weight()
    return w.actions


def _cool_down(w: _Writer, rank: int, down: int, up: int) -> bool:
    """Write the backward passes of both legs, split from half way on; return whether they are split now."""
    split = False
    for i in range(rank + 1):
        split = split or (i == (rank + 1) // 2 and rank % 2 == 1)
        w.backward(up, split=split)
        split = split or (i == (rank + 1) // 2 and rank % 2 == 0)
        w.backward(down, split=split)
    return split


DUALPIPE_V = RuleSchedule(
    "dualpipev",
    dualpipev_order,
    enough_microbatches,
    splits_backward=True,
    v_shaped=True,
    about="two chunks a rank in a V; forwards of one beside backwards of the other",
    source="DeepSeek-V3, arXiv 2412.19437, section 3.2.1, folded into a V",
)
