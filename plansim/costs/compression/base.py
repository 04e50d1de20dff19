"""What a compression method is: bytes, collectives, coding work, memory and its effect on learning."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from math import isqrt
from typing import Any, ClassVar

from plansim.costs.compression.options import Option, checked
from plansim.costs.compression.work import Work
from plansim.errors import PlanError
from plansim.hardware.device import Device
from plansim.hardware.fabric import GroupShape

OPERATIONS = ("all_reduce", "reduce_scatter", "all_gather", "send_recv")
"""What an edge does without compression; a method replaces it by transfers of its own."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Traffic:
    """One message before compression, as one rank holds it.

    Attributes
    ----------
    num_elements : float
        Elements of the whole array: what is reduced, or what all ranks hold after a gather.
    element_bytes : float
        Bytes of one element as it would be sent without compression (2 in 16-bit training, 4 in fp32 runs).
    matrix : tuple of int or None
        Rows and columns of a typical weight matrix in the message; None means one square matrix.
    matrices : tuple of (rows, columns, count)
        Every matrix of the message, where they are known one by one; replaces `matrix`.
    vector_elements : float
        Elements of biases and norms among `num_elements`: low-rank methods send them as they are.
    num_tensors : float
        Tensors that are coded one by one; 1 where a bucket is coded whole, as the hooks of `plansim run` do.
    """

    num_elements: float
    element_bytes: float = 2.0
    matrix: tuple[int, int] | None = None
    matrices: tuple[tuple[int, int, float], ...] = ()
    vector_elements: float = 0.0
    num_tensors: float = 1.0

    def __post_init__(self) -> None:
        if self.num_elements < 0 or self.element_bytes <= 0:
            raise PlanError(
                f"traffic of {self.num_elements} elements of {self.element_bytes} bytes makes no sense"
            )
        if self.num_tensors < 1:
            raise PlanError(f"a message holds at least one tensor, got num_tensors {self.num_tensors}")

    @property
    def nbytes(self) -> float:
        """Bytes without compression."""
        return self.num_elements * self.element_bytes

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns of the matrices in the message."""
        side = max(1, isqrt(int(max(self.num_elements - self.vector_elements, 1))))
        return self.matrix or (side, side)

    @property
    def shapes(self) -> tuple[tuple[int, int, float], ...]:
        """Rows, columns and number of the matrices: those given, or typical ones that fill the message."""
        if self.matrices:
            return self.matrices
        rows, columns = self.shape
        return ((rows, columns, (self.num_elements - self.vector_elements) / (rows * columns)),)


@dataclass(frozen=True, slots=True, kw_only=True)
class Transfer:
    """One collective on the wire. `nbytes` is the whole array, as everywhere in the collective costs.

    For ``all_reduce``, ``reduce_scatter`` and ``all_to_all`` that is what each rank holds at the start, for
    ``all_gather`` what each rank holds at the end, for ``send_recv`` the message. Transfers of one method are
    dependent rounds: the next starts when the one before has finished. `across` says who takes part: the
    whole ``group``, its ranks in one ``node``, or one rank of each of its ``nodes``.
    """

    collective: str
    nbytes: float
    across: str = "group"

    def sent_bytes(self, ranks: int) -> float:
        """Return what one rank sends when the collective is bandwidth-optimal, bytes."""
        if self.collective == "send_recv":
            return self.nbytes
        share = (ranks - 1) / ranks
        return self.nbytes * share * (2 if self.collective == "all_reduce" else 1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Inflation:
    """Steps to the same loss as a factor of the uncompressed steps: at best, at worst, and who says so."""

    low: float
    high: float
    source: str

    def __post_init__(self) -> None:
        if not 1.0 <= self.low <= self.high:
            raise PlanError(f"step inflation must be 1 <= low <= high, got {self.low} and {self.high}")

    @property
    def expected(self) -> float:
        """The middle of the band."""
        return (self.low + self.high) / 2


PROXY = "character-level GPT (0.25 M parameters), AdamW, 4 workers, 300 steps, 3 seeds"
"""A small training run that measured every method alike; short runs overstate what long ones recover."""

LOSSLESS = Inflation(low=1.0, high=1.0, source="nothing is lost")


class CompressionMethod(ABC):
    """A way to send fewer bytes over one edge of the communication graph.

    A method is five functions (payload, wire, coding time, memory, step inflation) beside what it supports.
    It has no state: every function takes the options of the plan, checked by `resolve`.
    """

    name: ClassVar[str]
    summary: ClassVar[str]
    source: ClassVar[str]
    edges: ClassVar[frozenset[str]] = frozenset({"gradients"})
    options: ClassVar[tuple[Option, ...]] = ()
    run_edges: ClassVar[frozenset[str]] = frozenset({"gradients"})
    """Where `plansim run` has a hook for it; on its other edges it is simulated only."""
    blocking: ClassVar[bool] = True
    """Whether the exchange holds up the backward pass: its rounds need the device between them."""
    error_feedback: ClassVar[bool] = False
    """Whether each rank keeps what it did not send, 4 bytes per element."""
    shards: ClassVar[bool] = False
    """Whether it can replace the reduce-scatter of sharded gradients."""

    def resolve(self, options: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """Return the options with defaults filled in.

        Raises
        ------
        PlanError
            For an unknown option or a value out of its range; says what would be accepted.
        """
        return checked(self.name, self.options, options or {})

    @property
    def executable(self) -> bool:
        """Whether it can be run on any edge."""
        return bool(self.run_edges)

    @abstractmethod
    def payload_bytes(self, traffic: Traffic, options: Mapping[str, Any] | None = None) -> float:
        """Return the bytes of the encoded message on one rank."""

    @abstractmethod
    def wire(
        self, operation: str, traffic: Traffic, ranks: int, options: Mapping[str, Any] | None = None
    ) -> tuple[Transfer, ...]:
        """Return the transfers that replace `operation`, in order."""

    def wire_on(
        self, operation: str, traffic: Traffic, group: GroupShape, options: Mapping[str, Any] | None = None
    ) -> tuple[Transfer, ...]:
        """Return the transfers on a group whose place on the fabric is known."""
        return self.wire(operation, traffic, group.size, options)

    def decode_work_on(
        self, traffic: Traffic, group: GroupShape, options: Mapping[str, Any], fused: bool = False
    ) -> Work:
        """Return what decoding asks on such a group."""
        return self.decode_work(traffic, group.size, options, fused)

    @abstractmethod
    def encode_work(self, traffic: Traffic, options: Mapping[str, Any], fused: bool = False) -> Work:
        """Return what encoding one message asks of the device."""

    @abstractmethod
    def decode_work(
        self, traffic: Traffic, ranks: int, options: Mapping[str, Any], fused: bool = False
    ) -> Work:
        """Return what decoding asks, all messages that one rank receives together."""

    def receive_work(self, traffic: Traffic, options: Mapping[str, Any], fused: bool = False) -> Work:
        """Return what decoding one message from one sender asks."""
        return self.decode_work(traffic, 1, options, fused)

    @abstractmethod
    def step_inflation(self, options: Mapping[str, Any] | None = None) -> Inflation:
        """Return how many more steps the same loss takes."""

    def extra_memory_bytes(self, traffic: Traffic, options: Mapping[str, Any] | None = None) -> float:
        """Return lasting memory beyond the uncompressed job's: error feedback and warm-start state, bytes."""
        return (
            4.0 * traffic.num_elements
            if self.resolve(options).get("error_feedback", self.error_feedback)
            else 0.0
        )

    def staging_bytes(self, traffic: Traffic, options: Mapping[str, Any] | None = None) -> float:
        """Return what a plain tensor implementation holds for one message while it is exchanged, bytes."""
        return 0.0

    def period(self, options: Mapping[str, Any] | None = None) -> int:
        """Return the steps between two exchanges."""
        return 1

    def supports(
        self, edge: str, *, zero_stage: int = 0, backend: str = "nccl", device: Device | None = None
    ) -> str | None:
        """Return why the method cannot serve `edge`, and what would; None when it can."""
        if edge not in self.edges:
            return f"{self.name} does not work on {edge}; it works on {', '.join(sorted(self.edges))}"
        if edge == "gradients" and zero_stage >= 2 and not self.shards:
            return (
                f"{self.name} needs the whole local gradient, ZeRO stage {zero_stage} keeps a shard; "
                "use zero_stage 0 or 1, or one of bf16, fp16, fp8, int8, int4"
            )
        if edge == "parameters" and zero_stage < 1:
            return (
                f"{self.name} on parameters needs an all-gather of sharded weights: "
                f"zero_stage 1 to 3, got {zero_stage}"
            )
        return None


def unknown_operation(method: str, operation: str) -> PlanError:
    """Return the error for an operation that a method cannot replace."""
    return PlanError(f"{method} cannot replace {operation}; operations are {', '.join(OPERATIONS)}")
