"""Whether a relaxed step stands: do transfers that ran at once ever ask for more of a link than it has."""

from __future__ import annotations

import numpy as np

from plansim.simulate.network import FULL, Use
from plansim.simulate.order import Order
from plansim.simulate.relax import Machine
from plansim.simulate.shares import Shares


def overloaded(machine: Machine, order: Order, shares: Shares) -> bool:
    """Return whether any link is ever asked for too much in a relaxed step, whose machine has a log.

    Blocks left out repeat those that were run, so these stand for all.
    """
    tasks = (*order.head, *order.block * machine.blocks_run, *order.tail)
    begins: list[float] = []
    ends: list[float] = []
    bits: list[int] = []
    for task, (_, start, end, sent, arrived) in zip(tasks, machine.log or [], strict=True):
        kind, chunk = task.action.kind, task.action.chunk
        if task.link >= 0 and (bit := shares.number(("F" if kind == "F" else "B", chunk))) >= 0:
            begins.append(sent)
            ends.append(arrived)
            bits.append(bit)
        if (bit := shares.number(("burst", kind, chunk))) >= 0:
            begins.append(start)
            ends.append(end)
            bits.append(bit)
    for rank, streams in enumerate(machine.streams):
        for ticket in streams.log or []:
            bit = shares.number((rank, ticket.seconds, ticket.name))
            if bit >= 0 and ticket.end_s is not None:
                begins.append(ticket.start_s)
                ends.append(ticket.end_s)
                bits.append(bit)
    return bool(bits) and _too_much(np.array(begins), np.array(ends), np.array(bits), shares)


def _too_much(begins: np.ndarray, ends: np.ndarray, bits: np.ndarray, shares: Shares) -> bool:
    """Sum the loads of all intervals link by link, in order of time."""
    near = 1e-12 * float(ends.max())
    times, links, sent, pieces = [], [], [], []
    for bit in np.unique(bits).tolist():
        member = shares.member(bit)
        where = np.flatnonzero((bits == bit) & (ends - begins > 2 * near))
        for link, load in shares.asks(bit):
            size = len(where)
            times += [begins[where], ends[where] - near]
            links.append(np.full(2 * size, link))
            signs = np.repeat([load, -load], size)
            sent.append(signs if isinstance(member, Use) else np.zeros(2 * size))
            pieces.append(np.zeros(2 * size) if isinstance(member, Use) else signs)
    at, of = np.concatenate(times), np.concatenate(links)
    order = np.lexsort((at, of))
    transfers = np.cumsum(np.concatenate(sent)[order])
    both = transfers + np.cumsum(np.concatenate(pieces)[order])
    return bool(((transfers > 1e-9) & (both > FULL)).any())
