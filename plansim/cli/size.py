"""``plansim size``: the smallest, cheapest and fastest cluster that meets a target."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from plansim.cli.options import Json, Override
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
    safe: Annotated[
        bool, typer.Option("--safe", help="The slow end of the interval must meet it too.")
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

    Time and money count failures, checkpoints and restarts. When no cluster meets the target it says what is
    short and ends with 4.
    """
    from plansim.capacity.size import parse_target, size_clusters
    from plansim.cli import console
    from plansim.cli.options import read_shape, split_overrides
    from plansim.plan.read import job_from_data
    from plansim.units import parse

    wanted = parse_target(target)
    changes = split_overrides(override, ("job",))["job"]
    shape = read_shape(model)
    length = seq_len or shape.seq_len
    data = {"global_batch": global_batch or max(1, BATCH_TOKENS // length), "seq_len": length}
    job = job_from_data(
        data | ({"target_tokens": parse(tokens, "tokens")} if tokens else {}), overrides=changes
    )
    ends = Ticker("clusters")
    found = size_clusters(
        model,
        job,
        wanted,
        profiles=profile,
        max_devices=max_devices,
        safe=safe,
        executor=make_executor(executor, workers),
        search="full" if full else "quick",
        progress=ends.tick,
    )
    ends.close()
    if out:
        from plansim.files import dump_json, write_atomic

        write_atomic(out, dump_json(found.to_json()))
    if json:
        console.emit_json(found.to_json())
    else:
        console.show(*tables(found))


def tables(found: Sizing) -> list[RenderableType]:
    """Return the three answers, and what was tried."""
    from plansim.capacity.size import time_text
    from plansim.cli import console
    from plansim.cli.show import plan_words
    from plansim.plan.read import plan_from_data

    first = next(iter(found.best.values()))
    target = first["target_tokens"]
    how = "assumed: 20 a parameter; --tokens to change" if first["reality"]["assumed_target"] else "given"
    head = f"{found.model}: {found.target.text} for {target:.3g} tokens ({how})\n"
    head += f"{len(found.tried)} clusters tried\n"
    made = console.table(
        what="", cluster="cluster", run="run>", usd="$>", sure="80 % interval>", plan="plan~"
    )
    for name, row in found.best.items():
        run = row["reality"]
        made.add_row(
            name,
            f"{row['scenario']['profile']} x {row['cluster']['devices']:,}",
            time_text(run["wall_s"]),
            f"{run['usd']:,.0f}",
            f"{time_text(run['wall_low_s'])} to {time_text(run['wall_high_s'])}",
            plan_words(plan_from_data(row["plan"])),
        )
    return [head, made, *_notes(first, found)]


def _notes(row: dict[str, Any], found: Sizing) -> list[str]:
    run = row["reality"]
    notes = [
        f"\nOf the {next(iter(found.best))}: goodput {run['goodput']:.1%}, "
        f"{run['failures']:,.1f} interruptions, a checkpoint every {run['interval_s'] / 60:,.0f} min, "
        f"{run['spare_nodes']} spare nodes, "
        f"{run['kwh'] / 1e3:,.1f} MWh, {run['kg_co2'] / 1e3:,.1f} t CO2"
    ]
    return notes + [f"not tried: {text}" for text in found.skipped]
