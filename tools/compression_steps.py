"""Published figures of compressed training beside the prediction, row by row.

``python tools/compression_steps.py published.csv`` reads a table with the columns ``id, model, n_devices,
device, inter_link, inter_bw_gbps, method, method_params, compression_ratio, step_time_ms, fwd_ms, bwd_ms,
comm_ms, other_ms, encode_decode_ms`` and prints the error of every step time, of every payload and of every
coding time it can predict, why it cannot predict the others, and the medians by source.

The time of compute is what the source prints (forward, backward, other), else that of the uncompressed row
of the same model and cluster less its predicted traffic; without such a row, of its first row, which is not
judged then. What is judged is what the exchange adds. No bandwidth is fitted: links have what the source
states, and nodes with PCIe 3 stage through host memory (transports ``pcie3-host`` and ``ib-edr-host``). With
``--calibrate`` the first row of a cluster that prints its all-reduce says what the link between nodes
reaches, as a user would measure it; that row is not judged.
"""

from __future__ import annotations

import argparse
import csv
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median, quantiles
from typing import Any

from plansim.costs.collectives import collective_s
from plansim.costs.compression import Network, Traffic, compressed_s, decode_s, encode_s, find_method
from plansim.hardware.catalog import find_device
from plansim.hardware.device import Device
from plansim.hardware.fabric import Fabric, FabricLevel, GroupShape
from plansim.hardware.transport import transport

Row = Mapping[str, str]

TITAN_X = Device(
    id="gtx-titan-x",
    memory_bytes=12e9,
    memory_bandwidth_bytes_per_s=336e9,
    peak_flop_per_s={"fp32": 6.1e12},
)
"""GTX Titan X (Maxwell): 336 GB/s, 6.1 TFLOP/s in fp32."""

RESNET18 = (
    (64, 27, 1), (64, 576, 4), (128, 576, 1), (128, 1152, 3), (256, 1152, 1), (256, 2304, 3), (512, 2304, 1),
    (512, 4608, 3), (128, 64, 1), (256, 128, 1), (512, 256, 1), (10, 512, 1),
)  # fmt: skip
"""Outputs, inputs and number of the matrices of ResNet-18 on 32 x 32 images (arXiv 1512.03385)."""

RESNET50 = (
    (64, 147, 1), (64, 64, 1), (64, 576, 3), (256, 64, 4), (64, 256, 2), (128, 256, 1), (128, 1152, 4),
    (512, 128, 4), (512, 256, 1), (128, 512, 3), (256, 512, 1), (256, 2304, 6), (1024, 256, 6),
    (1024, 512, 1), (256, 1024, 5), (512, 1024, 1), (512, 4608, 3), (2048, 512, 3), (2048, 1024, 1),
    (512, 2048, 2), (1000, 2048, 1),
)  # fmt: skip
"""The same of ResNet-50 on 224 x 224 images."""

LSTM = ((28869, 650, 1), (2600, 650, 6))
"""Tied embedding of WikiText-2 and three layers of 650 (PowerSGD, appendix)."""


def gradients(matrices: tuple[tuple[int, int, int], ...], vectors: int, elements: int) -> Traffic:
    """Return fp32 gradients of `matrices` and of so many vectors with so many elements together."""
    total = sum(rows * columns * count for rows, columns, count in matrices) + elements
    number = sum(count for *_, count in matrices) + vectors
    return Traffic(
        num_elements=total, element_bytes=4, matrices=matrices, vector_elements=elements, num_tensors=number
    )


GRADIENTS = {
    "resnet-18": gradients(RESNET18, 41, 9610),
    "resnet-50": gradients(RESNET50, 107, 54120),
    "lstm 3-layer 650": gradients(LSTM, 7, 6 * 2600 + 28869),
    "bert-large seq128": Traffic(num_elements=336e6, element_bytes=2, matrix=(1024, 4096)),
}
"""What one rank exchanges in a step: parameters, and bytes of each as the source trains."""

METHODS: dict[str, tuple[str, dict[str, Any]]] = {
    "none": ("none", {}),
    "powersgd": ("powersgd", {}),
    "random k": ("randk", {"places": "permuted"}),
    "random block": ("randk", {}),
    "top k": ("topk", {"selection": "one_block"}),
    "topk": ("topk", {"selection": "one_block", "error_feedback": False}),
    "sign+norm": ("onebit", {"exchange": "gather"}),
    "signum": ("onebit", {"error_feedback": False, "exchange": "gather"}),
    "signsgd": ("onebit", {"error_feedback": False, "exchange": "gather"}),
}
"""Method of the table -> ours with its options, as the code of 2019 to 2021 carried them out."""

TENSOR_BY_TENSOR = ("random k", "top k", "sign+norm")
"""Coded tensor by tensor in the PowerSGD paper's code; the others code one flat vector, or matrices."""

BYTES_PER_KEPT = {"random k": 4.0, "random block": 4.0, "top k": 8.0, "topk": 8.0}


INTRODUCTION = """# Published steps and coding times of compressed training

Written by `python tools/compression_steps.py TABLE --report FOLDER`. The compute time is what the source
prints, else that of its uncompressed row; what is judged is what the exchange adds. No row and no source
has a constant of its own. What the methods were run with counts: places of random-k shuffled on the host,
top-k by one block of the device (torch before 1.12), loops over every tensor of every rank. Staging
through host memory has one rate (`pcie3-host`), fitted to row 1bit-007; the InfiniBand rows are predicted
from it.
"""


@dataclass(frozen=True, slots=True)
class Judged:
    """One figure of a row: what was published and what is predicted; or why it is not."""

    row: Row
    what: str = "step time"
    unit: str = "ms"
    published: float = 0.0
    predicted: float = 0.0
    skipped: str = ""

    @property
    def error(self) -> float:
        """Predicted over published, less one."""
        return self.predicted / self.published - 1.0


def network_of(row: Row, reached: float | None = None) -> Network:
    """Return the network of a row: nodes as its text says, links as it states or as they are reached."""
    ranks = int(row["n_devices"])
    found = re.search(r"(\d+) nodes x (\d+)|(\d+) GPUs/node", f"{row['device']} {row['inter_link']}")
    per_node = int(found[2] or found[3]) if found else 1
    titan = row["device"].startswith("GTX Titan X")
    bandwidth = reached or float(row["inter_bw_gbps"]) * 1e9 / 8
    if "effective" in row["inter_link"] and reached is None:  # measured, not what the link could: whole
        bandwidth /= transport("tcp").protocols[-1].efficiency
    if infiniband(row) and reached is not None:
        bandwidth /= transport("ib-edr-host").protocols[-1].efficiency
    inside: dict[str, Any] = {"bandwidth_bytes_per_s": 150e9, "transport": "nvlink2"}
    if titan or per_node == 4:
        inside = {"bandwidth_bytes_per_s": 16e9, "transport": "pcie3" if titan else "pcie3-host"}
    levels = (
        FabricLevel(name="node", kind="switch", group=per_node, latency_s=1e-5, **inside),
        FabricLevel(
            name="net", kind="fat-tree", rails=1, bandwidth_bytes_per_s=bandwidth, latency_s=2e-5,
            transport="ib-edr-host" if infiniband(row) else "tcp",
        ),
    )  # fmt: skip
    return Network(
        group=GroupShape.of((min(ranks, per_node), max(1, ranks // per_node))),
        fabric=Fabric(levels=levels, devices_per_node=per_node),
        device=TITAN_X if titan else find_device("v100"),
    )


def infiniband(row: Row) -> bool:
    """Whether the nodes of a row are joined by InfiniBand."""
    return "InfiniBand" in row["inter_link"]


def traffic_of(row: Row) -> Traffic:
    """Return the gradients of a row, tensor by tensor where its code worked so."""
    traffic = GRADIENTS[row["model"]]
    one_by_one = row["method"].partition(" (")[0] in TENSOR_BY_TENSOR
    return traffic if one_by_one else replace(traffic, num_tensors=1.0)


def method_of(row: Row) -> tuple[str, dict[str, Any]] | None:
    """Return our method and options for a row; None where there is none."""
    words = row["method"].partition(" (")[0].lower()
    if words not in METHODS or row["model"] not in GRADIENTS:
        return None
    (name, options), given = METHODS[words], row["method_params"]
    if "rank" in given:
        return name, {**options, "rank": int(given.removeprefix("rank "))}
    if given.endswith("%"):
        return name, {**options, "ratio": float(given[:-1]) / 100}
    if words in BYTES_PER_KEPT:
        kept = GRADIENTS[row["model"]].nbytes / float(row["compression_ratio"]) / BYTES_PER_KEPT[words]
        return name, {**options, "ratio": kept / GRADIENTS[row["model"]].num_elements}
    return name, dict(options)


def exchange_ms(row: Row, reached: float | None = None) -> float:
    """Return what the gradient exchange of a row takes, nothing overlapped, ms."""
    found = method_of(row)
    assert found is not None  # asked only for rows that have one
    (name, options), traffic, network = found, traffic_of(row), network_of(row, reached)
    if name != "none":
        return 1e3 * compressed_s("all_reduce", name, traffic, network, options).total_s
    # over TCP libraries of those years took rings for messages of tens of MB and more
    how = None if infiniband(row) else "ring"
    return 1e3 * collective_s("all_reduce", traffic.nbytes, network.group, network.fabric, algorithm=how)


def coding_ms(row: Row) -> float:
    """Return what encoding and decoding a row's gradients takes on its device, nothing sent, ms."""
    (name, options), device = method_of(row) or ("none", {}), find_device(row["device"])
    traffic = traffic_of(row)
    there = encode_s(name, traffic, device, options)
    return 1e3 * (there + decode_s(name, traffic, int(row["n_devices"]), device, options))


def reached_by(rows: list[Mapping[str, str]]) -> dict[str, tuple[str, float]]:
    """Return (row, bytes per second) by link: at that rate the row's all-reduce takes as long as printed."""
    found: dict[str, tuple[str, float]] = {}
    for row in rows:
        if row["comm_ms"] and row["inter_link"] not in found:
            low, high = 1e7, 1e12
            while high / low > 1.0001:
                middle = (low * high) ** 0.5
                slow = exchange_ms(row, middle) > float(row["comm_ms"])
                low, high = (middle, high) if slow else (low, middle)
            found[row["inter_link"]] = (row["id"], low)
    return found


def judged(rows: list[Row], *, calibrate: bool = False) -> Iterator[Judged]:
    """Yield every figure of every row, or why there is none."""
    known = reached_by(rows) if calibrate else {}
    bases = bases_of(rows)
    for row in rows:
        if method_of(row) is None:
            what = "method" if row["model"] in GRADIENTS else "gradients of the model"
            yield Judged(row, skipped=f"no {what} for it here")
            continue
        ratio = row["compression_ratio"]
        if ratio and float(ratio) > 1 and not row["method"].startswith(tuple(BYTES_PER_KEPT)):
            name, options = method_of(row) or ("none", {})
            payload = find_method(name).payload_bytes(traffic_of(row), options)
            yield Judged(row, "payload", "kB", traffic_of(row).nbytes / float(ratio) / 1e3, payload / 1e3)
        if row["encode_decode_ms"]:
            yield Judged(row, "coding", "ms", float(row["encode_decode_ms"]), coding_ms(row))
        if row["step_time_ms"]:
            yield step_of(row, bases[setup(row)], known.get(row["inter_link"], ("", None)))
        elif not row["encode_decode_ms"]:
            yield Judged(row, skipped="no time of a step")


def setup(row: Row) -> tuple[str, str, str]:
    """Return what rows must share for one to say the compute time of the others."""
    return row["model"], row["n_devices"], row["inter_bw_gbps"]


def bases_of(rows: list[Row]) -> dict[tuple[str, str, str], Row]:
    """Return by set-up the row that says its compute time: the uncompressed one, else the first."""
    timed = [row for row in rows if row["step_time_ms"] and method_of(row)]
    plain = [row for row in timed if row["method"].startswith("none")]
    return {setup(row): row for row in (*reversed(timed), *reversed(plain))}


def step_of(row: Row, base: Row, known: tuple[str, float | None]) -> Judged:
    """Return the step time of one row."""
    if row["id"] == known[0]:
        return Judged(row, skipped="its all-reduce says what the link reaches")
    if row["fwd_ms"]:
        predicted = sum(float(row[k]) for k in ("fwd_ms", "bwd_ms", "other_ms")) + exchange_ms(row, known[1])
    elif row is base:
        return Judged(row, skipped="its compute time is what the others are judged with")
    else:
        predicted = float(base["step_time_ms"]) - exchange_ms(base) + exchange_ms(row)
    return Judged(row, published=float(row["step_time_ms"]), predicted=predicted)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("table", type=Path)
    parser.add_argument("--calibrate", action="store_true", help="take links from one row of each cluster")
    parser.add_argument("--report", type=Path, metavar="FOLDER", help="write report.md there as well")
    given = parser.parse_args()
    with given.table.open(encoding="utf-8", newline="") as file:
        found = list(judged(list(csv.DictReader(file)), calibrate=given.calibrate))
    for j in found:
        row = f"{j.row['id']:12} {j.row['model']:18} {j.row['method']:14} {j.row['method_params']:14}"
        said = f"{j.what:9} {j.published:8.1f} {j.unit}, said {j.predicted:8.1f} {j.unit}"
        print(f"{row} skipped: {j.skipped}" if j.skipped else f"{row} {said} {j.error:+7.1%}")
    for what, source, rows, middle, p90, worst in summary(found):
        print(
            f"{what:9} {source:6} {rows:3} rows, median error {middle}, 90th percentile {p90}, worst {worst}"
        )
    if given.report:
        given.report.mkdir(parents=True, exist_ok=True)
        (given.report / "report.md").write_text(markdown(found), encoding="utf-8")


def summary(found: list[Judged]) -> list[tuple[str, ...]]:
    """Return (figure, source, rows, median, 90th percentile, worst) by figure and source."""
    errors: dict[tuple[str, str], list[float]] = {}
    for j in found:
        if not j.skipped:
            for group in ("all", j.row["id"].partition("-")[0]):
                errors.setdefault((j.what, group), []).append(abs(j.error))
    lines = []
    for (what, source), values in sorted(errors.items()):
        p90 = quantiles(values, n=10, method="inclusive")[-1] if len(values) > 1 else values[0]
        lines.append(
            (what, source, str(len(values)), *(f"{v:.1%}" for v in (median(values), p90, max(values))))
        )
    return lines


def markdown(found: list[Judged]) -> str:
    """Return the page under ``reports/``."""
    head = "| figure | source | rows | median | 90th pct | worst |\n|---|---|--:|--:|--:|--:|\n"
    medians = "".join("| " + " | ".join(line) + " |\n" for line in summary(found))
    table = (
        "| row | source | model | method | figure | published | predicted | error |\n" + "|---" * 8 + "|\n"
    )
    rows, skipped = "", ""
    for j in found:
        r, name = j.row, f"{j.row['method']} {j.row['method_params']}".strip()
        if j.skipped:
            skipped += f"- {r['id']} ({r['model']}, {name}): {j.skipped}\n"
            continue
        said = f"{j.published:.1f} {j.unit} | {j.predicted:.1f} {j.unit} | {j.error:+.1%}"
        rows += (
            f"| {r['id']} | {r['source'].partition(':')[0]} | {r['model']} | {name} | {j.what} | {said} |\n"
        )
    return f"{INTRODUCTION}\n{head}{medians}\n## Rows\n\n{table}{rows}\n## Not predicted\n\n{skipped}"


if __name__ == "__main__":
    main()
