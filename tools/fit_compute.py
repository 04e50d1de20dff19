"""Fit the compute curves of the catalogue to measured kernels, and print how well they do.

    python tools/fit_compute.py FOLDER            # fit and print the curves
    python tools/fit_compute.py FOLDER --write    # ... and put them into plansim/catalog
    python tools/fit_compute.py FOLDER --check    # errors of the shipped curves, and held-out errors

FOLDER holds measured_gemm.csv (system, dtype, m, n, k, latency_us) and measured_attention.csv
(system, dtype, batch_size, isl, num_heads, num_key_value_heads, head_dim, latency_us; causal forward).
"""

from __future__ import annotations

import argparse
import csv
import math
import random
import statistics
from collections import defaultdict
from dataclasses import fields, replace
from pathlib import Path

from plansim.costs.compute.attention import AttentionKernel, fused_s
from plansim.costs.compute.dtypes import arithmetic_class
from plansim.costs.compute.fit import (
    ATTENTION_BOUNDS,
    MATMUL_BOUNDS,
    SHORT_S,
    fit_attention_curve,
    fit_matmul_curve,
)
from plansim.costs.compute.matmul import MatmulKernel, product_s
from plansim.hardware.catalog import ARCHITECTURES, FOLDER, family_curves, find_device
from plansim.hardware.curves import AttentionCurve, MatmulCurve

Samples = list[tuple[float, ...]]
Curve = MatmulCurve | AttentionCurve

FOLDS = 5
UNITS = {"launch_s": "launch", "throttle_s": "throttle"}
MEASURED = (
    "a100-sxm4-80gb", "h100-sxm5-80gb", "h200-sxm-141gb", "b200-sxm-180gb", "b300-sxm-288gb", "gb200-186gb",
    "gb300-288gb", "l40s-48gb", "rtx-pro-6000-server-96gb",
)  # fmt: skip
"""Devices whose curves were fitted, not derived."""

NARROW = ("cast_bytes",)
"""Parameters that only types with a cast have."""

SOURCE = "fitted: kernels measured by aiconfigurator-core 0.12.0 (Apache-2.0), tuned inference libraries"


def read_matmuls(folder: Path) -> dict[tuple[str, str], Samples]:
    samples: dict[tuple[str, str], Samples] = defaultdict(list)
    with (folder / "measured_gemm.csv").open() as rows:
        for r in csv.DictReader(rows):
            key = find_device(r["system"].replace("_", "-")).id, arithmetic_class(r["dtype"])
            samples[key].append((float(r["m"]), float(r["n"]), float(r["k"]), float(r["latency_us"]) * 1e-6))
    return dict(samples)


def read_attention(folder: Path) -> dict[tuple[str, str], Samples]:
    samples: dict[tuple[str, str], Samples] = defaultdict(list)
    names = ("batch_size", "num_heads", "num_key_value_heads", "isl", "head_dim")
    with (folder / "measured_attention.csv").open() as rows:
        for r in csv.DictReader(rows):
            key = find_device(r["system"].replace("_", "-")).id, arithmetic_class(r["dtype"])
            samples[key].append((*(float(r[n]) for n in names), float(r["latency_us"]) * 1e-6))
    return dict(samples)


def fit(operator: str, device_id: str, dtype: str, samples: Samples, held_out: bool = False) -> Curve:
    """The curve of some samples; a held-out fit starts from the family, not from this device's curve."""
    device = find_device(device_id)
    if held_out:
        device = replace(device, matmul={}, attention={})
    thorough = not held_out
    family = family_curves(device.kind, device.vendor, device.architecture)
    if operator == "attention":
        start = device.attention.get(dtype) or family.attention["bf16"]
        return fit_attention_curve(device, dtype, samples, start=start, thorough=thorough)
    names = [n for n in MATMUL_BOUNDS if n not in NARROW or dtype in ("fp8", "int8", "fp4")]
    start = device.matmul.get(dtype) or family.matmul.get(dtype) or family.matmul["bf16"]
    return fit_matmul_curve(device, dtype, samples, parameters=names, start=start, thorough=thorough)


def errors(operator: str, device_id: str, dtype: str, curve: Curve | None, samples: Samples) -> list[float]:
    """Relative errors of the samples above `SHORT_S`; without a curve, of the one shipped."""
    device = find_device(device_id)
    if operator == "attention":
        heads = AttentionKernel.build(device, dtype, curve)
        return [fused_s(heads, b, h, kv, s, s, d, d) / t - 1 for b, h, kv, s, d, t in samples if t > SHORT_S]
    kernel = MatmulKernel.build(device, dtype, curve)
    return [product_s(kernel, m, n, k) / t - 1 for m, n, k, t in samples if t > SHORT_S]


def held_out(operator: str, device_id: str, dtype: str, samples: Samples) -> list[float]:
    """Errors of each fifth of the rows under a curve fitted to the others."""
    shuffled = random.Random(0).sample(samples, len(samples))
    found = []
    for fold in range(FOLDS):
        kept = [s for i, s in enumerate(shuffled) if i % FOLDS != fold]
        curve = fit(operator, device_id, dtype, kept, held_out=True)
        found += errors(operator, device_id, dtype, curve, shuffled[fold::FOLDS])
    return found


def pooled(curves: list[Curve]) -> Curve:
    """The middle of several curves: geometric mean of positive parameters, mean of the rest."""
    bounds = ATTENTION_BOUNDS if isinstance(curves[0], AttentionCurve) else MATMUL_BOUNDS
    values = {}
    for name, (low, _) in bounds.items():
        found = [float(getattr(c, name)) for c in curves]
        values[name] = statistics.geometric_mean(found) if low > 0 else statistics.fmean(found)
    spread = math.sqrt(statistics.fmean(c.residual_log_std**2 for c in curves))
    return replace(curves[0], **values, residual_log_std=spread)


def family_of(device_id: str) -> str:
    return ARCHITECTURES[find_device(device_id).architecture.lower()]


def transferred(operator: str, device_id: str, dtype: str, samples: Samples) -> list[float]:
    """Errors under the pooled curve of the other devices (of the family, where it has others)."""
    attribute = "attention" if operator == "attention" else "matmul"
    fitted = [find_device(d) for d in MEASURED if d != device_id]
    others = [d for d in fitted if dtype in getattr(d, attribute)]
    same = [d for d in others if family_of(d.id) == family_of(device_id)]
    curve = pooled([getattr(d, attribute)[dtype] for d in same or others])
    return errors(operator, device_id, dtype, curve, samples)


def summary(found: list[float]) -> str:
    sizes = sorted(abs(e) for e in found)
    return f"{statistics.median(sizes):6.1%} {sizes[int(0.9 * (len(sizes) - 1))]:6.1%}"


def check(tables: dict[str, dict[tuple[str, str], Samples]]) -> None:
    print("median and 90th percentile of the absolute error, kernels above 50 us")
    print(f"{'operator':10}{'device':28}{'type':6}{'rows':>5}   shipped       5-fold        other devices")
    for operator, table in tables.items():
        for (device_id, dtype), samples in table.items():
            key = operator, device_id, dtype
            columns = [errors(*key, None, samples), held_out(*key, samples), transferred(*key, samples)]
            texts = " ".join(summary(c) for c in columns)
            print(f"{operator:10}{device_id:28}{dtype:6}{len(columns[0]):5} {texts}", flush=True)


def yaml_line(curve: Curve) -> str:
    parts = []
    for f in fields(curve):
        value = getattr(curve, f.name)
        if value != f.default:
            parts.append(f"{UNITS.get(f.name, f.name)}: {yaml_value(f.name, value)}")
    return "{" + ", ".join(parts) + "}"


def yaml_value(name: str, value: float | tuple[tuple[int, int], ...]) -> str:
    if isinstance(value, tuple):
        return str([list(tile) for tile in value])
    if name in UNITS:
        return duration(value)
    return f"{value:.4g}" if isinstance(value, int) or abs(value) > 1e-3 else "0"


def duration(seconds: float) -> str:
    return f'"{seconds * 1e3:.3g} ms"' if seconds > 1e-3 else f'"{seconds * 1e6:.3g} us"'


def curves_block(found: dict[str, dict[str, Curve]], indent: str = "") -> str:
    lines = [f"{indent}curves:"] if not indent else []
    for operator in ("matmul", "attention"):
        if found.get(operator):
            lines.append(f"{indent}  {operator}:")
            lines += [f"{indent}    {dtype}: {yaml_line(c)}" for dtype, c in sorted(found[operator].items())]
    return "\n".join(lines)


def family_pool(family: str, found: dict[str, dict[str, dict[str, Curve]]]) -> dict[str, dict[str, Curve]]:
    """The pooled curves of a family, for pasting into its file in plansim/catalog/curves."""
    members = [curves for device_id, curves in found.items() if family_of(device_id) == family]
    pool: dict[str, dict[str, Curve]] = defaultdict(dict)
    for operator in ("matmul", "attention"):
        for dtype in sorted({t for curves in members for t in curves.get(operator, {})}):
            pool[operator][dtype] = pooled(
                [c[operator][dtype] for c in members if dtype in c.get(operator, {})]
            )
    return pool


def write(found: dict[str, dict[str, dict[str, Curve]]]) -> None:
    for device_id, curves in found.items():
        path = FOLDER / "devices" / f"{device_id}.yaml"
        text = path.read_text().split("\ncurves:\n")[0].rstrip("\n")
        text = "\n".join(line for line in text.split("\n") if not line.startswith("  curves:"))
        path.write_text(f'{text}\n  curves: "{SOURCE}"\n{curves_block(curves)}\n')


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--write", action="store_true")
    parser.add_argument("--check", action="store_true")
    parser.add_argument("--only", help="one device")
    options = parser.parse_args()
    tables = {"matmul": read_matmuls(options.folder), "attention": read_attention(options.folder)}
    if options.only:
        device_id = find_device(options.only).id
        tables = {o: {k: s for k, s in t.items() if k[0] == device_id} for o, t in tables.items()}
    if options.check:
        check(tables)
        return
    found: dict[str, dict[str, dict[str, Curve]]] = defaultdict(lambda: defaultdict(dict))
    for operator, table in tables.items():
        for (device_id, dtype), samples in table.items():
            curve = found[device_id][operator][dtype] = fit(operator, device_id, dtype, samples)
            print(
                device_id,
                operator,
                dtype,
                summary(errors(operator, device_id, dtype, curve, samples)),
                flush=True,
            )
            print("  ", yaml_line(curve), flush=True)
    for family in sorted({family_of(d) for d in found}):
        print(family, curves_block(family_pool(family, found)), sep="\n")
    if options.write:
        write(found)


if __name__ == "__main__":
    main()
