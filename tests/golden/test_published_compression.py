"""Published and measured compression figures: steps on slow links, and coding times on a CPU core.

The time of compute is that of the paper where it prints one, else that of its uncompressed row; what is
judged is what the method changes. Known not to hold: the PowerSGD paper's majority vote on its LSTM, 424 ms,
is said 36 % low; 1-bit Adam's Ethernet, stated as 4.1 Gbit/s, carried 4.8 (12 to 20 % if not anchored).
"""

from __future__ import annotations

from dataclasses import replace

import pytest

from plansim.costs.collectives import collective_s
from plansim.costs.compression import (
    COMPRESSION_METHODS,
    Network,
    Traffic,
    coding_s,
    compressed_s,
    decode_s,
    encode_s,
    rates_of,
)
from plansim.costs.compression.int4 import KERNELS as INT4
from plansim.costs.compression.int8 import KERNELS as INT8
from plansim.hardware.catalog import find_device
from plansim.hardware.device import Device
from plansim.hardware.fabric import Fabric, FabricLevel, GroupShape

TITAN_X = Device(
    id="gtx-titan-x",
    memory_bytes=12e9,
    memory_bandwidth_bytes_per_s=336e9,
    peak_flop_per_s={"fp32": 6.1e12},
)
"""GTX Titan X (Maxwell): 336 GB/s, 6.1 TFLOP/s in fp32."""

MATRICES = (
    (64, 27, 1), (64, 576, 4), (128, 576, 1), (128, 1152, 3), (256, 1152, 1), (256, 2304, 3), (512, 2304, 1),
    (512, 4608, 3), (128, 64, 1), (256, 128, 1), (512, 256, 1), (10, 512, 1),
)  # fmt: skip
"""Outputs, inputs and number of the matrices of ResNet-18 on 32 x 32 images (arXiv 1512.03385)."""

RESNET18 = Traffic(num_elements=11.17e6, element_bytes=4, matrices=MATRICES, vector_elements=9.6e3)


def two_levels(inside, outside, latency_s, devices):
    levels = (
        FabricLevel(name="node", kind="switch", group=devices, bandwidth_bytes_per_s=inside, latency_s=1e-5),
        FabricLevel(name="net", kind="fat-tree", rails=1, bandwidth_bytes_per_s=outside, latency_s=latency_s),
    )
    return Fabric(levels=levels, devices_per_node=devices)


def resnet18_ms(method, options, compute_ms, traffic=RESNET18):
    """16 Titan X in 8 nodes, 10 Gbit/s Ethernet."""
    network = Network(group=GroupShape.of((2, 8)), fabric=two_levels(12e9, 1.25e9, 3e-5, 2), device=TITAN_X)
    return compute_ms + 1e3 * compressed_s("all_reduce", method, traffic, network, options).total_s


@pytest.mark.parametrize(("rank", "published_ms"), [(1, 229), (2, 239), (4, 260), (7, 285)])
def test_powersgd_step_times_of_resnet18(rank, published_ms):
    """Vogels et al., NeurIPS 2019, arXiv 1905.13727, tables 3 to 6: SGD 312 ms, less its traffic.

    What grows with the rank is not bytes (rank 7 sends 1 MB) but the kernels of Gram-Schmidt, column after
    column of 21 matrices, each launched from Python.
    """
    compute_ms = 312 - resnet18_ms("none", {}, 0.0)

    assert resnet18_ms("powersgd", {"rank": rank}, compute_ms) == pytest.approx(published_ms, rel=0.10)


def test_signum_step_time_of_resnet18():
    """The same paper's majority vote: every rank unpacks and adds the signs of all 16."""
    compute_ms = 312 - resnet18_ms("none", {}, 0.0)
    vote = {"error_feedback": False, "exchange": "gather"}

    assert resnet18_ms("onebit", vote, compute_ms) == pytest.approx(301, rel=0.10)


@pytest.mark.parametrize(("ratio", "published_ms"), [(1 / 42.6, 243), (1 / 127.9, 240)])
def test_random_block_step_times_of_resnet18(ratio, published_ms):
    """The same paper's random block: K values that all ranks agree on, all-reduced without places."""
    compute_ms = 312 - resnet18_ms("none", {}, 0.0)

    assert resnet18_ms("randk", {"ratio": ratio}, compute_ms) == pytest.approx(published_ms, rel=0.10)


@pytest.mark.parametrize(
    ("method", "options", "published_ms"),
    [
        ("topk", {"ratio": 1 / 64, "selection": "one_block"}, 444),
        ("topk", {"ratio": 1 / 256, "selection": "one_block"}, 411),
        ("randk", {"ratio": 1 / 42.6, "places": "permuted"}, 540),
        ("randk", {"ratio": 1 / 127.9, "places": "permuted"}, 534),
        ("onebit", {"exchange": "gather"}, 429),
    ],
)
def test_selections_of_2019_on_resnet18(method, options, published_ms):
    """The same paper: its code selects, draws and scales tensor by tensor, 62 of them, for each of 16 ranks.

    torch.topk was one block of the device, random places a permutation on the host, and sign with a norm
    scales every tensor of every rank by itself (the last 10 % low).
    """
    compute_ms = 312 - resnet18_ms("none", {}, 0.0)
    traffic = replace(RESNET18, num_tensors=62)

    assert resnet18_ms(method, options, compute_ms, traffic) == pytest.approx(published_ms, rel=0.11)


GRADIENT_BYTES = 2 * 336e6
"""336 M gradients in fp16: BERT-Large."""


def test_bert_large_on_ethernet_anchored_on_another_row():
    """Tang et al., 1-bit Adam, ICML 2021, arXiv 2102.02888, table 1: 2 nodes from the all-reduce of 4.

    A ring, as NCCL took for large messages then.
    """

    def ring_s(nodes, bandwidth):
        fabric = two_levels(150e9, bandwidth, 2e-5, 4)
        group = GroupShape.of((4, nodes))
        return collective_s("all_reduce", GRADIENT_BYTES, group, fabric, algorithm="ring")

    low, high = 1e7, 1e12
    while high / low > 1.0001:
        middle = (low * high) ** 0.5
        low, high = (middle, high) if ring_s(4, middle) > 2.13324 else (low, middle)

    assert 34.95 + 61.23 + 75.26 + 1e3 * ring_s(2, low) == pytest.approx(2068.65, rel=0.10)


@pytest.mark.parametrize(
    ("nodes", "compute_ms", "published_ms"),
    [
        (8, 25.36 + 23.25 + 58.49, 423.28),
        (8, 32.81 + 59.99 + 57.79, 486.99),
        (8, 131.04 + 237.92 + 56.91, 765.39),
        (2, 32.86 + 56.49 + 58.60, 331.69),
    ],
)
def test_bert_large_on_infiniband_staged_through_host_memory(nodes, compute_ms, published_ms):
    """The same table: nothing of these rows is fitted.

    The rate through host memory comes from the paper's node of 4 V100 without NVLink. Two nodes exchange
    halves along a double tree, which is why theirs is so much faster.
    """
    levels = (
        FabricLevel(name="node", kind="switch", group=8, bandwidth_bytes_per_s=150e9, latency_s=1e-5),
        FabricLevel(
            name="net", kind="fat-tree", rails=1, bandwidth_bytes_per_s=12.5e9, latency_s=5e-6,
            transport="ib-edr-host",
        ),
    )  # fmt: skip
    fabric = Fabric(levels=levels, devices_per_node=8)
    step_ms = compute_ms + 1e3 * collective_s("all_reduce", GRADIENT_BYTES, GroupShape.of((8, nodes)), fabric)

    assert step_ms == pytest.approx(published_ms, rel=0.10)


RESNET50 = (
    (64, 147, 1), (64, 64, 1), (64, 576, 3), (256, 64, 4), (64, 256, 2), (128, 256, 1), (128, 1152, 4),
    (512, 128, 4), (512, 256, 1), (128, 512, 3), (256, 512, 1), (256, 2304, 6), (1024, 256, 6),
    (1024, 512, 1), (256, 1024, 5), (512, 1024, 1), (512, 4608, 3), (2048, 512, 3), (2048, 1024, 1),
    (512, 2048, 2), (1000, 2048, 1),
)  # fmt: skip
"""Outputs, inputs and number of the matrices of ResNet-50 (arXiv 1512.03385)."""


@pytest.mark.parametrize(
    ("method", "options", "published_ms"),
    [
        ("powersgd", {"rank": 4}, 45),
        ("topk", {"ratio": 0.01, "selection": "one_block", "error_feedback": False}, 240),
    ],
)
def test_coding_times_of_resnet50_on_one_v100(method, options, published_ms):
    """Agarwal et al., On the Utility of Gradient Compression, MLSys 2022: encode and decode together."""
    traffic = Traffic(num_elements=25.56e6, element_bytes=4, matrices=RESNET50, vector_elements=54e3)
    device = find_device("v100")
    there = encode_s(method, traffic, device, options)

    assert 1e3 * (there + decode_s(method, traffic, 1, device, options)) == pytest.approx(
        published_ms, rel=0.10
    )


def test_low_rank_factors_of_an_lstm():
    """Vogels et al.: 38 MB an epoch at rank 2 beside 7,730 MB: 28869 x 650 words, 3 layers of 650, biases."""
    matrices = ((28869, 650, 1), (2600, 650, 6))
    vectors = 6 * 2600 + 28869
    elements = sum(r * c * n for r, c, n in matrices) + vectors
    traffic = Traffic(num_elements=elements, element_bytes=4, matrices=matrices, vector_elements=vectors)
    payload = COMPRESSION_METHODS["powersgd"].payload_bytes(traffic, {"rank": 2})

    assert traffic.nbytes / payload == pytest.approx(7730 / 38, rel=0.02)


CORE = Device(
    id="avx512-core",
    kind="cpu",
    memory_bytes=8e9,
    memory_bandwidth_bytes_per_s=12.9e9,
    peak_flop_per_s={"fp32": 170e9},
)
"""One thread of the 2-vCPU AVX-512 machine of the table below, torch 2.13.0."""


@pytest.mark.parametrize(
    ("what", "num_elements", "encode_ms", "decode_ms"),
    [
        ("bf16", 2**24, 10.90, 9.15),
        ("fp8", 2**22, 4.05, 17.37),
        ("int8 eager", 2**24, 101.5, 55.8),
        ("int8 tiled", 2**20, 1.062, 0.470),
        ("int8 tiled", 2**24, 23.36, 15.00),
        ("int8 compiled", 2**22, 3.045, 2.203),
        ("int4 eager", 2**24, 150.5, 122.3),
        ("sign", 2**22, 16.21, 18.40),
        ("sign", 2**24, 91.7, 148.8),
        ("topk 1%", 2**22, 75.65, 0.881),
        ("sampled 1%", 2**22, 17.02, 0.865),
        ("randk 1%", 2**22, 0.876, 0.861),
    ],
)
def test_coding_times_of_one_core(what, num_elements, encode_ms, decode_ms):
    """CPU time (10th percentile) of codecs on fp32 messages, measured by us.

    Over all 123 (codec, size) pairs from 64 Ki to 16 Mi elements the median error is 10 %, the 90th
    percentile 30 % (PowerSGD up to 87 %, eager int8 at 1 Mi -74 %); these stay within 15 %.
    """
    encode, decode = _work(what, num_elements)
    rates = rates_of(CORE)

    assert 1e3 * coding_s(encode, num_elements, rates) == pytest.approx(encode_ms, rel=0.15)
    assert 1e3 * coding_s(decode, num_elements, rates) == pytest.approx(decode_ms, rel=0.15)


def _work(what, num_elements):
    name, _, detail = what.partition(" ")
    if name in ("int8", "int4"):
        return {"int8": INT8, "int4": INT4}[name][detail]
    if name in ("fp8", "sign"):
        method = COMPRESSION_METHODS["fp8" if name == "fp8" else "onebit"]
        return method.encode_once({"error_feedback": False}), method.decode_once({})
    method = COMPRESSION_METHODS["topk" if name == "sampled" else name]
    options = {"ratio": 0.01, "error_feedback": False} if name != "bf16" else {}
    if name == "sampled":
        options["selection"] = "sampled"
    message = Traffic(num_elements=num_elements, element_bytes=4)
    return method.encode_work(message, options), method.decode_work(message, 1, options)
