"""The folder of one validation: report, frozen predictions, measurements, and what they were made with."""

from __future__ import annotations

import datetime
import statistics
from pathlib import Path
from typing import TYPE_CHECKING, Any

from plansim.files import dump_json, write_atomic
from plansim.hardware.profile import Profile
from plansim.hardware.write import profile_data
from plansim.units import format_bytes, format_seconds
from plansim.validate.links_report import over_links
from plansim.validate.live import MAX_DRIFT, MAX_FOREIGN, phases

if TYPE_CHECKING:
    from plansim.validate.live import LivePlan, LiveResult


def write_folder(result: LiveResult, profile: Profile, folder: Path) -> None:
    """Write measurements, manifest and report beside the frozen ``prediction.json``."""
    runs = [{"id": r.id, "runs": [run.to_json() for run in r.runs]} for r in result.compared]
    write_atomic(folder / "measurement.json", dump_json({"schema": 1, "rows": runs}))
    write_atomic(folder / "manifest.json", dump_json(_manifest(result, profile)))
    write_atomic(folder / "report.md", report(result))


def _manifest(result: LiveResult, profile: Profile) -> dict[str, Any]:
    first = result.compared[0].runs[0] if result.compared else None
    return {
        "schema": 1,
        "date": datetime.datetime.now(tz=datetime.UTC).isoformat(timespec="seconds"),
        "prediction_sha256": result.prediction_sha256,
        "versions": first.versions if first else {},
        "hardware": first.hardware if first else {},
        "summary": result.summary(),
        "profile": profile_data(profile),
    }


def report(result: LiveResult) -> str:
    """Return the comparison as Markdown."""
    lines = [
        f"# Predicted against measured: {result.profile}",
        "",
        "Every prediction was written to `prediction.json` "
        f"(SHA-256 `{result.prediction_sha256[:16]}…`) before the first run. "
        "Calibrated from micro-benchmarks and single-rank blocks; no run below was used for it.",
        "",
        "| plan | predicted | 80 % interval | measured | noise | error | pace | error at it "
        "| memory predicted | measured | error |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
        *(_line(row) for row in result.plans),
        "",
    ]
    lines += [f"- {line}" for line in findings(result)]
    lines += over_links(result.compared)
    lines += _refit(result.refit)
    lines += _phase_table(result)
    return "\n".join(lines) + "\n"


def findings(result: LiveResult) -> list[str]:
    """Return what the comparison found, one sentence a line."""
    if not result.compared:
        return ["no plan ran"]
    s = result.summary()
    return [
        f"step time: median error {s['median_ape']:.1%}, mean {s['mean_ape']:.1%}, 90th percentile "
        f"{s['p90_ape']:.1%}, largest {s['max_ape']:.1%}, bias {s['bias']:+.1%}",
        *_at_pace(s.get("at_pace")),
        f"peak memory: median error {s['memory_median_ape']:.1%}, largest {s['memory_max_ape']:.1%}",
        f"noise of the machine, run to run: median {s['noise_median']:.1%}, 90th percentile "
        f"{s['noise_p90']:.1%}; {s['discarded_runs']} runs discarded: other "
        f"processes used more than {MAX_FOREIGN:.0%}, or the machine's pace alone would have moved the step "
        f"by more than {MAX_DRIFT:.0%}",
        f"measured times inside the 80 % interval: {s['interval_coverage']:.0%}",
        *_ranking(s),
    ]


def _at_pace(found: dict[str, Any] | None) -> list[str]:
    if not found:
        return []
    return [
        f"at the machine's own pace: mean error {found['mean_ape']:.1%}, 90th percentile "
        f"{found['p90_ape']:.1%}, largest {found['max_ape']:.1%}, bias {found['bias']:+.1%}. The same piece "
        f"of computing, timed between the steps of each run, took {found['pace_low']:.2f} to "
        f"{found['pace_high']:.2f} times what it took in the calibration (pace); the frozen model is asked "
        "again for a machine as fast as that, nothing else changed"
    ]


def _line(row: LivePlan) -> str:
    p = row.prediction
    predicted = format_seconds(p.step_time_s)
    interval = f"{format_seconds(p.step_time_low_s)} to {format_seconds(p.step_time_high_s)}"
    if not row.runs:
        return f"| {row.id} | {predicted} | {interval} | skipped: {row.skipped} | | | | | | | |"
    error = p.peak_memory_bytes / row.peak_memory_bytes - 1
    pace = "|" if row.paced_error is None else f"{statistics.median(row.paces):.2f} | {row.paced_error:+.1%}"
    return (
        f"| {row.id} | {predicted} | {interval} | {format_seconds(row.measured_s)} | {row.noise:.1%} | "
        f"{row.pair.error:+.1%} | {pace} | {format_bytes(p.peak_memory_bytes)} | "
        f"{format_bytes(row.peak_memory_bytes)} | {error:+.1%} |"
    )


def _phase_table(result: LiveResult) -> list[str]:
    """Return what each phase of each plan was predicted to take and took, per cent of the measured step."""
    rows = []
    for row in result.compared:
        cells = [
            f"{format_seconds(p['predicted_s'])} | {format_seconds(p['measured_s'])} | "
            f"{(p['predicted_s'] - p['measured_s']) / row.measured_s:+.1%}"
            for p in phases(row).values()
        ]
        rows += [f"| {row.id} | {' | '.join(cells)} |"] if cells else []
    if not rows:
        return []
    return [
        "",
        "## Error by phase",
        "",
        "Computing is forward and backward; waiting is communication that computing does not hide, for peers "
        "too. Each error is given as a share of the measured step, so that the three add up to its error. "
        "Both are of the pipeline stage that the prediction finds critical; measured ones are means over its "
        "ranks.",
        "",
        "| plan | computing: predicted | measured | error | optimizer: predicted | measured | error "
        "| waiting: predicted | measured | error |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
        *rows,
    ]


def _ranking(s: dict[str, Any]) -> list[str]:
    tau = (
        ""
        if s["kendall_tau"] is None
        else f"Kendall tau {s['kendall_tau']:.2f} (ties within noise left out); "
    )
    picks = ", ".join(f"{name}: {value:.1%}" for name, value in s["regret"].items())
    return [f"ranking: {tau}regret of the pick by group: {picks}"]


def _refit(refit: dict[str, Any] | None) -> list[str]:
    if not refit:
        return []
    if "skipped" in refit:
        return ["", f"Refit: {refit['skipped']}."]
    return [
        "",
        f"Refit on {len(refit['fitted_on'])} plans (compute x {refit['compute_factor']:.3f}, communication x "
        f"{refit['communication_factor']:.3f}): median error of the {len(refit['judged_on'])} others "
        f"{refit['median_ape_before']:.1%} before, {refit['median_ape_after']:.1%} after.",
    ]
