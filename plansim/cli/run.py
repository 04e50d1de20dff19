"""``plansim run``: execute a plan with torch.distributed and print what was measured."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from plansim.cli.options import Json, ModelName, Override, read_case, require_known, warn_without_effect

if TYPE_CHECKING:
    from rich.console import RenderableType

    from plansim.hardware.profile import Profile
    from plansim.plan.model import Plan
    from plansim.results import Measurement, Prediction
    from plansim.workload.model import Model

Steps = Annotated[int, typer.Option("--steps", min=1, help="Timed steps of each repeat.")]
Warmup = Annotated[int, typer.Option("--warmup", min=0, help="Untimed steps before them.")]
Repeats = Annotated[int, typer.Option("--repeats", min=1, help="Times the whole run is started anew.")]


def run(
    plan: Annotated[str, typer.Argument(metavar="PLAN", help="A plan file.")],
    profile: Annotated[
        str | None, typer.Option("--profile", "-p", metavar="P", help="Instead of the plan's.")
    ] = None,
    model: ModelName = None,
    steps: Steps = 10,
    warmup: Warmup = 3,
    repeats: Repeats = 1,
    data: Annotated[str, typer.Option("--data", help="synthetic, digits or text.")] = "synthetic",
    check: Annotated[
        bool, typer.Option("--check/--no-check", help="Compare the first losses with a single process.")
    ] = True,
    port: Annotated[
        int, typer.Option("--port", min=0, max=65535, help="Port to meet at; 0 chooses a free one.")
    ] = 0,
    timeout: Annotated[
        float, typer.Option("--timeout", min=0.001, help="Seconds after which to give up.")
    ] = 600.0,
    checkpoint: Annotated[
        str | None,
        typer.Option("--checkpoint", metavar="DIR", help="Write checkpoints here; continue from the last."),
    ] = None,
    checkpoint_every: Annotated[
        int, typer.Option("--checkpoint-every", min=1, help="Steps between checkpoints.")
    ] = 10,
    max_restarts: Annotated[
        int,
        typer.Option(
            "--max-restarts", min=0, help="Times to go on from the last checkpoint when a rank dies."
        ),
    ] = 0,
    trace: Annotated[
        str | None,
        typer.Option(
            "--trace", metavar="FILE", help="Write one step, predicted and measured, for ui.perfetto.dev."
        ),
    ] = None,
    out: Annotated[str | None, typer.Option("--out", metavar="FILE", help="Write the measurement.")] = None,
    override: Override = None,
    json: Json = False,
) -> None:
    """Execute a plan on this machine: measured beside predicted.

    The first losses are compared with a single process before anything is timed. CPU profiles run on gloo,
    others on NCCL. Under torchrun it joins as one rank; on several machines start it on each with torchrun:
    torchrun --nnodes N --nproc-per-node G --rdzv-backend c10d --rdzv-endpoint HOST:PORT
    -m plansim.cli.main run PLAN.
    """
    from plansim.cli import console
    from plansim.errors import MissingExtraError
    from plansim.files import require_writable

    try:
        from plansim.execute import RunOptions, first_process, run_plan
    except ImportError:
        raise MissingExtraError("running a plan", "torch", "execute") from None
    from plansim.execute.data import SOURCES

    require_known("--data", data, SOURCES)
    given, shape, cluster = read_case(plan, override, profile=profile, model=model)
    warn_without_effect(given, shape)
    for path in filter(None, (out, trace)):
        require_writable(Path(path))
    device = "cpu" if cluster.backend == "gloo" else "cuda"
    options = RunOptions(
        data=data,
        check=check,
        device=device,
        timeout_s=timeout,
        checkpoint=checkpoint,
        checkpoint_every=checkpoint_every,
    )
    measured = run_plan(
        given, shape, steps=steps, warmup=warmup, repeats=repeats, out=out, options=options, port=port,
        max_restarts=max_restarts, say=console.say,
    )  # fmt: skip
    if trace is not None and first_process():
        _write_trace(trace, measured, given, shape, cluster)
        console.say(f"wrote {trace}; open it in ui.perfetto.dev")
    expected = predicted(given, shape, cluster)
    if json:
        console.emit_json(with_prediction(measured, expected))
        return
    console.show(*tables(measured, expected))


def predicted(plan: Plan, model: Model, profile: Profile) -> Prediction:
    """Return the prediction of the plan that ran; it depends on nothing that the run measured."""
    from plansim.simulate.predict import predict

    return predict(model, profile, plan)


def with_prediction(measured: Measurement, expected: Prediction) -> dict[str, Any]:
    """Return the measurement as JSON, with what was predicted and the error of the step time."""
    error = expected.step_time_s / measured.step_time_s - 1.0
    return {**measured.to_json(), "prediction": expected.to_json(), "error": error}


def _write_trace(path: str, measured: Measurement, plan: Plan, model: Model, profile: Profile) -> None:
    """Write the predicted and the measured step side by side."""
    from plansim.results import Span
    from plansim.results.trace import merge, write_trace
    from plansim.simulate.timeline import step_spans

    write_trace(path, merge(step_spans(model, profile, plan), [Span(**span) for span in measured.spans]))


def tables(measured: Measurement, expected: Prediction) -> list[RenderableType]:
    """Return the summary, predicted beside measured, and one row a rank."""
    from plansim.cli import console
    from plansim.units import format_bytes, format_seconds

    summary = console.table(what="", predicted="predicted>", measured="measured>", error="error>")
    for what, before, after, error in _sides(measured, expected):
        summary.add_row(what, before, after, f"{error:+.1%}")
    losses = measured.ranks[0].losses
    summary.add_row("loss, first → last", "", f"{losses[0]:.4f} → {losses[-1]:.4f}", "")
    phases = list(measured.ranks[0].phases_s)
    ranks = console.table(
        rank="rank>", step="step>", memory="memory>", **{phase: f"{phase}>" for phase in phases}
    )
    for r in measured.ranks:
        times = sorted(r.step_times_s)
        ranks.add_row(
            str(r.rank),
            format_seconds(times[len(times) // 2]),
            format_bytes(r.peak_memory_bytes),
            *(format_seconds(r.phases_s[p]) for p in phases),
        )
    return [summary, ranks, *(f"note: {note}" for note in measured.notes)]


def _sides(measured: Measurement, expected: Prediction) -> list[tuple[str, str, str, float]]:
    """Return what is predicted and measured alike: its name, both sides in words, relative error."""
    from plansim.units import format_bytes, format_count, format_seconds

    step, said = measured.step_time_s, expected.step_time_s
    low, high = format_seconds(expected.step_time_low_s), format_seconds(expected.step_time_high_s)
    held, peak = measured.peak_memory_bytes, expected.peak_memory_bytes
    took = f"{format_seconds(step)} ± {measured.spread:.1%}"
    rows = [
        (
            "step time (median, slowest rank)",
            f"{format_seconds(said)} ({low} to {high})",
            took,
            said / step - 1,
        )
    ]
    for unit, per_step in (("samples/s", measured.samples_per_step), ("tokens/s", measured.tokens_per_step)):
        rows.append((unit, format_count(per_step / said), format_count(per_step / step), step / said - 1))
    rows.append(("peak memory", format_bytes(peak), format_bytes(held), peak / held - 1 if held else 0.0))
    return rows
