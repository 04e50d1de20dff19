"""Quantisation exchanged in two hops: scatter the pieces by all-to-all, add them, gather the sums.

A quantised array cannot be added on the wire, so each rank receives its piece from all others (all-to-all),
decodes and adds in fp32, encodes the sum and hands it to everybody (all-gather): ``2 (p-1)/p`` payloads per
rank like a ring all-reduce, whatever the number of ranks.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar

from plansim.costs.compression.base import CompressionMethod, Traffic, Transfer, unknown_operation
from plansim.costs.compression.work import Work
from plansim.costs.compression.zeropp import nodes_of, with_hops
from plansim.hardware.fabric import GroupShape

ADD = Work(streamed_bytes=8.0)
"""Adding a decoded piece: read and write the sum."""


class TwoHop(CompressionMethod):
    """Base of the methods that quantise whole messages.

    Subclasses say what one element costs to encode and to decode; this class says how often that happens.
    """

    edges: ClassVar[frozenset[str]] = frozenset({"gradients", "parameters", "activations", "outer"})
    run_edges: ClassVar[frozenset[str]] = frozenset({"gradients", "parameters", "activations"})
    shards: ClassVar[bool] = True

    @abstractmethod
    def encode_once(self, options: Mapping[str, Any], fused: bool = False) -> Work:
        """Return the work of encoding one element from fp32."""

    @abstractmethod
    def decode_once(self, options: Mapping[str, Any], fused: bool = False) -> Work:
        """Return the work of decoding one element to fp32."""

    def wire(
        self, operation: str, traffic: Traffic, ranks: int, options: Mapping[str, Any] | None = None
    ) -> tuple[Transfer, ...]:
        """Return all-to-all and all-gather for a reduction, one hop for the others."""
        payload = self.payload_bytes(traffic, options)
        hops = {
            "all_reduce": ("all_to_all", "all_gather"),
            "reduce_scatter": ("all_to_all",),
            "all_gather": ("all_gather",),
            "send_recv": ("send_recv",),
        }
        if operation not in hops:
            raise unknown_operation(self.name, operation)
        return tuple(Transfer(collective=hop, nbytes=payload) for hop in hops[operation])

    def wire_on(
        self, operation: str, traffic: Traffic, group: GroupShape, options: Mapping[str, Any] | None = None
    ) -> tuple[Transfer, ...]:
        """Return the hops; the sum is made inside each node first, unless that is switched off."""
        flat = super().wire_on(operation, traffic, group, options)
        if not self.resolve(options).get("hierarchical"):
            return flat
        return with_hops(flat, self.payload_bytes(traffic, options), group)

    def decode_work_on(
        self, traffic: Traffic, group: GroupShape, options: Mapping[str, Any], fused: bool = False
    ) -> Work:
        """Return decoding; a sum inside the node is encoded, sent on, and decoded once more."""
        work = super().decode_work_on(traffic, group, options, fused)
        if not options.get("hierarchical") or nodes_of(group) == 1:
            return work
        again = self.encode_once(options, fused) + self.decode_once(options, fused) + ADD
        return work + again.scaled(1 / group.counts[0])

    def staging_bytes(self, traffic: Traffic, options: Mapping[str, Any] | None = None) -> float:
        """Return rows, scaled rows and decoded rows in fp32, and the codes that leave and arrive."""
        return 12.0 * traffic.num_elements + 2.0 * self.payload_bytes(traffic, options)

    def encode_work(self, traffic: Traffic, options: Mapping[str, Any], fused: bool = False) -> Work:
        """Return the work before the first hop: the whole message once."""
        return self.encode_once(options, fused)

    def receive_work(self, traffic: Traffic, options: Mapping[str, Any], fused: bool = False) -> Work:
        """Return decoding a message that nobody adds to."""
        return self.decode_once(options, fused)

    def decode_work(
        self, traffic: Traffic, ranks: int, options: Mapping[str, Any], fused: bool = False
    ) -> Work:
        """Return decoding and adding all pieces, encoding the sum (1/p), decoding the gathered sums."""
        encode, decode = self.encode_once(options, fused), self.decode_once(options, fused)
        return decode + ADD + encode.scaled(1 / max(ranks, 1)) + decode
