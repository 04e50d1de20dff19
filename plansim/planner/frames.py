"""All pipelines of a space as arrays: degrees, microbatch, schedule, switches; rules and memory as masks."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from plansim.plan.kinds import Kinds
from plansim.plan.model import Job
from plansim.plan.recompute import parse_mode
from plansim.planner.balance import Balance
from plansim.planner.ends import End
from plansim.planner.space import (
    MICROBATCHES,
    SHORT_TOKENS,
    USUAL_MICROBATCHES,
    VIRTUAL_STAGES,
    Space,
)
from plansim.schedules import find_schedule
from plansim.workload.model import ATTENTION_FAMILIES, Model

V_SHAPED = ("zbv", "dualpipev")
"""Schedules whose first rank holds both ends of the model: the longest chunk does not decide there."""

MOST_LAYERS = 10**6
"""More than any model has."""

MOST_NUMBERED = 2**62
"""Numbers up to here have room in 64 bits."""

Array = NDArray[np.float64]
Ints = NDArray[np.int64]
Mixture = tuple[tuple[Kinds, int], ...]
"""Classes of replicas: the kinds of device that each has, and how many there are."""
Mask = NDArray[np.bool_]


@dataclass(frozen=True, slots=True, eq=False)
class Columns:
    """One entry per pipeline. `structure`, `placement` and `devices` index lists of the space.

    `recompute` is a key of the modes its ranks may have (`plansim.planner.modes`). Microbatches
    are the mean over the replicas, a fraction where their shares differ.
    """

    dp: Ints
    tp: Ints
    pp: Ints
    cp: Ints
    ep: Ints
    etp: Ints
    microbatch: Ints
    num_microbatches: Array
    structure: Ints
    sequence_parallel: Ints
    unfused: Ints
    recompute: Ints
    tp_overlap: Ints
    placement: Ints
    devices: Ints

    def __len__(self) -> int:
        return len(self.dp)

    @property
    def world(self) -> Ints:
        """Ranks of every entry."""
        return self.dp * self.tp * self.pp * self.cp

    def take(self, index: NDArray[np.int64] | Mask) -> Columns:
        """Return some entries."""
        return Columns(*(getattr(self, f.name)[index] for f in fields(self)))

    def expert_cut(self, i: int) -> int | None:
        """Return the `etp` of one entry as a plan has it: None where experts are cut by tp."""
        return None if self.etp[i] == self.tp[i] else int(self.etp[i])


class Structure(NamedTuple):
    """A schedule, its chunks on each rank, and the microbatch whose cost chunks are sized to (0: even)."""

    schedule: str
    virtual_stages: int
    sized_at: int = 0


@dataclass(frozen=True, slots=True, eq=False)
class Options:
    """The lists that columns index.

    `dividing`: only virtual stages that divide a rank's layers; `shared`: shares of the batch sized to the
    speed of replicas, of which there are `mixtures`, and stages to the `slowest` of them; `devices`: kinds of
    device by stage (None: all alike); `modes`: how stages may recompute, first ``none`` whether it may be
    chosen or not, and `recompute`: which; `sizing`: how a pipeline's recompute mode is chosen: the fastest
    that fits by ``stage`` or for the whole ``plan``, or ``each`` is a candidate.
    """

    structures: tuple[Structure, ...]
    placements: tuple[tuple[str, ...], ...]
    sequence_parallel: tuple[int, ...]
    unfused: tuple[int, ...]
    modes: tuple[str, ...]
    recompute: tuple[int, ...]
    tp_overlap: tuple[int, ...]
    microbatches: tuple[int, ...]
    ends: tuple[End, ...]
    dividing: bool = False
    balance: Mapping[int, Balance] = field(default_factory=dict)
    shared: bool = False
    devices: tuple[Kinds | None, ...] = (None,)
    mixtures: tuple[Mixture, ...] = ()
    slowest: tuple[Kinds, ...] = ()
    sizing: str = "stage"

    @property
    def per_stage(self) -> bool:
        """Whether one more plan of every pipeline recomputes what each stage needs."""
        return self.sizing == "stage" and len(self.recompute) > 1

    @property
    def layers(self) -> tuple[int | None, ...]:
        """By mode, the layers of a chunk that it recomputes where it does not treat all alike."""
        return tuple(parse_mode(mode)[1] for mode in self.modes)

    def sizing_kinds(self, devices: int) -> Kinds | None:
        """Return the kinds of device by stage that stages are sized to; None where all are alike."""
        return self.slowest[devices] if self.slowest else self.devices[devices]

    def layers_of(self, structure: int, pp: int, devices: int = 0) -> tuple[int, ...] | None:
        """Return the layers of every chunk where they are sized to their cost, else None.

        None also where another microbatch, that is sized to as well, has them.
        """
        name, v, sized_at = self.structures[structure]
        if sized_at not in self.balance:
            return None
        kinds, owner = self.sizing_kinds(devices), find_schedule(name).rank_of_chunk
        owners = tuple(owner(c, pp, v) for c in range(pp * v))

        def sized(balance: Balance) -> tuple[int, ...] | None:
            if kinds is None:
                return balance.on_ranks(owners)
            return balance.layers(pp * v, tuple(kinds[rank] for rank in owners))

        found = sized(self.balance[sized_at])
        before = (b for size, b in self.balance.items() if size < sized_at)
        return None if any(sized(b) == found for b in before) else found


def distinct(*columns: Ints) -> tuple[Ints, Ints]:
    """Return (an entry of every distinct combination, which combination each entry has).

    Combinations are numbered in mixed radix, in order of the first column, then of the next; where that would
    overflow, what was joined so far and the next column are renumbered.
    """
    code = np.zeros(len(columns[0]), dtype=np.int64)
    top = 1
    for column in columns:
        size = int(column.max(initial=0)) + 1
        if top * size > MOST_NUMBERED:
            _, code = np.unique(code, return_inverse=True)
            _, column = np.unique(column, return_inverse=True)
            top, size = int(code.max(initial=0)) + 1, int(column.max(initial=0)) + 1
        code = code * size + column
        top *= size
    _, first, row = np.unique(code, return_index=True, return_inverse=True)
    return first, row.ravel()


class Tally:
    """Counts candidates and rejections; adds whole blocks at once."""

    def __init__(self) -> None:
        self.candidates = 0
        self.rejected: Counter[str] = Counter()

    def reject(self, rule: str, count: float) -> None:
        """Count rejections under a rule."""
        if count:
            self.rejected[rule] += int(count)


def options_of(
    space: Space,
    model: Model,
    job: Job,
    ends: tuple[End, ...],
    *,
    tp_overlaps: bool,
    balance: Mapping[int, Balance],
    sizing: str = "stage",
) -> Options:
    """Return the lists of a space; values that change nothing for this model or stack are left out."""
    attention = model.family in ATTENTION_FAMILIES
    overlap = space.of("overlap.tensor_parallel")
    if len(overlap) > 1:  # where the stack can, pipelining is never slower: it only takes exposed time away
        overlap = (tp_overlaps,)
    sizes = USUAL_MICROBATCHES if space.cut("microbatch") else MICROBATCHES
    modes = modes_of(space)
    return Options(
        structures=_structures(space, balance),
        placements=space.of("placement"),
        sequence_parallel=tuple(int(v) for v in space.of("sequence_parallel")),
        unfused=tuple(int(v == "unfused") for v in space.of("attention")) if attention else (0,),
        modes=modes,
        recompute=tuple(sorted(modes.index(v) for v in space.of("recompute"))),
        tp_overlap=tuple(int(v) for v in overlap),
        microbatches=space.of("microbatch", microbatches_of(job, sizes)),
        ends=ends,
        dividing=space.cut("virtual_stages"),
        sizing=sizing,
        balance=balance,
    )


def microbatches_of(job: Job, sizes: Iterable[int]) -> list[int]:
    """Return the microbatches to try: `sizes`, and larger ones where samples are short.

    Examples
    --------
    >>> microbatches_of(Job(global_batch=96, seq_len=512), (1, 2, 4, 8, 16))
    [1, 2, 4, 8, 16, 24, 32]
    """
    batch, most = job.global_batch, min(job.global_batch, SHORT_TOKENS // job.seq_len)
    divisors = {m for m in range(max(USUAL_MICROBATCHES) + 1, most + 1) if batch % m == 0}
    return sorted(divisors.union(m for m in sizes if m <= batch))


def modes_of(space: Space) -> tuple[str, ...]:
    """Return ``none`` and the recompute modes of a space, those that repeat whole layers last."""

    def order(mode: str) -> tuple[bool, float]:
        name, layers = parse_mode(mode)
        return name == "full", layers or float(name == "full") * MOST_LAYERS

    others = [mode for mode in dict.fromkeys(space.of("recompute")) if mode != "none"]
    return ("none", *sorted(others, key=order))


def _structures(space: Space, sizes: Iterable[int]) -> tuple[Structure, ...]:
    """Return the structures: the first is for one stage, where the order of work is no choice."""
    names = space.of("schedule")
    single = "1f1b" if "1f1b" in names else names[0]
    found: list[tuple[str, int]] = []
    for name in names:
        depth = {"interleaved": VIRTUAL_STAGES, "zbv": (2,), "dualpipev": (2,)}.get(name, (1,))
        found += [(name, v) for v in depth if space.allows("virtual_stages", v)]
        if space.fixed("virtual_stages") and name == "interleaved":
            found += [(name, v) for v in space.of("virtual_stages") if v not in depth and v > 1]
    sized = [
        Structure(name, v, size)
        for name, v in found
        for choice in space.of("stage_layers")
        if choice == "even" or name not in V_SHAPED
        for size in ((0,) if choice == "even" else sizes)
    ]
    return (Structure(single, 1), *sized)
