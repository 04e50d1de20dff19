"""Write the accuracy page: predictions of every published run beside its measurement.

Usage: accuracy.py FOLDER OUT
FOLDER holds published_training*.csv; OUT receives report.md, scatter.svg, summary.json.
"""

from __future__ import annotations

import argparse
import math
import statistics
from collections import defaultdict
from dataclasses import asdict
from pathlib import Path

from plansim import __version__
from plansim.files import dump_json, write_atomic
from plansim.units import format_seconds
from plansim.validate.metrics import NOISE, quantile
from plansim.validate.table import RowResult, TableResult, memory_summary, validate_table

GROUPS: tuple[tuple[str, str], ...] = (
    ("all predictable rows", "median 6 %, 90th percentile 20 %"),
    ("A100 before flash attention", "median 5 %"),
    ("vTrain single node", "mean 7 %"),
    ("vTrain multi node", "mean 9 %"),
    ("H100 bf16", "median 6 %"),
    ("FP8 and Blackwell", "median 8 %"),
    ("FSDP", "median 6 %"),
    ("MoE", "median 10 %"),
    ("slow networks", "median 10 %"),
    ("other (TPU, AMD, V100, LoRA, small models)", "none set"),
)
COLOURS = ("#2563eb", "#d97706", "#059669", "#dc2626", "#7c3aed", "#0891b2", "#be185d", "#65a30d", "#64748b")


def group_of(result: RowResult) -> str:
    """Return the group that a row is judged in."""
    row = result.row
    source, device = row.source.lower(), row.device
    if "vtrain" in source:
        return "vTrain single node" if (row.n_devices or 0) <= 8 else "vTrain multi node"
    if row.workload in ("lora", "sft"):
        return GROUPS[-1][0]
    if row.family.startswith("moe"):
        return "MoE"
    if any(word in source for word in ("amp (neurips", "internevo")):
        return "slow networks"
    if device.startswith("a100") and any(
        w in source for w in ("sc21", "korthikanti", "megatron-lm", "bigscience")
    ):
        return "A100 before flash attention"
    if any(word in source for word in ("llm-foundry", "foundation-model-stack", "torchtitan")):
        return "FSDP"
    if device.startswith(("b2", "b3", "gb")) or (device.startswith("h") and "fp8" in row.dtype):
        return "FP8 and Blackwell"
    if device.startswith("h") and row.dtype == "bf16":
        return "H100 bf16"
    return GROUPS[-1][0]


def line(name: str, target: str, rows: list[RowResult], table: TableResult) -> str:
    """Return one line of the table of groups."""
    pairs = [r.pair for r in rows if r.pair]
    if not pairs:
        return f"| {name} | {target} | 0 | | | | | |"
    errors = [abs(p.error) for p in pairs]
    tau = table.summary(rows)["kendall_tau"]
    inside = sum(p.low_s <= p.measured_s <= p.high_s for p in pairs) / len(pairs)
    shown = "" if tau is None else f"{tau:.2f}"
    return (
        f"| {name} | {target} | {len(pairs)} | {statistics.median(errors):.1%} | {quantile(errors, 0.9):.1%} "
        f"| {statistics.fmean(errors):.1%} | {statistics.fmean(p.error for p in pairs):+.1%} "
        f"| {inside:.0%} | {shown} |"
    )


def scatter(groups: dict[str, list[RowResult]]) -> str:
    """Return predicted against measured as SVG, log-log, one colour per group."""
    low, high, size, margin = -2.0, 3.0, 640, 56

    def at(seconds: float) -> float:
        return margin + (math.log10(seconds) - low) / (high - low) * (size - 2 * margin)

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {size + 320} {size}" '
        'font-family="sans-serif" font-size="12">',
        f'<rect width="{size + 320}" height="{size}" fill="white"/>',
    ]
    for decade in range(-2, 4):
        x = at(10.0**decade)
        parts.append(
            f'<path d="M{x:.1f} {margin}V{size - margin}M{margin} {size - x:.1f}H{size - margin}" '
            'stroke="#e5e7eb"/>'
        )
        parts.append(
            f'<text x="{x:.1f}" y="{size - margin + 18}" text-anchor="middle">{10.0**decade:g}</text>'
        )
        parts.append(
            f'<text x="{margin - 8}" y="{size - x + 4:.1f}" text-anchor="end">{10.0**decade:g}</text>'
        )
    a, b = margin, size - margin
    parts.append(f'<path d="M{a} {b}L{b} {a}" stroke="#111827"/>')
    shift = math.log10(1.2) / (high - low) * (size - 2 * margin)
    parts.append(
        f'<path d="M{a} {b - shift:.1f}L{b - shift:.1f} {a}M{a + shift:.1f} {b}L{b} {a + shift:.1f}" '
        'stroke="#9ca3af" stroke-dasharray="4 4"/>'
    )
    for i, (name, rows) in enumerate(groups.items()):
        colour = COLOURS[i % len(COLOURS)]
        parts.append(
            f'<circle cx="{size + 6}" cy="{margin + 22 * i}" r="5" fill="{colour}"/>'
            f'<text x="{size + 18}" y="{margin + 4 + 22 * i}">{name}</text>'
        )
        for r in rows:
            if r.pair:
                tip = f"{r.row.id}: {r.pair.error:+.0%}"
                parts.append(
                    f'<circle cx="{at(r.pair.measured_s):.1f}" cy="{size - at(r.pair.predicted_s):.1f}" '
                    f'r="2.6" fill="{colour}" fill-opacity="0.55"><title>{tip}</title></circle>'
                )
    parts.append(f'<text x="{size / 2}" y="{size - 12}" text-anchor="middle">measured step, seconds</text>')
    parts.append(
        f'<text transform="translate(16 {size / 2}) rotate(-90)" text-anchor="middle">'
        "predicted step, seconds (dashed: 20 % off)</text></svg>"
    )
    return "\n".join(parts)


def worst(rows: list[RowResult], count: int = 25) -> list[str]:
    """Return the rows furthest off with where their predicted time goes."""
    ranked = sorted(
        (r for r in rows if r.pair),
        key=lambda r: -abs(math.log(r.pair.predicted_s / r.pair.measured_s)) if r.pair else 0,
    )
    made = [
        "| run | model | devices | predicted | measured | error | where the predicted time goes |",
        "|---|---|---|--:|--:|--:|---|",
    ]
    for r in ranked[:count]:
        assert r.pair and r.prediction  # noqa: PT018
        total = r.prediction.step_time_s
        terms = sorted(asdict(r.prediction.breakdown).items(), key=lambda kv: -kv[1])[:4]
        where = ", ".join(
            f"{k.removesuffix('_s').replace('_exposed', '')} {v / total:.0%}"
            for k, v in terms
            if v > 0.01 * total
        )
        made.append(
            f"| {r.row.id} | {r.row.model} | {r.row.n_devices} x {r.row.device} "
            f"| {format_seconds(r.pair.predicted_s)} | {format_seconds(r.pair.measured_s)} "
            f"| {r.pair.error:+.0%} | {where} |"
        )
    return made


def page(table: TableResult, notes: str) -> tuple[str, str]:
    """Return the Markdown page and the scatter."""
    timed = [r for r in table.rows if r.row.step_time_derived]
    groups: dict[str, list[RowResult]] = defaultdict(list)
    for r in timed:
        groups[group_of(r)].append(r)
    ordered = {name: groups[name] for name, _ in GROUPS if name in groups}
    predicted = sum(r.pair is not None for r in timed)
    memory, ranking = memory_summary(table.rows), table.ranking()
    text = [
        "# Accuracy on published runs",
        "",
        f"plansim {__version__}. {predicted} of {len(timed)} published steps predicted "
        f"({predicted / len(timed):.0%}). One model, one set of parameters, one code path for every row; "
        "blank cells are filled by assumptions that `validate --table` lists per row. "
        "Regenerate with `make accuracy TABLES=folder`.",
        "",
        "| group | target | runs | median | 90th pct | mean | bias | in 80 % interval | Kendall tau |",
        "|---|---|--:|--:|--:|--:|--:|--:|--:|",
        line(*GROUPS[0], timed, table),
        *(line(name, target, ordered[name], table) for name, target in GROUPS[1:] if name in ordered),
        "",
        f"Ranking: in {ranking['groups']} groups of rival plans (same source, model, devices and batch) the "
        f"plan we would pick ran {ranking['mean_regret']:.1%} slower than the best on average, "
        f"{ranking['max_regret']:.1%} at worst. Kendall tau is the mean over these groups; measured times "
        f"within {NOISE:.0%} of each other are ties.",
        "",
        f"Memory: {memory['n']} runs, median error {memory['median_ape']:.1%}, 90th percentile "
        f"{memory['p90_ape']:.1%}. Of {memory['out_of_memory_rows']} runs that did not fit, "
        f"{memory['out_of_memory_called_infeasible']} are called infeasible; of {memory['ran_rows']} that "
        f"ran, {memory['ran_called_infeasible']} are (a published layout that our memory model refuses).",
        "",
        "![predicted against measured](scatter.svg)",
        "",
        "## Worst rows",
        "",
        *worst(timed),
        "",
        "## Not predicted",
        "",
        "| runs | reason |",
        "|--:|---|",
        *_skipped(timed),
        "",
        notes,
    ]
    return "\n".join(text) + "\n", scatter(ordered)


def _skipped(rows: list[RowResult]) -> list[str]:
    reasons: dict[str, int] = defaultdict(int)
    for r in rows:
        if r.skipped:
            reasons[r.skipped] += 1
    return [f"| {n} | {reason} |" for reason, n in sorted(reasons.items(), key=lambda kv: -kv[1])]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("out", type=Path)
    args = parser.parse_args()
    rows = tuple(
        r for path in sorted(args.folder.glob("published_training*.csv")) for r in validate_table(path).rows
    )
    table = TableResult(table="published training runs", rows=rows)
    notes = (Path(__file__).parent / "accuracy_notes.md").read_text(encoding="utf-8")
    text, svg = page(table, notes)
    write_atomic(args.out / "report.md", text)
    write_atomic(args.out / "scatter.svg", svg)
    write_atomic(args.out / "summary.json", dump_json(table.to_json()["summary"]))
    print(text)


if __name__ == "__main__":
    main()
