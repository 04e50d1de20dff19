"""``plansim validate``: predictions beside measurements."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from plansim.cli.options import Json, ModelName, Override

if TYPE_CHECKING:
    from collections.abc import Mapping

    from rich.console import RenderableType

    from plansim.hardware.profile import Profile
    from plansim.plan.model import Job, Plan
    from plansim.validate.live import LiveResult
    from plansim.validate.table import TableResult
    from plansim.workload.model import Model


def validate(
    table: Annotated[
        str | None,
        typer.Option("--table", metavar="CSV", help="Predict every row of a table of measured runs."),
    ] = None,
    rows: Annotated[bool, typer.Option("--rows", help="Print every row, not only the summaries.")] = False,
    max_error: Annotated[
        str | None,
        typer.Option("--max-error", metavar="10%", help="Exit with 6 when the median error is larger."),
    ] = None,
    profile: Annotated[
        str | None,
        typer.Option("--profile", "-p", metavar="P", help="Run plans here; P describes this machine."),
    ] = None,
    model: ModelName = None,
    plans: Annotated[
        list[str] | None,
        typer.Option(
            "--plans", metavar="FILE", help="Plan files to run, or folders of them; may be repeated."
        ),
    ] = None,
    more: Annotated[
        list[str] | None,
        typer.Argument(metavar="FILE", help="After --plans: more of them, as a shell pattern gives."),
    ] = None,
    top: Annotated[
        int, typer.Option("--top", min=1, help="Without --plans: how many of the best plans.")
    ] = 5,
    repeats: Annotated[int, typer.Option("--repeats", min=1, help="Rounds over all plans.")] = 3,
    steps: Annotated[int, typer.Option("--steps", min=1, help="Timed steps of each run.")] = 10,
    refit: Annotated[
        bool, typer.Option("--refit", help="Scale the profile to half of the plans; judge the other half.")
    ] = False,
    rates: Annotated[
        str | None,
        typer.Option(
            "--rates",
            metavar="LIST",
            help="Run over a testbed's links of these rates, e.g. '50 Mbit/s,unshaped' (Linux, root); "
            "without --plans the best plan of every strategy.",
        ),
    ] = None,
    hosts: Annotated[
        int, typer.Option("--hosts", min=1, max=64, help="With --rates: hosts of the testbed.")
    ] = 2,
    ranks_per_host: Annotated[
        int, typer.Option("--ranks-per-host", min=1, help="With --rates: ranks that share a host.")
    ] = 1,
    out: Annotated[
        str | None, typer.Option("--out", metavar="FOLDER", help="Where the report goes (reports/<profile>).")
    ] = None,
    override: Override = None,
    json: Json = False,
) -> None:
    """Compare predictions with measured runs.

    The runs are those of a table, or of plans run here and now.

    With --profile, plans are chosen (or read), predicted, run in turns and compared; the predictions are
    written before the first run. Rows that cannot be predicted are listed with their reason; what a blank
    cell was taken for is listed too.
    """
    from plansim.cli import console

    gate = None if max_error is None else percentage(max_error)
    if more and not plans:
        raise typer.BadParameter(f"{more[0]}: say what it is, --plans {more[0]} or --table {more[0]}")
    if (table is None) == (profile is None and not plans):
        raise typer.BadParameter("say what to compare with: one of --table, --profile or --plans")
    chosen = [*(plans or []), *(more or [])]
    unused = {"--model": model, "--out": out, "-o": override, "--refit": refit}
    given = [name for name, value in unused.items() if value]
    if table is not None and given:
        raise typer.BadParameter(
            f"{', '.join(given)}: no effect on a table, whose rows say all; --json > FILE keeps the answer",
            param_hint="--table",
        )
    if rates is not None and (table is not None or refit):
        raise typer.BadParameter(
            "runs plans over links: neither with --table nor with --refit", param_hint="--rates"
        )
    if table is None:
        live = (
            _live(profile, model, chosen, top, repeats, steps, refit, out, override)
            if rates is None
            else _over_links(
                rates, (hosts, ranks_per_host), profile, model, chosen, repeats, steps, out, override
            )
        )
        console.emit_json(live.to_json()) if json else console.show(*_live_tables(live))
        check_gate(live.summary()["median_ape"], gate)
        return
    from plansim.validate.table import validate_table

    result = validate_table(Path(table))
    data = result.to_json()
    if json:
        console.emit_json(data)
    else:
        console.show(
            *([_rows(result)] if rows else []),
            *_summaries(data["summary"]),
            *_unmeasured(result),
            *_skipped(result),
        )
    check_gate(data["summary"]["all"]["median_ape"], gate)


def _live(
    profile: str | None,
    model: str | None,
    plans: list[str],
    top: int,
    repeats: int,
    steps: int,
    refit: bool,
    out: str | None,
    override: list[str] | None,
) -> LiveResult:
    """Return the plans asked for, predicted and run."""
    from plansim.cli import console
    from plansim.cli.options import split_overrides

    _need_torch()
    from plansim.validate.live import validate_live

    cases, cluster = _cases(profile, model, plans, override)
    if cluster is None:
        cluster, shape, job = _question(profile, model, split_overrides(override))
        cases = _best_plans(shape, cluster, job, top)
    folder = Path(out) if out else Path("reports") / cluster.name
    return validate_live(
        cases, cluster, out=folder, steps=steps, repeats=repeats, refit=refit, say=console.say
    )


def _over_links(
    rates: str,
    places: tuple[int, int],
    profile: str | None,
    model: str | None,
    plans: list[str],
    repeats: int,
    steps: int,
    out: str | None,
    override: list[str] | None,
) -> LiveResult:
    """Return the plans asked for, predicted and run over links of every rate."""
    import math

    from plansim.cli import console
    from plansim.cli.options import split_overrides, usage

    _need_torch()
    from plansim.execute.netns import require_namespaces
    from plansim.execute.testbed import TestbedSpec
    from plansim.validate.beds import contenders, rates_of, validate_on_testbed

    with usage("--rates"):
        links = rates_of(rates)
    require_namespaces()
    cases, base = _cases(profile, model, plans, override)
    if base is None:
        changes = split_overrides(override)
        base, shape, job = _question(profile, model, changes)
        known = [math.log(r) for r in links.values() if r is not None]
        middle = math.exp(sum(known) / len(known)) if known else None
        bed = TestbedSpec.even(places[0], middle, ranks_per_host=places[1])
        cases = contenders(shape, base, job, bed, say=console.say)
    folder = Path(out) if out else Path("reports") / "testbed"
    return validate_on_testbed(
        cases, base, links, ranks_per_host=places[1], out=folder, steps=steps, repeats=repeats,
        say=console.say,
    )  # fmt: skip


def _need_torch() -> None:
    """Raise `MissingExtraError` where plans cannot run."""
    from importlib.util import find_spec

    from plansim.errors import MissingExtraError

    if find_spec("torch") is None:
        raise MissingExtraError("running plans", "torch", "execute")


LIVE_MODEL = "gpt-mini"
"""What is trained when no model is named: small enough for any machine."""


def _cases(
    profile: str | None, model: str | None, plans: list[str], override: list[str] | None
) -> tuple[list[tuple[Model, Plan]], Profile | None]:
    """Return the plan files with their models, and the profile of the first; None without a file."""
    from plansim.cli.options import read_case

    cases: list[tuple[Model, Plan]] = []
    cluster: Profile | None = None
    for path in _files(plans):
        plan, shape, lies_on = read_case(path, override, profile=profile, model=model)
        cases.append((shape, plan))
        cluster = cluster or lies_on
    return cases, cluster


def _files(given: list[str]) -> list[str]:
    """Return plan files, folders replaced by the plan files in them."""
    from plansim.errors import InputError

    found: list[str] = []
    for path in given:
        inside = sorted(str(p) for p in Path(path).glob("*.yaml")) if Path(path).is_dir() else [path]
        if not inside:
            raise InputError(f"{path}: no plan file (*.yaml) in this folder")
        found += inside
    return found


def _question(
    profile: str | None, model: str | None, changes: dict[str, dict[str, str]]
) -> tuple[Profile, Model, Job]:
    """Return what to plan for when no plan was given."""
    from plansim.cli.options import read_shape
    from plansim.hardware.read import load_profile
    from plansim.plan.read import job_from_data

    cluster = load_profile(profile or "local-cpu", changes["profile"])
    shape = read_shape(model or LIVE_MODEL, changes["model"])
    dtype = "fp32" if cluster.device.kind == "cpu" else "bf16"
    given = {"global_batch": 16, "seq_len": shape.seq_len, "dtype": dtype}
    return cluster, shape, job_from_data(given, overrides=changes["job"])


def _best_plans(shape: Model, cluster: Profile, job: Job, top: int) -> list[tuple[Model, Plan]]:
    """Return the best plans this machine can run."""
    from plansim.planner import plan as search_plans

    return [
        (shape, ranked.plan) for ranked in search_plans(shape, cluster, job, top=top, backend="plansim").plans
    ]


def _live_tables(result: LiveResult) -> list[RenderableType]:
    """Return one row a plan, and the summary in words."""
    from plansim.cli import console
    from plansim.units import format_bytes, format_seconds

    made = console.table(
        plan="plan~", predicted="predicted>", measured="measured>", noise="noise>", error="error>",
        memory="memory predicted>", held="measured>", off="error>",
    )  # fmt: skip
    for r in result.plans:
        predicted = format_seconds(r.prediction.step_time_s)
        if not r.runs:
            made.add_row(r.id, predicted, f"skipped: {r.skipped}", "", "", "", "", "")
            continue
        expected = r.prediction.peak_memory_bytes
        off = expected / r.peak_memory_bytes - 1
        made.add_row(
            r.id, predicted, format_seconds(r.measured_s), f"{r.noise:.1%}", f"{r.pair.error:+.1%}",
            format_bytes(expected), format_bytes(r.peak_memory_bytes), f"{off:+.1%}",
        )  # fmt: skip
    from plansim.validate.folder import findings

    return [made, "", *findings(result)]


def percentage(text: str) -> float:
    """Return a fraction written as ``10%`` or ``0.1``.

    Examples
    --------
    >>> percentage("10%"), percentage("0.25")
    (0.1, 0.25)
    """
    try:
        value = float(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
    except ValueError:
        value = -1.0
    if not 0 < value < 100:
        raise typer.BadParameter(f"'{text}' is no error such as 10% or 0.1", param_hint="--max-error")
    return value


def check_gate(median: float | None, gate: float | None) -> None:
    """Raise `AccuracyError` when the median error is beyond the gate, or there is nothing to judge."""
    from plansim.errors import AccuracyError

    if gate is None:
        return
    if median is None:
        raise AccuracyError("nothing could be compared, so --max-error cannot be met")
    if median > gate:
        raise AccuracyError(f"median error {median:.1%} is beyond the {gate:.1%} asked for")


def _rows(result: TableResult) -> RenderableType:
    from plansim.cli import console
    from plansim.units import format_seconds

    made = console.table(
        id="run", predicted="predicted>", range="80 % interval", measured="measured>", error="error>"
    )
    for r in result.rows:
        if r.prediction is None:
            continue
        p, scale = r.prediction, r.scale
        low, high = (format_seconds(t * scale) for t in (p.step_time_low_s, p.step_time_high_s))
        beside = (format_seconds(r.pair.measured_s), f"{r.pair.error:+.1%}") if r.pair else ("-", "")
        made.add_row(r.row.id, format_seconds(p.step_time_s * scale), f"{low} to {high}", *beside)
    return made


def _unmeasured(result: TableResult) -> list[RenderableType]:
    """Return how many rows are predicted beside no measurement."""
    alone = sum(r.prediction is not None and r.pair is None for r in result.rows)
    return [f"{alone:,} rows predicted without a measured step time: --rows shows them"] if alone else []


def _summaries(summary: Mapping[str, Any]) -> list[RenderableType]:
    from plansim.cli import console

    shown: list[RenderableType] = []
    for title, groups in (
        ("All", {"all": summary["all"]}),
        ("By source", summary["by_source"]),
        ("By device", summary["by_device"]),
    ):
        made = console.table(
            title=title,
            group="group~",
            n="runs>",
            skipped="skipped>",
            median="median>",
            p90="90th>",
            mean="mean>",
            bias="bias>",
            inside="in interval>",
            tau="Kendall tau>",
        )
        for name, s in groups.items():
            figures = [_percent(s[key]) for key in ("median_ape", "p90_ape", "mean_ape")]
            tau = "" if s["kendall_tau"] is None else f"{s['kendall_tau']:.2f}"
            made.add_row(
                name,
                str(s["n"]),
                str(s["skipped"]),
                *figures,
                _percent(s["bias"], sign="+"),
                _percent(s["interval_coverage"]),
                tau,
            )
        shown += [made, ""]
    return shown


def _percent(value: float | None, sign: str = "") -> str:
    return "" if value is None else f"{value:{sign}.1%}"


def _skipped(result: TableResult, most: int = 20) -> list[RenderableType]:
    """Return why rows were skipped, reasons counted; the JSON answer lists every row."""
    from collections import Counter

    reasons = Counter(r.skipped for r in result.rows if r.skipped)
    lines = [f"{count:>5} x {reason}" for reason, count in reasons.most_common(most)]
    more = (
        [f"      and {len(reasons) - most} more reasons (--json lists every row)"]
        if len(reasons) > most
        else []
    )
    return ["Skipped", *lines, *more] if lines else []
