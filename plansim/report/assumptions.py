"""What the figures rest on: every input of the recommendation with its value and its source."""

from __future__ import annotations

from dataclasses import dataclass

from plansim import __version__
from plansim.report.conditions import words_of
from plansim.report.option import Option, Run
from plansim.report.read import Results
from plansim.report.words import dollars, duration, short
from plansim.units import format_bytes, format_rate, format_seconds


@dataclass(frozen=True, slots=True, kw_only=True)
class Assumption:
    """One input: what, how much, where from."""

    what: str
    value: str
    source: str


def assumptions(results: Results, best: Option | None) -> list[Assumption]:
    """Return the inputs behind the figures of a report."""
    rows = [
        Assumption(what="Made from", value=", ".join(results.files), source=f"plansim {__version__}"),
    ]
    if best is None:
        return rows
    rows += _workload(best) + _cluster(best)
    return rows + (_run(best) if best.run else [])


def _workload(best: Option) -> list[Assumption]:
    job = best.plan.job
    batch = (
        f"{job.global_batch:,} × {job.seq_len:,} tokens"
        if job.seq_len > 1
        else f"{job.global_batch:,} samples"
    )
    rows = [
        Assumption(what="Model", value=best.model, source="its file or the catalogue"),
        Assumption(what="Global batch", value=f"{batch}, {job.dtype}, {job.optimizer}", source="given"),
        Assumption(
            what="Step time",
            value="80 % interval in every table",
            source="spread of measured over predicted steps of this software stack",
        ),
    ]
    if best.changes:
        words = words_of({k: str(v) for k, v in best.changes.items()})
        rows.append(Assumption(what="Set in the sweep", value=words, source="given"))
    if best.run:
        how = (
            "assumed: 20 a parameter (Hoffmann et al., arXiv 2203.15556)"
            if best.run.assumed_target
            else "given"
        )
        what = f"{best.counted.capitalize()} to train on"
        rows.append(Assumption(what=what, value=short(best.run.target_tokens), source=how))
    return rows


def _cluster(best: Option) -> list[Assumption]:
    sources = best.cluster.get("sources")
    known = {str(k): str(v) for k, v in sources.items()} if isinstance(sources, dict) else {}
    rows = []
    for level in best.cluster.get("fabric") or ():
        rate = format_rate(float(level["bandwidth_bytes_per_s"]))
        rails = f" × {level['rails']} links a node" if level.get("rails") else ""
        name = str(level["name"])
        source = known.pop(f"fabric.{name}", known.get("fabric", "the profile"))
        value = f"{rate}{rails} a direction, {format_seconds(float(level['latency_s']))} ({level['kind']})"
        rows.append(Assumption(what=f"Network: {name}", value=value, source=source))
    rows += [Assumption(what=key, value="as in the profile", source=text) for key, text in known.items()]
    return rows


def _run(best: Option) -> list[Assumption]:
    run, cluster = best.run, best.cluster
    if run is None:
        return []
    price = float(cluster.get("usd_per_device_hour") or 0.0)
    reserved = cluster.get("usd_per_device_hour_reserved")
    return [
        Assumption(
            what="Price",
            value=f"{dollars(price)} a device-hour"
            + (f", reserved {dollars(float(reserved))}" if reserved else "")
            + _prices(run),
            source=str(cluster.get("price_basis", "not stated")),
        ),
        Assumption(
            what="Energy",
            value=f"{cluster.get('power_watts', 0):g} W a device × PUE {cluster.get('pue', 0):g}, "
            f"{cluster.get('kg_co2_per_kwh', 0):g} kg CO₂/kWh",
            source="the profile; hosts and network are not in it unless the power says so",
        ),
        Assumption(
            what="Failures",
            value=f"one device fails every {cluster.get('mtbf_device_hours', 0):,.0f} h, the job every "
            f"{duration(run.mtbf_s)}; restart {duration(run.restart_s)} with reload",
            source="the profile; independent failures at a constant rate, one stops the job",
        ),
        Assumption(
            what="Checkpoints",
            value=f"{format_bytes(run.checkpoint_bytes)}, every {duration(run.interval_s)}, training waits "
            f"{format_seconds(run.checkpoint_s)}",
            source="best interval for this failure rate (Daly 2006); every node writes its share",
        ),
        *_goodput(run),
        Assumption(
            what="Spare nodes",
            value=f"{run.spare_nodes:.0f}, not in the cost"
            + (f": {dollars(run.usd_spares)} more" if run.usd_spares else ""),
            source="99 % of the Poisson number of nodes under repair, repair in a day assumed",
        ),
        Assumption(
            what="Bounds of time, cost, energy, CO₂",
            value="80 % interval of the step, 10 % and 90 % quantile of the number of failures; "
            "cost also from the lowest to the highest price",
            source="step: spread of measured over predicted; failures: Poisson; prices: the catalogue",
        ),
    ]


def _prices(run: Run) -> str:
    low, high = run.usd_per_device_hour_low, run.usd_per_device_hour_high
    if low is None or high is None or low == high:
        return "; no range of prices known"
    return f"; bounds of the cost from {dollars(low)} to {dollars(high)}"


def _goodput(run: Run) -> list[Assumption]:
    """Return the closed form and the simulation of the goodput side by side."""
    drawn = run.simulated
    if drawn is None:
        return []
    spares = "" if drawn.without_spares is None else f"; {drawn.without_spares:.1%} without spare nodes"
    return [
        Assumption(
            what="Goodput",
            value=f"{run.goodput:.2%} by formula, {drawn.goodput:.2%} simulated "
            f"({drawn.low:.2%} to {drawn.high:.2%}){spares}",
            source=f"formula: Daly 2006, a replacement always at hand; simulated: {drawn.campaigns} long "
            f"campaigns, {drawn.failures:,.0f} failures drawn (seed {drawn.seed}), failed nodes repaired in "
            "a day, the mean's 80 % interval",
        )
    ]
