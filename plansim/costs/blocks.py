"""Seconds of one block on one rank: its operators summed by pass, its communication where it stands."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from plansim.costs.operators import (
    FUSED_INTO_EXPERTS,
    Arithmetic,
    OperatorTime,
    launches_of,
    operator_s,
)
from plansim.costs.step import Parts
from plansim.workload.operators import Attention, Block, Communication, Matmul, Operator

LAUNCH_SHARPNESS = 2.5
"""Exponent that joins launch time and kernel time of a pass; large means that they overlap perfectly.

2 to 3 fit the single-node plans of vTrain (MICRO 2024) alike; perfect overlap misses them by a third more.
"""


class Piece(NamedTuple):
    """One operator of a forward pass: its seconds, those that hide behind compute, its launches.

    `part` is what the seconds count to. `alone` is the operator in a kernel of its own: where the stack fuses
    it into the one before, and that does not run.
    """

    part: str
    seconds: float
    kernels: float
    hidden_s: float = 0.0
    alone: Piece | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class BlockTime:
    """Seconds of one block for one microbatch on one rank, by pass and by what it waits for.

    Attributes
    ----------
    pieces : tuple of Piece
        The forward pass by operator.
    launch_s : float
        Host time of one launch.
    """

    forward: Parts
    backward_input: Parts
    backward_weight: Parts
    launches: float
    pieces: tuple[Piece, ...]
    launch_s: float

    def again(self, repeated: Sequence[int]) -> Parts:
        """Return the seconds of running some operators of the forward pass again, given by number."""
        if len(repeated) == len(self.pieces):
            return self.forward
        sums: dict[str, float] = {}
        kernels = hidden_s = 0.0
        for i in repeated:
            piece = self.pieces[i]
            if piece.alone and i - 1 not in repeated:
                piece = piece.alone
            sums[piece.part] = sums.get(piece.part, 0.0) + piece.seconds
            kernels += piece.kernels
            hidden_s += piece.hidden_s
        if hidden_s:
            sums["ep_s"] = sums.get("ep_s", 0.0) + max(0.0, hidden_s - sums.get("compute_s", 0.0))
        return Parts(**sums, host_s=launch_wait_s(sum(sums.values()), kernels * self.launch_s))


def block_s(
    block: Block,
    how: Arithmetic,
    comm_s: Callable[[str, str, float], float],
    keeps: Callable[[str], float],
    *,
    tp_overlap: bool = False,
    travels: Callable[[str, int], float] = lambda axis, copies: 1.0,
) -> BlockTime:
    """Return the passes of one block.

    Parameters
    ----------
    comm_s : callable
        ``comm_s(axis, collective, nbytes)`` gives the seconds of one collective alone on the links.
    keeps : callable
        ``keeps(axis)`` gives the share of its speed that compute keeps beside a collective of that axis.
    tp_overlap : bool
        Tensor-parallel collectives are pipelined with the product beside them in chunks: only the first
        chunk (1/tp of the bytes) and what outlasts the product are exposed.
    travels : callable
        ``travels(axis, copies)`` gives the share of the bytes that crosses the links when every row goes to
        `copies` ranks of the axis.
    """
    tally = _Tally()
    times = [operator_s(op, how) for op in block.operators]
    for i, (op, time) in enumerate(zip(block.operators, times, strict=True)):
        if isinstance(op, Communication):
            share = travels(op.axis, op.copies) if op.copies > 1 else 1.0
            _add_communication(tally, block.operators, times, i, how, comm_s, keeps, tp_overlap, share)
        else:
            tally.add(time, launches_of(op, how.stack), _alone(op, how))
    tally.expose_experts()
    return tally.result(how.operator_host_s)


def launch_wait_s(device_s: float, host_s: float) -> float:
    """Return what a pass waits for launches, seconds: smooth between the longer of the two and their sum.

    The host runs ahead while kernels are long and falls behind while they are short; a pass mixes both, so
    near the balance neither hides the other whole.
    """
    longer, shorter = (device_s, host_s) if device_s > host_s else (host_s, device_s)
    if shorter <= 0.0:
        return longer - device_s
    return (
        float(longer * (1.0 + (shorter / longer) ** LAUNCH_SHARPNESS) ** (1.0 / LAUNCH_SHARPNESS)) - device_s
    )


def _alone(op: Operator, how: Arithmetic) -> Piece | None:
    """Return what an operator takes in a kernel of its own, where the stack fuses it into experts."""
    if not (how.stack.fused_experts and op.name in FUSED_INTO_EXPERTS):
        return None
    apart = replace(how, stack=replace(how.stack, fused_experts=False))
    return Piece("compute_s", operator_s(op, apart).forward_s, launches_of(op, apart.stack))


class _Tally:
    """Running sums of one block."""

    def __init__(self) -> None:
        self.sums: dict[tuple[str, str], float] = {}
        self.pieces: list[Piece] = []
        self.launches = {"forward": 0.0, "backward": 0.0}
        self.hidden_experts = {"forward": 0.0, "input": 0.0}

    def put(self, where: str, part: str, seconds: float) -> None:
        self.sums[where, part] = self.sums.get((where, part), 0.0) + seconds

    def add(self, time: OperatorTime, kernels: float, alone: Piece | None) -> None:
        self.put("forward", "compute_s", time.forward_s)
        self.put("input", "compute_s", time.input_s)
        self.put("weight", "compute_s", time.weight_s)
        self.launches["forward"] += kernels
        self.launches["backward"] += 2 * kernels
        self.pieces.append(Piece("compute_s", time.forward_s, kernels, 0.0, alone))

    def expose_experts(self) -> None:
        """Add what of the expert exchange outlasts the compute it runs beside: a block hides no more."""
        for where, beside in (("forward", ("forward",)), ("input", ("input", "weight"))):
            compute_s = sum(self.sums.get((name, "compute_s"), 0.0) for name in beside)
            self.put(where, "ep_s", max(0.0, self.hidden_experts[where] - compute_s))

    def parts(self, where: str, kernels: float, launch_s: float) -> Parts:
        """Return the parts of one pass; what the device waits for launches is host time."""
        sums = {part: seconds for (place, part), seconds in self.sums.items() if place == where}
        return Parts(**sums, host_s=launch_wait_s(sum(sums.values()), kernels * launch_s))

    def result(self, launch_s: float) -> BlockTime:
        forward = self.parts("forward", self.launches["forward"], launch_s)
        half = self.launches["backward"] / 2
        return BlockTime(
            forward=forward,
            backward_input=self.parts("input", half, launch_s),
            backward_weight=self.parts("weight", half, launch_s),
            launches=self.launches["forward"] + self.launches["backward"],
            pieces=tuple(self.pieces),
            launch_s=launch_s,
        )


def _add_communication(
    tally: _Tally,
    operators: tuple[Operator, ...],
    times: list[OperatorTime],
    index: int,
    how: Arithmetic,
    comm_s: Callable[[str, str, float], float],
    keeps: Callable[[str], float],
    tp_overlap: bool,
    share: float,
) -> None:
    op = operators[index]
    assert isinstance(op, Communication)  # noqa: S101  # the caller dispatched on it
    entering = op.name.endswith("_in")
    neighbour = _neighbour(operators, times, index, +1 if entering else -1)
    nbytes = op.nbytes * share
    hidden_s = 0.0
    forward = op.repeat * comm_s(op.axis, op.collective, nbytes) if op.collective != "none" else 0.0
    backward = op.repeat * comm_s(op.axis, op.backward, nbytes) if op.backward else 0.0
    if op.axis == "tp":
        hide_forward = hide_backward = 0.0
        if tp_overlap:
            hide_forward, hide_backward = neighbour.forward_s, neighbour.input_s
        if entering and how.stack.tp_backward_overlap:
            hide_backward += neighbour.weight_s
        forward, backward = (
            _exposed(forward, hide_forward, keeps("tp")),
            _exposed(backward, hide_backward, keeps("tp")),
        )
    elif op.axis == "cp":
        core = next(
            (t for o, t in zip(operators, times, strict=True) if isinstance(o, Attention)),
            OperatorTime(forward_s=0.0),
        )
        forward, backward = (
            _exposed(forward, core.forward_s, keeps("cp")),
            _exposed(backward, core.input_s, keeps("cp")),
        )
    elif op.axis == "ep":
        hidden = how.stack.expert_overlap
        hidden_s = hidden * forward
        tally.hidden_experts["forward"] += hidden_s
        tally.hidden_experts["input"] += hidden * backward
        forward, backward = (1.0 - hidden) * forward, (1.0 - hidden) * backward
    tally.pieces.append(Piece(f"{op.axis}_s", forward, 1.0, hidden_s))
    tally.put("forward", f"{op.axis}_s", forward)
    tally.put("input", f"{op.axis}_s", backward)
    tally.launches["forward"] += 1
    tally.launches["backward"] += 1


def _neighbour(
    operators: tuple[Operator, ...], times: list[OperatorTime], index: int, step: int
) -> OperatorTime:
    """Return the time of the nearest matrix product in one direction: whose input or output travels."""
    i = index + step
    while 0 <= i < len(operators):
        if isinstance(operators[i], Matmul):
            return times[i]
        i += step
    return OperatorTime(forward_s=0.0)


def _exposed(comm_s: float, hiding_s: float, keeps: float, chunks: int = 8) -> float:
    """Return what a collective in chunks beside `hiding_s` of compute adds to it.

    The first chunk has nothing to hide behind, what outlasts the compute sticks out, and while both run the
    compute keeps only the share `keeps` of its speed.
    """
    if hiding_s <= 0.0:
        return comm_s
    first = comm_s / chunks
    hidden = min(comm_s - first, hiding_s / keeps)
    return comm_s - hidden + hidden * (1.0 - keeps)
