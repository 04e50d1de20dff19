"""Published collective times, each with its source; never regenerated.

Tolerances are those of the model (median error 4 %, 90th percentile 14 to 20 %), not of a figure.
"""

import numpy as np
import pytest

from plansim.costs.collectives import busbw_bytes_per_s, collective_s
from plansim.hardware.fabric import Fabric, FabricLevel, GroupShape

NCCL = "aiconfigurator-core 0.12.0 (PyPI, Apache-2.0), systems/data/*/comm/nccl"
STAS = "stas00/ml-engineering, network/README.md"
AWS = "awsome-distributed-training, micro-benchmarks/nccl-tests README"


def nvlink(generation: int, group: int = 8) -> FabricLevel:
    speed = {3: 300e9, 4: 450e9, 5: 900e9}[generation]
    return FabricLevel(
        name="nvlink",
        kind="switch",
        group=group,
        bandwidth_bytes_per_s=speed,
        latency_s=3e-6,
        in_network_reduction=generation > 3,
        transport=f"nvlink{generation}",
    )


def network(transport: str, bandwidth: float, rails: int, latency: float = 5e-6, **more) -> FabricLevel:
    return FabricLevel(
        name="network",
        kind="fat-tree",
        bandwidth_bytes_per_s=bandwidth,
        latency_s=latency,
        rails=rails,
        transport=transport,
        **more,
    )


A100 = Fabric(levels=(nvlink(3), network("tcp", 12.5e9, 1, 30e-6)), devices_per_node=8)
P4DE = Fabric(levels=(nvlink(3), network("efa-v1", 12.5e9, 4, 20e-6)), devices_per_node=8)
P5 = Fabric(levels=(nvlink(4), network("efa-v2", 12.5e9, 32, 20e-6)), devices_per_node=8)
B200 = Fabric(levels=(nvlink(5), network("efa-v4", 50e9, 8, 20e-6)), devices_per_node=8)
SHARP = Fabric(levels=(nvlink(4), network("ib-ndr", 50e9, 8, in_network_reduction=True)), devices_per_node=8)
NVL72 = Fabric(levels=(nvlink(5, 72), network("ib-ndr", 50e9, 4)), devices_per_node=4)

MEASURED = [
    # what, fabric, members per level, bytes, microseconds, source
    ("all_gather", A100, (2, 1), 2**29, 1789.8, NCCL),
    ("all_gather", A100, (8, 1), 2**29, 2288.0, NCCL),
    ("reduce_scatter", A100, (8, 1), 2**25, 210.0, NCCL),
    ("all_reduce", A100, (8, 1), 2**10, 21.77, NCCL),
    ("all_reduce", A100, (8, 1), 2**29, 4225.9, NCCL),
    ("all_to_all", A100, (8, 1), 2**29, 2313.5, NCCL),
    ("all_gather", P5, (2, 1), 2**11, 5.14, NCCL),
    ("all_gather", P5, (8, 1), 2**25, 125.46, NCCL),
    ("reduce_scatter", P5, (8, 1), 2**29, 1399.36, NCCL),
    ("all_reduce", P5, (8, 1), 2**16, 18.68, NCCL),
    ("all_reduce", P5, (8, 1), 2**29, 2111.06, NCCL),
    ("all_to_all", P5, (8, 1), 2**29, 1490.42, NCCL),
    ("all_gather", B200, (8, 1), 2**23, 44.18, NCCL),
    ("all_gather", B200, (8, 1), 2**24, 103.86, NCCL),  # the library leaves LL128 too early
    ("reduce_scatter", B200, (8, 1), 2**29, 766.45, NCCL),
    ("all_reduce", B200, (2, 1), 2**29, 1005.26, NCCL),
    ("all_reduce", B200, (8, 1), 2**29, 1334.56, NCCL),
    ("all_to_all", B200, (8, 1), 2**27, 236.59, NCCL),
    ("all_reduce", P5, (8, 1), 2**34, 62341.0, STAS),
    ("all_reduce", B200, (8, 1), 2**34, 35554.0, STAS),
    ("all_reduce", B200, (8, 4), 2**30 * 2, 11173.0, STAS),
    ("all_reduce", SHARP, (8, 8), 2**31, 11163.0, STAS),
    ("all_reduce", P4DE, (8, 2), 2**20, 309.4, AWS),
    ("all_reduce", P4DE, (8, 2), 2**30, 26217.0, AWS),
    ("all_reduce", P5, (8, 2), 2**22, 168.6, AWS),
    ("all_reduce", P5, (8, 2), 2**34, 66132.0, AWS),
    ("all_reduce", NVL72, (72, 1), 2**31, 5589.1, "GB200 NVL72, nccl 2.26.2"),
    ("all_reduce", NVL72, (72, 2), 2**33, 21493.0, "144 GB200 in two racks, nccl 2.26.2"),
]


def predicted_us(collective, fabric, counts, nbytes) -> float:
    return collective_s(collective, nbytes, GroupShape(counts=counts), fabric) * 1e6


@pytest.mark.parametrize(("collective", "fabric", "counts", "nbytes", "measured_us", "source"), MEASURED)
def test_each_published_time(collective, fabric, counts, nbytes, measured_us, source):
    assert predicted_us(collective, fabric, counts, nbytes) == pytest.approx(measured_us, rel=0.2), source


def test_all_published_times_together():
    errors = [abs(predicted_us(c, f, g, s) / us - 1) for c, f, g, s, us, _ in MEASURED]
    assert np.median(errors) < 0.08


MIST = [
    # ranks in a node, nodes, MiB, milliseconds
    (8, 2, 512, 44.87),
    (4, 2, 512, 82.24),
    (1, 2, 512, 194.61),
    (1, 4, 512, 302.31),
    (1, 2, 64, 25.68),
    (2, 4, 512, 178.28),
]


@pytest.mark.parametrize(("inside", "nodes", "mib", "measured_ms"), MIST)
def test_groups_of_one_cluster_share_its_nic(inside, nodes, mib, measured_ms):
    """A100 nodes with 100 Gbit/s each, all-gathers of all 8/inside groups at once.

    github.com/Dazz993/Mist, mist/tools/results (EuroSys 2025 artefact, Apache-2.0).
    """
    group = GroupShape.of((inside, nodes), 8 // inside)
    seconds = collective_s("all_gather", mib * 2**20, group, A100)
    assert seconds * 1e3 == pytest.approx(measured_ms, rel=0.12)


def test_ironwood_all_gather():
    """Four TPU 7x chips without wrap: 576 us for 8 x 16 MiB, 2252 us for 8 x 64 MiB.

    Google, tpu-recipes, microbenchmarks/ironwood/collectives/all_gather.md (two devices a chip).
    """
    ici = FabricLevel(
        name="ici",
        kind="torus",
        group=4,
        bandwidth_bytes_per_s=600e9,
        latency_s=1e-6,
        dims=(2, 2, 1),
        wrap=False,
        transport="ici",
    )
    fabric, group = Fabric(levels=(ici,), devices_per_node=4), GroupShape(counts=(4,))
    for mib, measured_us in ((16, 576.3), (64, 2252.5)):
        seconds = collective_s("all_gather", 8 * mib * 2**20, group, fabric, backend="ici")
        assert seconds * 1e6 == pytest.approx(measured_us, rel=0.08)


def test_nvls_exceeds_the_wire_in_busbw_terms_but_a_ring_does_not():
    """H200: 480 GB/s by NVLS, 367 by rings, over links of 450 GB/s (stas00/ml-engineering)."""
    group, nbytes = GroupShape(counts=(8, 1)), 2**33
    nvls, ring = (collective_s("all_reduce", nbytes, group, P5, algorithm=a) for a in ("nvls", "ring"))
    assert busbw_bytes_per_s("all_reduce", nbytes, 8, nvls) == pytest.approx(477e9, rel=0.08)
    assert busbw_bytes_per_s("all_reduce", nbytes, 8, ring) == pytest.approx(366e9, rel=0.08)
