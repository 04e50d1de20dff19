"""What a plan decides beside its pipeline: sharding, overlap, offload, aggregation and compression."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

from plansim.costs.compression import find_method
from plansim.hardware.device import Device
from plansim.hardware.stack import Stack
from plansim.plan.model import Compression, Method, Overlap
from plansim.planner.space import Space


@dataclass(frozen=True, slots=True, order=True)
class End:
    """One combination; equal fields mean equal plans. `zero_group` is ``"node"``, a rank count or None."""

    zero_stage: int = 0
    zero_group: str | int | None = None
    overlap_gradients: bool = True
    overlap_parameters: bool = True
    offload: bool = False
    aggregation: str = "all_reduce"
    gradients: str = "none"
    parameters: str = "none"

    @property
    def compression(self) -> Compression:
        """The compression of a plan with this end."""
        return Compression(gradients=Method(method=self.gradients), parameters=Method(method=self.parameters))

    def overlap(self, *, tensor_parallel: bool) -> Overlap:
        """Return the overlap switches of a plan with this end."""
        return Overlap(
            gradients=self.overlap_gradients,
            parameters=self.overlap_parameters,
            tensor_parallel=tensor_parallel,
        )

    @property
    def plain(self) -> bool:
        """Whether it means the same on one replica as the simplest end that only offloads."""
        return (
            self.zero_stage == 0
            and self.zero_group is None
            and self.overlap_gradients
            and self.overlap_parameters
            and self.aggregation == "all_reduce"
            and self.gradients == "none"
            and self.parameters == "none"
        )

    @property
    def inflation(self) -> tuple[float, float]:
        """Factor on the steps to the same loss: at best, at worst."""
        low = high = 1.0
        for name in (self.gradients, self.parameters):
            if name != "none":
                band = find_method(name).step_inflation({})
                low, high = low * band.low, high * band.high
        return low, high

    @property
    def traffic_class(self) -> tuple[Any, ...]:
        """What its traffic and optimizer time depend on."""
        gathered = self.parameters if self.zero_stage else "none"
        exchange = (self.aggregation, self.gradients, gathered)
        return self.zero_stage, self.zero_group, self.overlap_gradients, self.offload, exchange

    @property
    def faster(self) -> tuple[End, ...]:
        """Ends that take no longer and hold more: this one is needed only where those do not fit."""
        found = [replace(self, offload=False)] if self.offload else []
        found += [replace(self, zero_stage=1)] if self.zero_stage == 2 else []
        return tuple(found)

    @property
    def memory_class(self) -> tuple[Any, ...]:
        """What its memory depends on."""
        kept = self.gradients != "none" and find_method(self.gradients).error_feedback
        return self.zero_stage, self.zero_group, self.offload, kept


def ends_of(
    space: Space, stack: Stack, device: Device, backend: str, zero_stages: tuple[int, ...]
) -> tuple[End, ...]:
    """Return the distinct ends that a space allows on one software stack.

    Left out are those that differ from another one in nothing that happens: an overlap switched off that the
    stack never does, a shard group without sharding, methods on edges they cannot serve.
    """
    return tuple(
        e for e in _all(space, zero_stages) if _distinct(e, space, stack) and _served(e, device, backend)
    )


def _all(space: Space, zero_stages: tuple[int, ...]) -> Iterator[End]:
    names = (
        "zero_group",
        "overlap.gradients",
        "overlap.parameters",
        "offload",
        "aggregation",
        "compression.gradients",
        "compression.parameters",
    )
    for zero, *rest in product(
        [z for z in space.of("zero_stage") if z in zero_stages], *(space.of(n) for n in names)
    ):
        yield End(zero, *rest)


def _distinct(end: End, space: Space, stack: Stack) -> bool:
    def chosen(name: str) -> bool:
        return space.fixed(name)

    if end.zero_group is not None and end.zero_stage < (3 if space.cut("zero_group") else 1):
        return False
    if not end.overlap_gradients and not stack.gradient_overlap and not chosen("overlap.gradients"):
        return False
    gathers = end.zero_stage > 0 and stack.parameter_overlap
    if not end.overlap_parameters and not gathers and not chosen("overlap.parameters"):
        return False
    if (
        end.overlap_gradients
        and not end.overlap_parameters
        and not (chosen("overlap.gradients") or chosen("overlap.parameters"))
    ):
        return False  # who can wait for gathers can wait for reductions: one switch less to try
    if end.parameters != "none" and end.zero_stage < 3:
        return False
    server = end.aggregation == "parameter_server"
    return not (server and (end.zero_stage or end.gradients != "none" or end.parameters != "none"))


def _served(end: End, device: Device, backend: str) -> bool:
    for edge, name in (("gradients", end.gradients), ("parameters", end.parameters)):
        if name == "none":
            continue
        method = find_method(name)
        if method.supports(edge, zero_stage=end.zero_stage, backend=backend, device=device):
            return False
        if edge == "gradients" and end.zero_group is not None and not method.shards:
            return False  # it cannot replace a reduce-scatter within shard groups
    return True
