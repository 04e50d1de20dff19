"""A testbed as a hardware profile, so that plans are made for it like for any cluster."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import groupby

from plansim.execute.netns import BURST_BYTES
from plansim.execute.testbed import TestbedSpec
from plansim.hardware.device import Device
from plansim.hardware.fabric import FabricLevel
from plansim.hardware.profile import NodeGroup, Profile
from plansim.hardware.read import at_speed


def profile_of_testbed(spec: TestbedSpec, base: Profile) -> Profile:
    """Return the profile of a testbed on a machine that `base` describes.

    A device is a rank's place; a node is a host. Ranks on one host talk as `base` says, hosts over links
    of the shaped rate, headers included (unshaped: as `base` says too). Unequal rates are described by
    the slowest, since every collective waits for it. Hosts with a part of a core compute so much slower.
    However many hosts there are, they share the cores of one machine.

    Parameters
    ----------
    spec : TestbedSpec
    base : Profile
        The machine itself, as ``plansim calibrate`` wrote it.
    """
    inner = base.fabric[0]
    fabric = (replace(inner, group=spec.ranks_per_host), _links(spec, inner))
    cores = max(1, base.host.cores // spec.hosts)
    given = [c for c in spec.cores if c is not None]
    if given:
        cores = max(1, min(cores, int(min(given))))
    return replace(
        base,
        name=f"testbed-{spec.hosts}x{spec.ranks_per_host}",
        groups=tuple(_groups(spec, base.device)),
        fabric=fabric if spec.ranks_per_host > 1 else fabric[1:],
        host=replace(base.host, cores=cores, memory_bytes=base.host.memory_bytes / spec.hosts),
        calibration={**base.calibration, "shared_cores": base.host.cores, **_burst(spec)},
        sources={**base.sources, f"fabric.{_links(spec, inner).name}": _source(spec)},
    )


def _groups(spec: TestbedSpec, device: Device) -> Iterator[NodeGroup]:
    """Yield runs of hosts at one speed: what is below a core slows a rank down by as much."""
    for speed, hosts in groupby(1.0 if c is None else min(1.0, c) for c in spec.cores):
        yield NodeGroup(device=at_speed(device, speed), devices=spec.ranks_per_host, count=len(list(hosts)))


def _links(spec: TestbedSpec, inner: FabricLevel) -> FabricLevel:
    shaped = [rate for rate in spec.rates_bytes_per_s if rate is not None]
    bandwidth = min([inner.bandwidth_bytes_per_s, *shaped])
    return replace(inner, name="links", kind="switch", group=None, bandwidth_bytes_per_s=bandwidth)


def _burst(spec: TestbedSpec) -> dict[str, float]:
    """Return what a shaped link passes at once after a pause, bytes."""
    shaped = any(rate is not None for rate in spec.rates_bytes_per_s)
    return {"link_burst_bytes": float(BURST_BYTES)} if shaped else {}


def _source(spec: TestbedSpec) -> str:
    shaped = [rate for rate in spec.rates_bytes_per_s if rate is not None]
    if not shaped:
        return "as the machine itself: links are not shaped"
    return f"set: htb at {min(shaped) * 8:.0f} bit/s on both ends of every link, headers counted"
