"""Published step times of compressed training beside the prediction, row by row.

``python tools/compression_steps.py published.csv`` reads a table with the columns ``id, model, n_devices,
device, inter_bw_gbps, method, method_params, step_time_ms, fwd_ms, bwd_ms, other_ms`` and prints the error of
every row it can predict, why it cannot predict the others, and the medians.

The time of compute is what the source prints (forward, backward, other), else that of the uncompressed row
of the same model and cluster less its predicted traffic: what is judged is what the exchange adds. No
bandwidth is fitted: links have what the source states.
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

from plansim.costs.compression import Network, Traffic, compressed_s
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

GRADIENTS = {
    "resnet-18": Traffic(num_elements=11.17e6, element_bytes=4, matrix=(512, 4608)),
    "bert-large seq128": Traffic(num_elements=336e6, element_bytes=2, matrix=(1024, 4096)),
}
"""What one rank exchanges in a step: parameters, and bytes of each as the source trains."""

METHODS: dict[str, tuple[str, dict[str, Any]]] = {
    "none": ("none", {}),
    "powersgd": ("powersgd", {}),
    "random k": ("randk", {}),
    "random block": ("randk", {}),
    "top k": ("topk", {}),
    "sign+norm": ("onebit", {}),
    "signum": ("onebit", {"error_feedback": False}),
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


def network_of(row: Mapping[str, str]) -> Network:
    """Return the network of a row: nodes as its text says, links with the bandwidth it states."""
    ranks = int(row["n_devices"])
    found = re.search(r"(\d+) nodes x (\d+)|(\d+) GPUs/node", f"{row['device']} {row['inter_link']}")
    per_node = int(found[2] or found[3]) if found else 1
    titan = row["device"].startswith("GTX Titan X")
    inside, latency_s = (12e9, 3e-5) if titan else (150e9, 2e-5)
    bandwidth = float(row["inter_bw_gbps"]) * 1e9 / 8
    levels = (
        FabricLevel(name="node", kind="switch", group=per_node, bandwidth_bytes_per_s=inside, latency_s=1e-5),
        FabricLevel(
            name="net", kind="fat-tree", rails=1, bandwidth_bytes_per_s=bandwidth, latency_s=latency_s
        ),
    )
    counts = (min(ranks, per_node), max(1, ranks // per_node))
    device = TITAN_X if titan else find_device("v100")
    return Network(
        group=GroupShape.of(counts),
        fabric=Fabric(levels=levels, devices_per_node=per_node),
        device=device,
    )


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


def exchange_ms(row: Mapping[str, str]) -> float:
    """Return what the gradient exchange of a row takes, nothing overlapped, ms."""
    found = method_of(row)
    assert found is not None  # asked only for rows that have one
    name, options = found
    return 1e3 * compressed_s("all_reduce", name, GRADIENTS[row["model"]], network_of(row), options).total_s


def judged(rows: list[Mapping[str, str]]) -> Iterator[Judged]:
    """Yield every row with a step time."""
    plain = {
        (r["model"], r["n_devices"], r["inter_bw_gbps"]): r for r in rows if r["method"].startswith("none")
    }
    for row in rows:
        if not row["step_time_ms"]:
            continue
        base = plain.get((row["model"], row["n_devices"], row["inter_bw_gbps"]))
        if row["model"] not in GRADIENTS or method_of(row) is None:
            yield Judged(row, skipped=f"no {'method' if row['model'] in GRADIENTS else 'compute time'}")
        elif row["fwd_ms"]:
            compute = sum(float(row[k]) for k in ("fwd_ms", "bwd_ms", "other_ms"))
            yield Judged(row, compute + exchange_ms(row))
        elif row is base or base is None:
            yield Judged(row, skipped="its compute time is what the others are judged with")
        else:
            yield Judged(row, float(base["step_time_ms"]) - exchange_ms(base) + exchange_ms(row))


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("table", type=Path)
    with parser.parse_args().table.open(encoding="utf-8", newline="") as file:
        found = list(judged(list(csv.DictReader(file))))
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
