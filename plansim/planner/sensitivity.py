"""What another cluster or another batch would mean: changes of one input each, and how they are judged."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace

from plansim.errors import PlansimError
from plansim.hardware.profile import Profile
from plansim.plan.model import Job

STEP = 0.1
"""How much better each part of the cluster is made."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """A cluster and a job that differ in one input from those asked about."""

    name: str
    profile: Profile
    job: Job


def upgrades(profile: Profile, job: Job, step: float = STEP) -> Iterator[Change]:
    """Yield what could be bought: a faster network, by level, more memory, faster compute; a larger batch.

    Examples
    --------
    >>> from plansim.hardware.read import load_profile
    >>> [c.name for c in upgrades(load_profile("a100x8"), Job(global_batch=8, seq_len=128))]
    ['nvlink 10 % faster', 'memory 10 % larger', 'compute 10 % faster', 'global batch twice, 16']
    """
    words = f"{step:.0%}".replace("%", " %")
    joined = 1
    for i, level in enumerate(profile.fabric):
        if joined < profile.num_devices:  # a level beyond the whole cluster joins nothing
            faster = with_bandwidth(profile, i, 1.0 + step)
            yield Change(name=f"{level.name} {words} faster", profile=faster, job=job)
        joined = level.group or profile.num_devices
    yield Change(name=f"memory {words} larger", profile=with_memory(profile, 1.0 + step), job=job)
    yield Change(name=f"compute {words} faster", profile=with_compute(profile, 1.0 + step), job=job)
    yield Change(
        name=f"global batch twice, {2 * job.global_batch:,}", profile=profile, job=with_batch(job, 2.0)
    )


def risks(profile: Profile, job: Job) -> Iterator[Change]:
    """Yield what could turn out otherwise: network, batch, price, failures, restarts and storage."""
    outer = profile.fabric[-1]
    for words, factor in (("twice as fast", 2.0), ("half as fast", 0.5)):
        other = with_bandwidth(profile, len(profile.fabric) - 1, factor)
        yield Change(name=f"{outer.name} {words}", profile=other, job=job)
    for words, factor in (("doubled", 2.0), ("halved", 0.5)):
        batch = with_batch(job, factor)
        yield Change(name=f"global batch {words}, to {batch.global_batch:,}", profile=profile, job=batch)
    money = profile.economics
    if money.usd_per_device_hour:
        for percent in (25, -25):
            price = money.usd_per_device_hour * (1 + percent / 100)
            dearer = replace(profile, economics=replace(money, usd_per_device_hour=price))
            yield Change(name=f"price {percent:+d} %", profile=dearer, job=job)
    often = profile.reliability
    for words, factor in (("twice as often", 0.5), ("half as often", 2.0)):
        failing = replace(often, mtbf_device_hours=often.mtbf_device_hours * factor)
        yield Change(name=f"devices fail {words}", profile=replace(profile, reliability=failing), job=job)
    slower = replace(often, restart_s=often.restart_s * 4)
    yield Change(
        name="restarts take four times as long", profile=replace(profile, reliability=slower), job=job
    )
    host = profile.host
    disk = replace(host, storage_write_bytes_per_s=host.storage_write_bytes_per_s / 4)
    yield Change(name="storage writes a quarter as fast", profile=replace(profile, host=disk), job=job)


def with_bandwidth(profile: Profile, level: int, factor: float) -> Profile:
    """Return the profile with one level of its fabric faster."""
    fabric = list(profile.fabric)
    bandwidth = fabric[level].bandwidth_bytes_per_s * factor
    fabric[level] = replace(fabric[level], bandwidth_bytes_per_s=bandwidth)
    return replace(profile, fabric=tuple(fabric))


def with_memory(profile: Profile, factor: float) -> Profile:
    """Return the profile with larger device memory."""
    groups = (
        replace(g, device=replace(g.device, memory_bytes=g.device.memory_bytes * factor))
        for g in profile.groups
    )
    return replace(profile, groups=tuple(groups))


def with_compute(profile: Profile, factor: float) -> Profile:
    """Return the profile with faster arithmetic of every data type; memory stays as fast as it is."""
    groups = (
        replace(
            g,
            device=replace(
                g.device, peak_flop_per_s={k: v * factor for k, v in g.device.peak_flop_per_s.items()}
            ),
        )
        for g in profile.groups
    )
    return replace(profile, groups=tuple(groups))


def with_batch(job: Job, factor: float) -> Job:
    """Return the job with another global batch."""
    return replace(job, global_batch=max(1, round(job.global_batch * factor)))


def judged(changes: Iterable[Change], measure: Callable[[Change], float]) -> list[tuple[Change, float]]:
    """Return the measure of every change; those without an answer are left out."""
    found = []
    for change in changes:
        try:
            found.append((change, measure(change)))
        except PlansimError:
            continue
    return found
