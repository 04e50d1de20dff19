"""What crosses between pipeline stages: activations one way and their gradients back, coded or not.

A method of `compression.activations` codes the messages between stages, both ways; what tensor-parallel ranks
exchange inside a block stays as it is. The sender encodes after its pass and the receiver decodes before its
own, so coding stands in the passes and the link carries the coded bytes alone.
"""

from __future__ import annotations

from plansim.costs.buckets import comm_s, edge_s
from plansim.costs.compression import Traffic, encode_s, find_method, rates_of
from plansim.costs.layout import Layout
from plansim.costs.step import Parts

RANKS = 2
"""Ranks that a message joins."""


def crosses(layout: Layout, index: int) -> bool:
    """Return whether chunk `index` hands its output to a chunk on another rank.

    Examples
    --------
    >>> from plansim.hardware.read import load_profile
    >>> from plansim.plan.model import Job, Parallel, Plan
    >>> from plansim.workload.read import load_model
    >>> parallel = Parallel(pp=2, schedule="zbv", virtual_stages=2)
    >>> plan = Plan(model="m", profile="p", job=Job(global_batch=4, seq_len=1024), parallel=parallel)
    >>> layout = Layout.of(load_model("gpt2-xl"), load_profile("a100x8"), plan)
    >>> [crosses(layout, chunk) for chunk in range(4)]
    [True, False, True, False]
    """
    if not 0 <= index < len(layout.chunks) - 1:
        return False
    return not any({index, index + 1} <= set(held) for held in layout.chunks_of_stage)


def message(layout: Layout, nbytes: float, *, whole: bool = False) -> Traffic:
    """Return what one rank sends of an activation of `nbytes`, before it is coded.

    Ranks of one tensor group hold the same activation: each sends its share and the receivers gather it
    (Narayanan et al., arXiv 2104.04473, section 4.1), or each sends the `whole`.
    """
    p = layout.plan.parallel
    share = nbytes if p.sequence_parallel or whole else nbytes / p.tp
    return Traffic(num_elements=share / layout.wide_bytes, element_bytes=layout.wide_bytes)


def sent_bytes(layout: Layout, nbytes: float, *, whole: bool = False) -> float:
    """Return the bytes of that message on the wire."""
    given, sent = layout.plan.compression.activations, message(layout, nbytes, whole=whole)
    if given.method == "none":
        return sent.nbytes
    method = find_method(given.method)
    return sum(t.nbytes for t in method.wire("send_recv", sent, RANKS, method.resolve(given.options)))


def message_s(layout: Layout, nbytes: float) -> float:
    """Return the seconds of a message of an activation of `nbytes` on its link, gathering included."""
    p = layout.plan.parallel
    gather = comm_s(layout, "tp", "all_gather", nbytes) if p.tp > 1 and not p.sequence_parallel else 0.0
    return comm_s(layout, "pp", "send_recv", sent_bytes(layout, nbytes)) + gather


def send_s(layout: Layout, index: int) -> float:
    """Return the seconds of the message across the boundary after chunk `index`, 0 where there is none."""
    if layout.plan.parallel.pp == 1 or not 0 <= index < len(layout.chunks) - 1:
        return 0.0
    return message_s(layout, layout.chunks[index][-1].boundary_bytes)


def coding_s(layout: Layout, index: int, *, whole: bool = False) -> tuple[float, float]:
    """Return the seconds of encoding and of decoding one message after chunk `index`."""
    given = layout.plan.compression.activations
    if given.method == "none" or not crosses(layout, index):
        return 0.0, 0.0
    sent = message(layout, layout.chunks[index][-1].boundary_bytes, whole=whole)
    both = edge_s(layout, "pp", "send_recv", given, sent.num_elements, sent.element_bytes).coding_s
    device = layout.profile.device
    rates = rates_of(device, layout.profile.calibration)
    encode = encode_s(given.method, sent, device, given.options, rates)
    return encode, both - encode


def coding(layout: Layout, index: int, *, whole: bool = False) -> tuple[Parts, Parts]:
    """Return what coding adds to the forward and to the backward pass of chunk `index`.

    A chunk decodes what it receives from the one before and encodes its output, and back.
    """
    (here, taken), (back, given) = (coding_s(layout, i, whole=whole) for i in (index, index - 1))
    return Parts(compression_s=given + here), Parts(compression_s=taken + back)
