"""``plansim size``: the smallest, cheapest and fastest cluster that meets a target."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from plansim.cli.options import Json, Override, usage
from plansim.cli.sweep import ExecutorName, Ticker, Workers, make_executor

if TYPE_CHECKING:
    from rich.console import RenderableType

    from plansim.capacity.size import Sizing

BATCH_TOKENS = 4 * 2**20
"""Tokens of a step when no batch is given: what Llama 3 began with (arXiv 2407.21783, section 3.4.1)."""


def size(
    model: Annotated[str, typer.Option("--model", "-m", metavar="M", help="Model name or file.")],
    target: Annotated[
        str,
        typer.Option("--target", metavar="T", help='"30 days", "2000 tokens/s" or "$1M" for the training.'),
    ],
    tokens: Annotated[
        str | None,
        typer.Option("--tokens", metavar="N", help='Tokens to train on, "15T"; 20 a parameter by default.'),
    ] = None,
    profile: Annotated[
        list[str] | None,
        typer.Option("--profile", "-p", metavar="P", help="Only these; by default all that have a price."),
    ] = None,
    global_batch: Annotated[
        int | None, typer.Option("--global-batch", min=1, help="Sequences a step; 4 Mi tokens by default.")
    ] = None,
    seq_len: Annotated[int | None, typer.Option("--seq-len", min=1, help="The model's by default.")] = None,
    max_devices: Annotated[int, typer.Option("--max-devices", min=1, help="Largest cluster.")] = 4096,
    price: Annotated[
        list[str] | None,
        typer.Option(
            "--price", metavar="P=USD", help='What you pay a device-hour: "h100x8=2.10", or "2.10" for all.'
        ),
    ] = None,
    safe: Annotated[
        bool, typer.Option("--safe", help="The slow end of the run's interval must meet it too.")
    ] = False,
    full: Annotated[bool, typer.Option("--full", help="Search every choice of a plan; slower.")] = False,
    executor: ExecutorName = "processes",
    workers: Workers = None,
    out: Annotated[
        Path | None, typer.Option("--out", metavar="JSON", help="Write the answer for plansim report.")
    ] = None,
    override: Override = None,
    json: Json = False,
) -> None:
    """Find the cluster that meets a target.

    The smallest, the cheapest and the fastest of the catalogue, with the plan for each.

    Time and money count failures, checkpoints and restarts. -o changes the job, the model and every profile
    (job.KEY, model.KEY, profile.KEY). When no cluster meets the target it says what is short and ends with 4.
    """
    from plansim.capacity.size import parse_target, size_clusters
    from plansim.cli import console
    from plansim.cli.options import read_shape, require_agreement, split_overrides
    from plansim.files import dump_json, require_writable, write_atomic
    from plansim.plan.read import job_from_data
    from plansim.planner.defaults import usual_batch
    from plansim.workload.model import SAMPLE_FAMILIES

    with usage("--target"):
        wanted = parse_target(target)
    with usage("--tokens"):
        trained = {"target_tokens": _tokens(tokens)} if tokens else {}
    with usage("--price"):
        prices = prices_of(price)
    run = make_executor(executor, workers)
    if out:
        require_writable(out)
    changes = split_overrides(override, ("job", "model", "profile"))
    said = {"--global-batch": (global_batch, "job.global_batch"), "--seq-len": (seq_len, "job.seq_len")}
    require_agreement(changes, {**said, "--tokens": (tokens, "job.target_tokens")})
    shape = read_shape(model, changes["model"])
    length = 1 if shape.family in SAMPLE_FAMILIES else seq_len or shape.seq_len
    data = {"global_batch": global_batch or usual_batch(shape, length, BATCH_TOKENS), "seq_len": length}
    job = job_from_data(data | trained, overrides=changes["job"])
    kept = [(f"{kind}.{key}", text) for kind in ("profile", "model") for key, text in changes[kind].items()]
    with Ticker("clusters") as ends:
        found = size_clusters(
            model,
            job,
            wanted,
            profiles=profile,
            max_devices=max_devices,
            safe=safe,
            changes=tuple(kept),
            prices=prices,
            executor=run,
            search="full" if full else "quick",
            progress=ends.tick,
        )
    if out:
        write_atomic(out, dump_json(found.to_json()))
        console.say(f"wrote {out}")
    if json:
        console.emit_json(found.to_json())
    else:
        console.show(*tables(found))


def _tokens(text: str) -> float:
    """Return a number of tokens, written as ``15T`` or ``300e9``."""
    from plansim.errors import InputError
    from plansim.units import parse

    found = parse(text, "tokens")
    if not found > 0:
        raise InputError(f"'{text}': expected more than 0")
    return found


def prices_of(given: list[str] | None) -> dict[str, float]:
    """Return prices by profile from ``h100x8=2.10`` or, for all under an empty name, ``2.10``.

    Examples
    --------
    >>> prices_of(["$2", "h100x8=2.10"])
    {'': 2.0, 'h100x8': 2.1}
    """
    from math import inf

    from plansim.errors import InputError

    found = {}
    for text in given or ():
        name, _, number = text.rpartition("=")
        try:
            value = float(number.strip().lstrip("$"))
        except ValueError:
            value = -1.0
        if not 0 < value < inf:
            raise InputError(f'--price {text}: expected dollars a device-hour, "h100x8=2.10" or "2.10"')
        found[name.strip()] = value
    return found


def _counted(row: dict[str, Any]) -> str:
    """Return what is trained on: tokens, or samples where they have no sequence."""
    return "tokens" if row["plan"]["job"]["seq_len"] > 1 else "samples"


def tables(found: Sizing) -> list[RenderableType]:
    """Return the three answers, and what was tried."""
    from plansim.capacity.size import time_text
    from plansim.cli import console
    from plansim.cli.plan_words import plan_words
    from plansim.plan.read import plan_from_data

    first = next(iter(found.best.values()))
    target = first["target_tokens"]
    how = "assumed: 20 a parameter; --tokens to change" if first["reality"]["assumed_target"] else "given"
    counted = _counted(first)
    aim = "at least " if found.target.kind == "tokens_per_s" else "at most "
    head = f"{found.model}: {aim}{found.target.text}, training on {target:.3g} {counted} ({how})\n"
    head += f"{len(found.tried)} clusters tried\n"
    made = console.table(
        what="", cluster="cluster", run="run>", usd="$>", giga=f"$/10⁹ {counted}>", plan="plan~"
    )
    for name, row in found.best.items():
        run = row["reality"]
        made.add_row(
            name,
            f"{row['scenario']['profile']} x {row['cluster']['devices']:,}",
            time_text(run["wall_s"]),
            f"{run['usd']:,.0f}" if run["usd"] else "no price",
            f"{run['usd_per_giga_tokens']:,.0f}" if run["usd"] else "-",
            plan_words(plan_from_data(row["plan"])),
        )
    notes = [line for name, row in _distinct(found.best) for line in _notes(name, row)]
    return [head, made, *_by_profile(found), *notes, *[f"not tried: {text}" for text in found.skipped]]


def _by_profile(found: Sizing) -> list[RenderableType]:
    """Return the cheapest answer of every kind of cluster, when there are several kinds."""
    from math import inf

    from plansim.capacity.size import time_text
    from plansim.cli import console

    profiles = list(dict.fromkeys(r["scenario"]["profile"] for r in found.tried))
    if len(profiles) < 2:
        return []
    made = console.table(profile="cheapest of each", devices="devices>", run="run>", usd="$>", why="")
    rows = []
    for name in profiles:
        mine = [r for r in found.tried if r["scenario"]["profile"] == name]
        able = [r for r in mine if r["status"] == "ok"]
        pick = [r for r in able if found.target.met(r, safe=found.safe)]
        if not able:
            rows.append((inf, (name, "", "", "", "no plan fits")))
            continue
        best = min(pick or able, key=lambda r: (r["reality"]["usd"] or inf) if pick else found.target.miss(r))
        run = best["reality"]
        said = "" if pick else found.target.shortfall(best)
        cells = (name, f"{best['cluster']['devices']:,}", time_text(run["wall_s"]))
        money = f"{run['usd']:,.0f}" if run["usd"] else "no price"
        rows.append(((run["usd"] or inf) if pick else inf, (*cells, money, said)))
    for _, line in sorted(rows, key=lambda r: r[0]):
        made.add_row(*line)
    return ["", made]


def _distinct(best: dict[str, dict[str, Any]]) -> list[tuple[str, dict[str, Any]]]:
    """Return the answers, those of one cluster joined: ``smallest, cheapest``."""
    names: dict[str, list[str]] = {}
    for name, row in best.items():
        names.setdefault(row["key"], []).append(name)
    return [(", ".join(mine), best[mine[0]]) for mine in names.values()]


def _notes(name: str, row: dict[str, Any]) -> list[str]:
    """Return what a run costs and rests on, each figure with its bounds."""
    from plansim.capacity.size import time_text
    from plansim.report.words import energy, mass
    from plansim.units import format_seconds

    run = row["reality"]
    lines = [f"\n{name}: {row['scenario']['profile']} x {row['cluster']['devices']:,}, likely bounds (80 %)"]
    lines += [f"  run       {time_text(run['wall_low_s'])} to {time_text(run['wall_high_s'])}"]
    if run["usd"]:
        low, high = run["usd_per_device_hour_low"], run["usd_per_device_hour_high"]
        price = f"at ${low:,.2f} to ${high:,.2f}" if low < high else f"at ${low:,.2f}"
        lines += [
            f"  cost      ${run['usd_low']:,.0f} to ${run['usd_high']:,.0f}, {price} a device-hour",
            f"            ${run['usd_per_giga_tokens_low']:,.0f} to ${run['usd_per_giga_tokens_high']:,.0f} "
            f"for 10⁹ {_counted(row)}",
        ]
    lines += [
        f"  energy    {energy(run['kwh_low'])} to {energy(run['kwh_high'])}, "
        f"{mass(run['kg_co2_low'])} to {mass(run['kg_co2_high'])} CO2",
        f"  goodput   {run['goodput']:.1%} by formula{_simulation_words(run['simulated'])}",
        f"  failures  {run['failures']:,.1f} interruptions, a checkpoint every "
        f"{format_seconds(run['interval_s'])}",
        f"  spares    {run['spare_nodes']} node{'' if run['spare_nodes'] == 1 else 's'}{_spare_words(run)}",
    ]
    return lines


def _simulation_words(simulated: dict[str, Any] | None) -> str:
    if simulated is None:
        return ", too low to simulate"
    return (
        f", {simulated['goodput']:.1%} simulated (± {simulated['standard_error']:.2%}, "
        f"{simulated['failures']:,.0f} failures drawn)"
    )


def _spare_words(run: dict[str, Any]) -> str:
    without = (run["simulated"] or {}).get("without_spares")
    cost = f", ${run['usd_spares']:,.0f} on top" if run["usd_spares"] else ""
    return cost if without is None else f"{cost}; goodput without them {without:.1%}"
