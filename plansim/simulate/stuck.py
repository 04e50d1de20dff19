"""Steps that cannot finish: who waits for whom."""

from __future__ import annotations

from typing import TYPE_CHECKING

from plansim.errors import SimulationError
from plansim.schedules.base import Action

if TYPE_CHECKING:
    from plansim.simulate.contend import Contended


def stuck_error(step: Contended) -> SimulationError:
    """Return the error of a step with shared links in which nothing moves any more."""
    lines = []
    for rank in step.ranks:
        if rank.over:
            continue
        who = f"rank {rank.stage}" + (f" of pipeline class {rank.column}" if step.columns > 1 else "")
        if rank.needs >= 0:
            action = _next_action(step, rank.place, rank.tasks)
            sender = _sender(action)
            lines.append(
                f"{who} at {action} waits for {sender} of rank {step.order.rank_of_chunk[sender.chunk]}"
            )
        elif rank.waits_for is not None:
            absent = [
                f"{r.column}"
                for r in step.channels[rank.stage].ranks
                if r.issued < rank.issued and not r.over
            ]
            ends = f", which classes {', '.join(absent)} have not come to" if absent else ""
            lines.append(f"{who} waits for its {rank.waits_for.name}{ends}")
        else:
            lines.append(f"{who} waits for its message to leave")
    return SimulationError(f"the step cannot finish; at {step.speeds.now_s:g} s " + "; ".join(lines))


def _next_action(step: Contended, place: int, tasks: tuple[list[int], list[int], list[int]]) -> Action:
    head, block, tail = tasks
    blocks = len(block) * step.repeats
    if place < len(head):
        at = head[place]
    elif place < len(head) + blocks:
        at = block[(place - len(head)) % len(block)]
    else:
        at = tail[place - len(head) - blocks]
    return step.tasks[at].action


def _sender(action: Action) -> Action:
    """Return the action whose message an action needs."""
    step = -1 if action.kind == "F" else 1
    return Action("F" if step == -1 else "B", action.microbatch, action.chunk + step)
