"""Published step times of compressed training beside the prediction, row by row.

``python tools/compression_steps.py published.csv`` reads a table with the columns ``id, model, n_devices,
device, inter_bw_gbps, method, method_params, step_time_ms, fwd_ms, bwd_ms, other_ms`` and prints the error of
every row it can predict, why it cannot predict the others, and the medians.

The time of compute is what the source prints (forward, backward, other), else that of the uncompressed row
of the same model and cluster less its predicted traffic: what is judged is what the exchange adds. No
bandwidth is fitted: links have what the source states. With ``--calibrate`` the first row of a cluster that
prints its all-reduce says what the link between nodes reaches, as a user would measure it; that row is not
judged.
"""

from __future__ import annotations

import argparse
import csv
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from plansim.costs.collectives import collective_s
from plansim.costs.compression import Network, Traffic, compressed_s
from plansim.hardware.catalog import find_device
from plansim.hardware.device import Device
from plansim.hardware.fabric import Fabric, FabricLevel, GroupShape
from plansim.hardware.transport import transport

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

GRADIENTS = {
    "resnet-18": Traffic(
        num_elements=11.17e6, element_bytes=4, matrix=(512, 4608), matrices=RESNET18, vector_elements=9.6e3
    ),
    "bert-large seq128": Traffic(num_elements=336e6, element_bytes=2, matrix=(1024, 4096)),
}
"""What one rank exchanges in a step: parameters, and bytes of each as the source trains."""

METHODS: dict[str, tuple[str, dict[str, Any]]] = {
    "none": ("none", {}),
    "powersgd": ("powersgd", {}),
    "random k": ("randk", {}),
    "random block": ("randk", {}),
    "top k": ("topk", {}),
    "sign+norm": ("onebit", {"exchange": "gather"}),
    "signum": ("onebit", {"error_feedback": False, "exchange": "gather"}),
}
"""Method of the table -> ours with its options."""

BYTES_PER_KEPT = {"random k": 4.0, "random block": 4.0, "top k": 8.0}


@dataclass(frozen=True, slots=True)
class Judged:
    """One row: what was published and what is predicted, ms; or why it is not."""

    row: Mapping[str, str]
    predicted_ms: float = 0.0
    skipped: str = ""

    @property
    def error(self) -> float:
        """Predicted over published, less one."""
        return self.predicted_ms / float(self.row["step_time_ms"]) - 1.0


def network_of(row: Mapping[str, str], reached: float | None = None) -> Network:
    """Return the network of a row: nodes as its text says, links as it states or as they are reached."""
    ranks = int(row["n_devices"])
    found = re.search(r"(\d+) nodes x (\d+)|(\d+) GPUs/node", f"{row['device']} {row['inter_link']}")
    per_node = int(found[2] or found[3]) if found else 1
    titan = row["device"].startswith("GTX Titan X")
    bandwidth = reached or float(row["inter_bw_gbps"]) * 1e9 / 8
    if (
        "effective" in row["inter_link"] and reached is None
    ):  # what was measured, not what the link could: nothing to take off
        bandwidth /= transport("tcp").protocols[-1].efficiency
    levels = (
        FabricLevel(name="node", group=per_node, latency_s=1e-5, **inside_of(titan, per_node)),
        FabricLevel(
            name="net", kind="fat-tree", rails=1, bandwidth_bytes_per_s=bandwidth, latency_s=2e-5,
            transport="ib-hdr" if "InfiniBand" in row["inter_link"] else "tcp",
        ),
    )  # fmt: skip
    counts = (min(ranks, per_node), max(1, ranks // per_node))
    device = TITAN_X if titan else find_device("v100")
    return Network(
        group=GroupShape.of(counts),
        fabric=Fabric(levels=levels, devices_per_node=per_node),
        device=device,
    )


def inside_of(titan: bool, per_node: int) -> dict[str, Any]:
    """Return the links inside a node: PCIe 3 of the Titans and of the 4-GPU nodes, NVLink of 8 V100."""
    if titan or per_node == 4:
        return {"kind": "switch", "bandwidth_bytes_per_s": 16e9, "transport": "pcie3"}
    return {"kind": "switch", "bandwidth_bytes_per_s": 150e9, "transport": "nvlink2"}


def method_of(row: Mapping[str, str]) -> tuple[str, dict[str, Any]] | None:
    """Return our method and options for a row; None where there is none."""
    words = row["method"].partition(" (")[0]
    if words not in METHODS:
        return None
    name, options = METHODS[words]
    if "rank" in row["method_params"]:
        return name, {**options, "rank": int(row["method_params"].removeprefix("rank "))}
    if words in BYTES_PER_KEPT:
        kept = GRADIENTS[row["model"]].nbytes / float(row["compression_ratio"]) / BYTES_PER_KEPT[words]
        return name, {**options, "ratio": kept / GRADIENTS[row["model"]].num_elements}
    return name, dict(options)


def exchange_ms(row: Mapping[str, str], reached: float | None = None) -> float:
    """Return what the gradient exchange of a row takes, nothing overlapped, ms."""
    found = method_of(row)
    assert found is not None  # asked only for rows that have one
    (name, options), traffic, network = found, GRADIENTS[row["model"]], network_of(row, reached)
    if name == "none":  # libraries of those years took rings for messages of tens of MB and more
        seconds = collective_s("all_reduce", traffic.nbytes, network.group, network.fabric, algorithm="ring")
        return 1e3 * seconds
    return 1e3 * compressed_s("all_reduce", name, traffic, network, options).total_s


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


def judged(rows: list[Mapping[str, str]], *, calibrate: bool = False) -> Iterator[Judged]:
    """Yield every row with a step time."""
    known = reached_by(rows) if calibrate else {}
    plain = {
        (r["model"], r["n_devices"], r["inter_bw_gbps"]): r for r in rows if r["method"].startswith("none")
    }
    for row in rows:
        if not row["step_time_ms"]:
            continue
        base = plain.get((row["model"], row["n_devices"], row["inter_bw_gbps"]))
        if row["model"] not in GRADIENTS or method_of(row) is None:
            yield Judged(row, skipped=f"no {'method' if row['model'] in GRADIENTS else 'compute time'}")
        elif row["id"] == known.get(row["inter_link"], ("", 0.0))[0]:
            yield Judged(row, skipped="its all-reduce says what the link reaches")
        elif row["fwd_ms"]:
            compute = sum(float(row[k]) for k in ("fwd_ms", "bwd_ms", "other_ms"))
            yield Judged(row, compute + exchange_ms(row, known.get(row["inter_link"], ("", None))[1]))
        elif row is base or base is None:
            yield Judged(row, skipped="its compute time is what the others are judged with")
        else:
            yield Judged(row, float(base["step_time_ms"]) - exchange_ms(base) + exchange_ms(row))


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("table", type=Path)
    parser.add_argument("--calibrate", action="store_true", help="take links from one row of each cluster")
    given = parser.parse_args()
    with given.table.open(encoding="utf-8", newline="") as file:
        found = list(judged(list(csv.DictReader(file)), calibrate=given.calibrate))
    errors: dict[str, list[float]] = {}
    for j in found:
        what = f"{j.row['id']:12} {j.row['model']:18} {j.row['method']:14} {j.row['method_params']:14}"
        if j.skipped:
            print(f"{what} skipped: {j.skipped}")
            continue
        print(f"{what} {float(j.row['step_time_ms']):8.1f} ms, said {j.predicted_ms:8.1f} ms {j.error:+7.1%}")
        errors.setdefault(j.row["id"].partition("-")[0], []).append(abs(j.error))
    for source, values in {"all": [e for es in errors.values() for e in es], **errors}.items():
        print(f"{source:6} {len(values):3} rows, median error {median(values):.1%}, worst {max(values):.1%}")


if __name__ == "__main__":
    main()
