"""Collectives of a CPU host as a step pays for them: measured inside the machine, longer over slow links.

A collective takes what was measured between computing, in the wrapper that makes it. A link slower than the
machine's loopback adds to that: the CPU and the wire work partly at the same time (`gloo_joint_s`), a shaped
link lets a burst pass at once after a pause, and a core that stood still longer restarts slower.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from plansim.costs.collectives import gloo_joint_s, gloo_wire_s
from plansim.costs.compression import Traffic, decode_s, encode_s, find_method, rates_of

if TYPE_CHECKING:
    from plansim.costs.hostdata import HostCalibration
    from plansim.costs.layout import Layout
    from plansim.plan.model import Method

ELEMENT_BYTES = 4.0
"""Gradients and weights on a CPU are fp32."""


@dataclass(frozen=True, slots=True)
class HostLinks:
    """Prices the collectives of a plan on a calibrated CPU host.

    Attributes
    ----------
    clock : str
        What communication is counted in: ``wall`` seconds; ``cpu`` seconds of one rank, where ranks share
        cores; or ``wire``, the seconds that a slow link takes beyond those.
    """

    layout: Layout
    host: HostCalibration
    clock: str = "wall"

    def collective_s(
        self,
        collective: str,
        nbytes: float,
        ranks: int,
        axis: str,
        *,
        wrapper: str = "",
        pause_s: float = float("inf"),
    ) -> float:
        """Return seconds over the groups of `axis`.

        Parameters
        ----------
        wrapper : str
            Who makes it: ``cut`` (DTensor), ``sequence`` (DTensor, a reduce-scatter and an all-gather behind
            it, half their time each), ``sharded`` (`fully_shard`), or nobody.
        pause_s : float
            How long ranks computed before, seconds: so long they drifted apart, and a link's burst filled up.
        """
        measured = self._measured_s(collective, nbytes, ranks, wrapper=wrapper, apart_s=pause_s)
        if self.clock == "cpu":
            return measured
        wire = self.wire_s(collective, nbytes, axis)
        beyond = self._beyond_s(collective, measured, wire - self._burst_s(axis, pause_s))
        return beyond if self.clock == "wire" else measured + beyond

    def coded_s(
        self,
        operation: str,
        nbytes: float,
        ranks: int,
        axis: str,
        given: Method,
        *,
        wrapper: str = "",
        pause_s: float = float("inf"),
    ) -> float:
        """Return the seconds of `operation` on messages that a method of compression codes.

        Where it was measured with its coding, a slow link adds what its own messages take longer there;
        where it was not, the coding rates of the profile are added to the collectives that it is made of.
        """
        if given.method == "none":
            return self.collective_s(operation, nbytes, ranks, axis, wrapper=wrapper, pause_s=pause_s)
        method = find_method(given.method)
        traffic = Traffic(
            num_elements=nbytes / ELEMENT_BYTES, element_bytes=ELEMENT_BYTES, matrix=self.layout.matrix
        )
        sent = method.wire(operation, traffic, ranks, method.resolve(given.options))
        coded = f"{wrapper}:{operation}:{given.method}" if wrapper else f"{operation}:{given.method}"
        known = self.host.collective_s(coded, nbytes, ranks, cpu=self.clock != "wall")
        parts = [
            self._measured_s(
                t.collective,
                t.nbytes,
                ranks,
                wrapper=wrapper if t.collective == operation else "",
                apart_s=pause_s,
            )
            for t in sent
        ]
        if known is None:
            busy = sum(parts) + self._coding_s(given, traffic, ranks)
        else:
            plain = f"{wrapper}:{operation}" if wrapper else operation
            busy = known - self._sooner_s(plain, ranks, pause_s)
        if self.clock == "cpu":
            return busy
        wires = [self.wire_s(t.collective, t.nbytes, axis) for t in sent]
        saved = self._burst_s(axis, pause_s)  # the rounds follow each other: one burst for all
        whole = sum(wires)
        left = max(0.0, whole - saved) / whole if whole > 0 else 0.0
        beyond = sum(
            self._beyond_s(t.collective, m, w * left) for t, m, w in zip(sent, parts, wires, strict=True)
        )
        return beyond if self.clock == "wire" else busy + beyond

    def _coding_s(self, given: Method, traffic: Traffic, ranks: int) -> float:
        profile = self.layout.profile
        rates, device = rates_of(profile.device, profile.calibration), profile.device
        coding = encode_s(given.method, traffic, device, given.options, rates)
        return coding + decode_s(given.method, traffic, ranks, device, given.options, rates)

    def _measured_s(
        self, collective: str, nbytes: float, ranks: int, *, wrapper: str = "", apart_s: float = float("inf")
    ) -> float:
        """Return what was measured inside the machine; what never was costs as its nearest relative."""
        cpu = self.clock != "wall"
        for name in (f"{wrapper}:{collective}", collective, "all_reduce"):
            found = self.host.collective_s(name, nbytes, ranks, cpu=cpu)
            if found is not None:
                return found - self._sooner_s(name, ranks, apart_s)
        return 0.0

    def _sooner_s(self, collective: str, ranks: int, apart_s: float) -> float:
        """Return what a collective of all ranks takes less where they met `apart_s` ago, seconds.

        CPU time is left as it is, and so are sends: what a pipeline's stages wait for each other is in its
        order.
        """
        if self.clock != "wall" or collective in ("send_recv", "broadcast", "reduce"):
            return 0.0
        share = self.host.meeting_share(ranks, apart_s)
        return (1.0 - share) * self.host.fixed_s(collective, ranks)

    def wire_s(self, collective: str, nbytes: float, axis: str) -> float:
        """Return how long a collective keeps links busy that are slower than this machine's loopback."""
        layout = self.layout
        return gloo_wire_s(
            collective, nbytes, layout.group(axis), layout.fabric,
            below_bytes_per_s=self.host.loopback_bytes_per_s,
        )  # fmt: skip

    def _burst_s(self, axis: str, pause_s: float) -> float:
        """Return the seconds that a shaped link saves because it was idle before."""
        if not self.host.link_burst_bytes:
            return 0.0
        return min(pause_s, self.wire_s("send_recv", self.host.link_burst_bytes, axis))

    def _beyond_s(self, collective: str, measured_s: float, wire_s: float) -> float:
        """Return what a wire that is busy so long adds to what was measured without it."""
        if wire_s <= 0:
            return 0.0
        joint = gloo_joint_s(collective, measured_s, wire_s)
        return joint - measured_s + self.host.restart_s(joint) - self.host.restart_s(measured_s)
