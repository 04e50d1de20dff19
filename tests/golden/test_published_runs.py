"""Published training steps, predicted through the same door as a user's own table."""

from __future__ import annotations

import csv

import pytest

from plansim.validate.table import validate_table

A100 = {
    "family": "gpt", "vocab": 51200, "seq": 2048, "device": "a100-80g-sxm", "devices_per_node": 8,
    "intra_link": "nvlink3 600GB/s", "inter_link": "8x HDR 200Gb IB per node (Selene)", "dtype": "fp16",
    "zero_stage": 0, "flash_attention": 0, "cp": 1,
    "source": "Korthikanti et al. 2022 (arXiv 2205.05198) table 5",
}  # fmt: skip
H100 = {
    "family": "llama", "vocab": 128256, "seq": 8192, "device": "h100-sxm", "devices_per_node": 8,
    "intra_link": "nvlink4 900GB/s", "inter_link": "8x400Gb NDR IB per node", "dtype": "bf16",
    "zero_stage": 1, "flash_attention": 1, "recompute": "none",
    "source": "NVIDIA dgxc-benchmarking v24.11.1 llama3.1 (printed step times)",
}  # fmt: skip
G22 = {
    "model": "gpt-22b",
    "layers": 48,
    "hidden": 6144,
    "ffn": 24576,
    "heads": 64,
    "n_devices": 8,
    "tp": 8,
    "pp": 1,
    "gbs": 4,
    "mbs": 4,
}
G175 = {
    "model": "gpt-175b", "layers": 96, "hidden": 12288, "ffn": 49152, "heads": 96, "n_devices": 64,
    "tp": 8, "pp": 8, "vp": 3, "gbs": 64, "mbs": 1, "schedule": "1f1b-interleaved",
}  # fmt: skip
L70 = {
    "model": "llama3-70b", "layers": 80, "hidden": 8192, "ffn": 28672, "heads": 64, "kv_heads": 8,
    "n_devices": 64, "tp": 4, "pp": 4, "vp": 5, "cp": 2, "gbs": 128, "mbs": 1, "schedule": "1f1b-interleaved",
}  # fmt: skip
HYBRID = H100 | {
    "family": "hybrid-mamba", "model": "nemotron-h-56b", "tp": 8, "pp": 1, "mbs": 1, "sp": 1, "dtype": "fp8",
    "source": "NVIDIA dgxc-benchmarking v25.05.05 nemotronh/README.md",
}  # fmt: skip

SC21 = A100 | {
    "source": "Narayanan et al., SC21 (arXiv 2104.04473), table 1; splits of examples/sc21/run_table_1.sh",
    "tp": 8, "recompute": "full", "sp": 0, "schedule": "1f1b-interleaved", "mbs": 1,
}  # fmt: skip
G145 = {
    "model": "gpt-145.6b", "layers": 80, "hidden": 12288, "ffn": 49152, "heads": 96, "n_devices": 1536,
    "pp": 8, "vp": 2, "gbs": 2304, "mbs": 2, "step_time_derived": 24.817,
}  # fmt: skip
G530 = {
    "model": "gpt-529.6b", "layers": 105, "hidden": 20480, "ffn": 81920, "heads": 128, "n_devices": 2520,
    "pp": 35, "vp": 3, "gbs": 2520, "step_time_derived": 54.085,
}  # fmt: skip
G1T = {
    "model": "gpt-1008b", "layers": 128, "hidden": 25600, "ffn": 102400, "heads": 160, "n_devices": 3072,
    "pp": 64, "schedule": "1f1b", "gbs": 3072, "step_time_derived": 102.63,
}  # fmt: skip
MEGASCALE = {
    "source": "Jiang et al., MegaScale, NSDI 24 (arXiv 2402.15627), table 2: Megatron-LM",
    "model": "gpt-175b", "family": "gpt", "layers": 96, "hidden": 12288, "ffn": 49152, "heads": 128,
    "vocab": 64000, "seq": 2048, "gbs": 768, "mbs": 1, "n_devices": 256, "device": "a100-80g-sxm",
    "devices_per_node": 8, "intra_link": "nvlink3 600GB/s", "inter_link": "8x200Gb RoCE per node",
    "dtype": "bf16", "tp": 8, "pp": 8, "vp": 6, "cp": 1, "zero_stage": 2, "sp": 1, "flash_attention": 1,
    "schedule": "1f1b-interleaved", "recompute": "none", "step_time_derived": 40.0,
}  # fmt: skip

RUNS = {
    "22B full recomputation": A100 | G22 | {"recompute": "full", "sp": 0, "step_time_derived": 1.42},
    "22B selective": A100 | G22 | {"recompute": "selective", "sp": 1, "step_time_derived": 1.10},
    "175B full recomputation": A100 | G175 | {"recompute": "full", "sp": 0, "step_time_derived": 18.13},
    "175B selective": A100 | G175 | {"recompute": "selective", "sp": 1, "step_time_derived": 13.75},
    "145.6B on 1,536 A100": SC21 | G145,
    "529.6B on 2,520 A100": SC21 | G530,
    "1008B on 3,072 A100": SC21 | G1T,
    "MegaScale's Megatron-LM on 256 A100": MEGASCALE,
    "Llama 3 70B on 64 H100": H100 | L70 | {"sp": 1, "step_time_derived": 14.72},
    "Nemotron-H 56B on 64 H100": HYBRID | {"n_devices": 64, "gbs": 192, "step_time_derived": 15.058},
    "Nemotron-H 56B on 1024 H100": HYBRID | {"n_devices": 1024, "gbs": 3072, "step_time_derived": 15.678},
}


@pytest.mark.parametrize("name", RUNS)
def test_a_published_step_lies_in_its_interval_and_within_a_tenth(name, tmp_path):
    """A tenth is what the accuracy page reports as typical for these groups."""
    path = tmp_path / "run.csv"
    with path.open("w", newline="") as out:
        writer = csv.DictWriter(out, fieldnames=list(RUNS[name]))
        writer.writeheader()
        writer.writerow(RUNS[name])

    row = validate_table(path).to_json()["rows"][0]

    assert row["skipped"] is None
    assert row["low_s"] < row["measured_step_time_s"] < row["high_s"]
    assert abs(row["error"]) < 0.10
    assert row["feasible"]
