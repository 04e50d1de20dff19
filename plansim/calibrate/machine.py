"""A profile of this machine: everything measured, fitted to curves, with date, versions and spread."""

from __future__ import annotations

import datetime
import os
import platform
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from plansim.calibrate.coding import measure_coding
from plansim.calibrate.collectives import averaged, fitted_lines, measure_collectives
from plansim.calibrate.compute import ComputeSamples, measure_compute
from plansim.calibrate.contention import measure_contention
from plansim.calibrate.frameworks import measure_frameworks
from plansim.calibrate.meeting import measure_meeting, shares
from plansim.calibrate.pace import PIECE_S, joined, watch_pace
from plansim.calibrate.ranks import own_core
from plansim.calibrate.untimed import measure_untimed
from plansim.calibrate.within import restart_costs
from plansim.costs.compute.fit import fit_attention_curve, fit_matmul_curve, fit_memory_curve
from plansim.errors import ExecutionError
from plansim.execute import system
from plansim.execute.launch import Rendezvous, launch
from plansim.hardware.curves import MemoryCurve
from plansim.hardware.device import Device
from plansim.hardware.fabric import FabricLevel
from plansim.hardware.profile import Economics, Host, NodeGroup, Profile, Reliability

Say = Callable[[str], None]
SLOTS_PER_CORE = 2
"""Ranks a core may host: a profile of two cores can run, and predict, four ranks."""


def calibrate(name: str = "local-cpu", *, device: str = "cpu", say: Say = lambda _: None) -> Profile:
    """Return a profile of this machine, measured in about five minutes.

    Parameters
    ----------
    name : str
        Name of the profile.
    device : str
        ``cpu`` or ``cuda`` (one GPU; its links come from `--nccl-tests` and `--topo`).
    say : callable
        Told what is being measured.
    """
    if device == "cuda" and not torch.cuda.is_available():
        raise ExecutionError("no CUDA device is available here; calibrate with --device cpu")
    say("matrix products, memory-bound kernels, attention, optimizer")
    samples = launch(partial(_compute, device), 1, timeout_s=300.0, fork=device == "cpu")[0]
    return _cpu_profile(name, samples, say) if device == "cpu" else _cuda_profile(name, samples)


def _compute(device: str, meet: Rendezvous) -> ComputeSamples:
    if device == "cpu":
        own_core(meet.rank)
    return measure_compute(device)


def _coding(meet: Rendezvous) -> tuple[dict[str, Any], list[list[float]]]:
    own_core(meet.rank)
    return measure_coding(torch.device("cpu")), restart_costs()


def _cpu_profile(name: str, samples: ComputeSamples, say: Say) -> Profile:
    cores = os.cpu_count() or 1
    groups = tuple(n for n in (2, 4) if n <= SLOTS_PER_CORE * cores)
    paces = [watch_pace(cores)]
    say("cores shared by ranks")
    sharing = measure_contention(cores)
    paces.append(watch_pace(cores))
    say("coding of compressed messages")
    coding, restart = launch(_coding, 1, timeout_s=120.0)[0]
    paces.append(watch_pace(cores))
    say("framework overheads")
    frameworks = measure_frameworks() | measure_untimed()
    paces.append(watch_pace(cores))
    relative = []  # times in passes of the pace, which is known at the end
    for ranks in sorted([*groups, *(n for n in groups if n <= cores)]):  # wall times drift: measured twice
        say(f"gloo collectives of {ranks} ranks, plain and compressed")
        relative += measure_collectives((ranks,), pace_s=1.0, shared_pace=sharing.pace)
        paces.append(watch_pace(cores, seconds=2 * PIECE_S))
    say("collectives right after another, and after long computing")
    meeting = {ranks: measure_meeting(ranks) for ranks in groups if ranks <= cores}
    paces.append(watch_pace(cores))
    pace = joined(paces)
    pace_s = float(f"{pace.pass_s:.4g}")
    lines = fitted_lines(
        [replace(s, wall_s=s.wall_s * pace_s, cpu_s=s.cpu_s * pace_s) for s in averaged(relative)]
    )
    memory = float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    slots = SLOTS_PER_CORE * cores
    fitted = _fitted_device(_bare_cpu(samples, memory / slots), samples)
    link = next(line for line in lines if line["collective"] == "send_recv" and line["ranks"] == groups[0])
    level = FabricLevel(
        name="loopback", kind="switch", bandwidth_bytes_per_s=1.0 / max(link["s_per_byte"], 1e-12),
        latency_s=link["base_s"], transport="gloo-tcp",
    )  # fmt: skip
    return Profile(
        name=name,
        groups=(NodeGroup(device=fitted, devices=slots, count=1),),
        fabric=(level,),
        backend="gloo",
        host=Host(cores=cores, memory_bytes=memory),
        economics=Economics(power_watts=10.0, pue=1.0, basis="your own machine"),
        reliability=Reliability(),
        calibration={
            **_stamp(samples),
            "pace_s": pace_s,
            "pace_watched_s": pace.watched_s,
            "slowest_core": float(f"{pace.slowest:.4g}"),
            "collectives": lines,
            "meeting": [{"ranks": n, "shares": shares(p, pace_s)} for n, p in meeting.items()],
            "frameworks": frameworks,
            "contention": sharing.work,
            "contention_pace": sharing.pace,
            "coding": coding,
            "restart": restart,
        },
        sources={"all": f"measured: plansim calibrate, {_today()}"},
    )


def _bare_cpu(samples: ComputeSamples, memory_bytes: float) -> Device:
    """Return one core with the best rates seen as its datasheet; curves say what is reached of them."""
    peaks = {dtype: max(2 * m * n * k / s for m, n, k, s in rows) for dtype, rows in samples.products.items()}
    return Device(
        id="this-cpu-core",
        name=f"one core of {system.hardware('cpu')['cpu']}",
        architecture=platform.machine(),
        kind="cpu",
        year=datetime.datetime.now(tz=datetime.UTC).year,
        memory_bytes=memory_bytes,
        memory_bandwidth_bytes_per_s=max(n / s for n, s in samples.streams[-2:]),
        peak_flop_per_s={d: float(f"{p:.4g}") for d, p in peaks.items()},
        l2_bytes=2.0**20,
        sources={"all": "measured by plansim calibrate: the best rate seen"},
    )


def _fitted_device(bare: Device, samples: ComputeSamples) -> Device:
    matmul = {d: fit_matmul_curve(bare, d, rows, short_s=0.0) for d, rows in samples.products.items()}
    memory: MemoryCurve = fit_memory_curve(bare, samples.streams)
    with_products = replace(bare, matmul=matmul, memory=memory)
    attention = {
        d: fit_attention_curve(with_products, d, rows, short_s=0.0) for d, rows in samples.attention.items()
    }
    return replace(with_products, attention=attention)


def _cuda_profile(name: str, samples: ComputeSamples) -> Profile:
    from plansim.errors import UnknownNameError
    from plansim.hardware.catalog import find_device

    properties = torch.cuda.get_device_properties(0)
    count = torch.cuda.device_count()
    sized = f"{properties.name} {round(properties.total_memory / 1e9)}gb"
    base = _bare_gpu(properties, samples)
    for known in (properties.name, sized):
        with suppress(UnknownNameError):
            base = find_device(known)
            break
    base = replace(base, memory_bytes=float(properties.total_memory))
    fitted = replace(_fitted_device(base, samples), id=f"this-{base.id}")
    level = FabricLevel(name="pcie", kind="switch", bandwidth_bytes_per_s=25e9, latency_s=8e-6)
    memory = float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    return Profile(
        name=name,
        groups=(NodeGroup(device=fitted, devices=count, count=1),),
        fabric=(level,),
        backend="nccl",
        host=Host(cores=os.cpu_count() or 1, memory_bytes=memory),
        calibration=_stamp(samples),
        sources={"device": f"measured: plansim calibrate, {_today()}", "fabric": "assumed: PCIe 4"},
    )


def _bare_gpu(properties: Any, samples: ComputeSamples) -> Device:
    peaks = {dtype: max(2 * m * n * k / s for m, n, k, s in rows) for dtype, rows in samples.products.items()}
    return Device(
        id="gpu",
        name=properties.name,
        kind="gpu",
        memory_bytes=float(properties.total_memory),
        memory_bandwidth_bytes_per_s=max(n / s for n, s in samples.streams[-2:]),
        peak_flop_per_s={d: float(f"{p:.4g}") for d, p in peaks.items()},
        compute_units=properties.multi_processor_count,
        l2_bytes=float(getattr(properties, "L2_cache_size", 0)),
    )


def _stamp(samples: ComputeSamples) -> dict[str, Any]:
    return {
        "date": _today(),
        "versions": system.versions(),
        "kernel_s": float(f"{samples.kernel_s:.4g}"),
        "autograd_kernel_s": float(f"{samples.autograd_kernel_s:.4g}"),
        "optimizer_s_per_parameter": float(f"{samples.optimizer_s_per_parameter:.4g}"),
    }


def _today() -> str:
    return datetime.datetime.now(tz=datetime.UTC).date().isoformat()


def write_profile(profile: Profile, path: Path) -> None:
    """Write a profile as YAML, whole or not at all."""
    from plansim.files import write_atomic
    from plansim.hardware.write import dump_profile

    head = f"# Written by plansim calibrate on {_today()}: one machine as it was measured.\n"
    write_atomic(path, head + dump_profile(profile))
