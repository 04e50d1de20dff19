"""Predictions and plans as tables and text."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from typing import TYPE_CHECKING

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from plansim.cli.console import table
from plansim.cli.plan_words import plan_short, plan_words
from plansim.results import Prediction, StageMemory
from plansim.results.compare import TERM_NAMES, memory_changes, time_changes, why_slower
from plansim.units import format_bytes, format_flop_per_s, format_rate, format_seconds

if TYPE_CHECKING:
    from plansim.hardware.profile import Profile
    from plansim.plan.model import Plan
    from plansim.workload.model import Model

BAR_WIDTH = 40


def headline(plan: Plan, model: Model, profile: Profile) -> Text:
    """Return what is trained on what, in two lines."""
    from plansim.workload.totals import parameter_count

    job = plan.job
    size = parameters_text(parameter_count(model))
    what = f"{model.name} ({size} parameters), global batch {job.global_batch:,}"
    if job.seq_len > 1:
        what += f" x {job.seq_len:,} tokens"
    what += f", {job.dtype}, {job.optimizer if job.phase == 'train' else 'one pass of inference'}"
    groups = " + ".join(f"{g.count} x {g.devices} {g.device.name or g.device.id}" for g in profile.groups)
    return Text(f"{what}\non {profile.name}: {groups}\n{plan_words(plan)}\n")


def parameters_text(count: float) -> str:
    """Return a parameter count as the field writes it.

    Examples
    --------
    >>> parameters_text(8_030_261_248), parameters_text(124_439_808)
    ('8.03 B', '124 M')
    """
    for limit, unit in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
        if count >= limit:
            scaled = count / limit
            return f"{scaled:.{max(0, 2 - len(str(int(scaled))) + 1)}f} {unit}"
    return f"{count:.0f}"


def interval(prediction: Prediction) -> str:
    """Return the step time with its 80 % interval."""
    low, high = format_seconds(prediction.step_time_low_s), format_seconds(prediction.step_time_high_s)
    return f"{format_seconds(prediction.step_time_s)} ({low} to {high})"


def summary(plan: Plan, prediction: Prediction) -> Table:
    """Return the figures of one prediction as two columns."""
    p, world = prediction, plan.parallel.world_size
    grid = Table.grid(padding=(0, 2))
    unit = "tokens/s" if plan.job.seq_len > 1 else "samples/s"
    rate, each = (
        (p.tokens_per_s, p.tokens_per_s_per_device)
        if plan.job.seq_len > 1
        else (p.samples_per_s, p.samples_per_s / world)
    )
    rows = [
        ("step time", f"{interval(p)}, 80 % interval"),
        (
            "throughput",
            f"{rate:,.0f} {unit}" + (f", {each:,.0f} for each of {world:,} devices" * (world > 1)),
        ),
        (
            "utilisation",
            f"MFU {p.mfu:.1%}, HFU {p.hfu:.1%}, {_flop_rate(p.model_flop_per_s_per_device)} a device",
        ),
        (
            "peak memory",
            f"{memory_interval(p)} of {format_bytes(p.memory_limit_bytes)}"
            + ("" if p.fits else "  DOES NOT FIT" + ("" if p.host_fits else " the host")),
        ),
        (
            "pipeline bubble",
            f"{p.bubble_fraction:.1%} of all stages' time" if plan.parallel.pp > 1 else "none",
        ),
    ]
    if p.usd_per_step:
        per_giga = p.usd_per_step / tokens_per_step(plan) * 1e9
        rows.append(("cost", f"{_usd(p.usd_per_step)} a step, ${per_giga:,.0f} per 10^9 {unit[:-2]}"))
    if p.joules_per_step:
        rows.append(("energy", f"{_energy(p.joules_per_step)} a step"))
    rows += [("note", note) for note in (*p.notes, *tight(p))]
    for name, value in rows:
        grid.add_row(name, value)
    return grid


def memory_interval(p: Prediction) -> str:
    """Return the peak of memory with its 80 % interval."""
    peak = format_bytes(p.peak_memory_bytes)
    if not p.peak_memory_high_bytes:
        return peak
    return f"{peak} ({format_bytes(p.peak_memory_low_bytes)} to {format_bytes(p.peak_memory_high_bytes)})"


def tight(p: Prediction) -> list[str]:
    """Return what to know of a plan that may not fit after all."""
    if not p.is_tight:
        return []
    free = 1.0 - p.peak_memory_bytes / p.memory_limit_bytes
    return [
        f"may not fit: {free:.1%} of memory is free, and one run in ten holds "
        f"{p.peak_memory_high_bytes / p.peak_memory_bytes - 1:.0%} more than predicted "
        "(plan --robust keeps that free)"
    ]


def _flop_rate(flop_per_s: float) -> str:
    """Return a rate in TFLOP/s, as devices are compared, or in what is smaller.

    Examples
    --------
    >>> _flop_rate(1.2345e15), _flop_rate(57.6e9)
    ('1,234.5 TFLOP/s', '57.6 GFLOP/s')
    """
    return f"{flop_per_s / 1e12:,.1f} TFLOP/s" if flop_per_s >= 1e12 else format_flop_per_s(flop_per_s)


def _usd(amount: float) -> str:
    """Return a price with four digits behind the point, or two figures.

    Examples
    --------
    >>> _usd(0.0699), _usd(0.0000123)
    ('$0.0699', '$1.2e-05')
    """
    return f"${amount:,.4f}" if amount >= 1e-3 else f"${amount:.2g}"


def _energy(joules: float) -> str:
    """Return an energy in kilowatt-hours, or joules where that is little.

    Examples
    --------
    >>> _energy(4320), _energy(19.04)
    ('0.0012 kWh', '19 J')
    """
    return f"{joules / 3.6e6:,.4f} kWh" if joules >= 3600 else f"{joules:,.3g} J"


def tokens_per_step(plan: Plan) -> int:
    """Return tokens (samples, where there is no sequence) of one step."""
    return plan.job.global_batch * plan.job.seq_len


def bar(fraction: float, width: int = BAR_WIDTH) -> str:
    """Return a bar of up to `width` cells.

    Examples
    --------
    >>> bar(0.5, 8)
    '████'
    """
    cells = max(0.0, min(fraction, 1.0)) * width
    part = "▏▎▍▌▋▊▉"[int(cells % 1 * 8) - 1] if int(cells % 1 * 8) else ""
    return "█" * int(cells) + part


def breakdown(prediction: Prediction) -> RenderableType:
    """Return where the step time goes, as bars; the parts sum to the step."""
    made = table("\nWhere the time goes", what="", seconds="time>", share="share>", bar="")
    total = prediction.breakdown.total_s
    parts = [(f.name, getattr(prediction.breakdown, f.name)) for f in fields(prediction.breakdown)]
    for name, seconds in sorted(parts, key=lambda part: -part[1]):
        if seconds > 0:
            made.add_row(
                TERM_NAMES[name], format_seconds(seconds), f"{seconds / total:.1%}", bar(seconds / total)
            )
    return made


def memory(prediction: Prediction) -> RenderableType:
    """Return the peak memory of every stage by category."""
    names = [f.name for f in fields(StageMemory)]
    short = {
        "communication": "comm", "activations": "activ", "workspace": "work", "gradients": "grads",
        "optimizer": "optim",
    }  # fmt: skip
    made = table(
        "\nMemory of one device, by stage",
        stage="stage>",
        **{n: f"{short.get(n, n)}>" for n in names},
        total="total>",
        free="free>",
    )
    limits = prediction.details.get("stage_limits_bytes", ())
    for i, stages in enumerate(_runs(prediction.memory)):
        first, last, stage = stages
        label = f"{first}" if first == last else f"{first}-{last}"
        values = [f"{getattr(stage, n) / 2**30:.2f}" for n in names]
        free = (limits[first] if limits else prediction.memory_limit_bytes) - stage.total_bytes
        made.add_row(
            label, *values, f"{stage.total_bytes / 2**30:.2f}", f"{free / 2**30:.2f}", end_section=False
        )
        if i >= 31:
            break
    distinct = sorted(set(limits or (prediction.memory_limit_bytes,)), reverse=True)
    made.caption = f"GiB; the limit is {' or '.join(f'{limit / 2**30:.2f}' for limit in distinct)} GiB"
    made.caption_justify = "left"
    return made


def links(prediction: Prediction, most: int = 8) -> RenderableType:
    """Return how much of each level's busiest links a step uses, and who uses them."""
    uses = prediction.details.get("links", ())
    if not uses:
        return Text("")
    made = table("\nLinks over the step", link="link~", capacity="one way>", use="mean use>", by="of which~")
    seen: set[tuple[str, str]] = set()
    for use in uses:
        end = use["link"].removeprefix(use["level"]).split()[0]
        key = (use["level"], f"{use['mean_use']:.3f} {end}")
        if key in seen or len(seen) >= most or not use["mean_use"]:
            continue
        seen.add(key)
        parts = ", ".join(f"{name} {part:.1%}" for name, part in use["by"].items())
        made.add_row(use["link"], format_rate(use["capacity_bytes_per_s"]), f"{use['mean_use']:.1%}", parts)
    made.caption = "links that carry the same share a line; " + (
        "transfers that met on a link shared it"
        if prediction.details.get("contended")
        else "no transfer waited for a link"
    )
    made.caption_justify = "left"
    return made


def memory_peak(prediction: Prediction) -> Text:
    """Return when the fullest device holds most."""
    peak = prediction.details.get("memory_peak")
    if not peak:
        return Text("")
    when = f"The peak is on stage {peak['stage']}, {format_seconds(peak['at_s'])} into the step"
    held = f", with the activations of {peak['microbatches']} microbatches" if peak["microbatches"] else ""
    return Text(f"{when}, during {peak['during']}{held}." if peak["during"] else f"{when}{held}.")


def _runs(stages: Sequence[StageMemory]) -> list[tuple[int, int, StageMemory]]:
    """Return (first, last, memory) for runs of equal neighbouring stages."""
    found: list[tuple[int, int, StageMemory]] = []
    for i, stage in enumerate(stages):
        if found and found[-1][2] == stage:
            found[-1] = (found[-1][0], i, stage)
        else:
            found.append((i, i, stage))
    return found


def critical_path(prediction: Prediction, most: int = 8) -> RenderableType:
    """Return the longest links of the critical path."""
    if not prediction.critical_path:
        return Text("")
    made = table("\nCritical path", what="what~", seconds="time>", share="share>")
    for term in prediction.critical_path[:most]:
        made.add_row(term.what, format_seconds(term.seconds), f"{term.fraction:.1%}")
    return Group(made)


def ranking(ranked: Sequence[tuple[int, Plan, Prediction]], tied: Sequence[int] = ()) -> Table:
    """Return plans best first: figures, and what makes each slower than the first.

    Parameters
    ----------
    ranked : sequence of (rank, plan, prediction)
    tied : sequence of int
        Ranks that cannot be told from the first: marked with ``=``.
    """
    tokens = bool(ranked) and ranked[0][1].job.seq_len > 1
    made = table(
        rank="#>",
        plan="plan~",
        step="step time>",
        spread="±>",
        rate="tokens/s>" if tokens else "samples/s>",
        mfu="MFU>",
        memory="memory>",
        why="behind the first by~",
    )
    best = ranked[0][2] if ranked else None
    for rank, plan, p in ranked:
        spread = (p.step_time_high_s - p.step_time_low_s) / 2 / p.step_time_s
        made.add_row(
            f"={rank}" if rank in tied else f"{rank}",
            plan_short(plan),
            format_seconds(p.step_time_s),
            f"{spread:.0%}",
            f"{p.tokens_per_s if tokens else p.samples_per_s:,.0f}",
            f"{p.mfu:.1%}",
            f"{p.peak_memory_bytes / 2**30:.1f}/{p.memory_limit_bytes / 2**30:.0f} GiB",
            _behind(best, p) if best is not None else "",
        )
    return made


def _behind(best: Prediction, other: Prediction) -> str:
    if other is best:
        return ""
    ratio = other.step_time_s / best.step_time_s - 1
    why = why_slower(best, other)
    return f"{ratio:+.1%}" + (f": {why}" if why else "")


def rejections(
    candidates: int, by_rule: Mapping[str, int], bounded_out: int, simulated: int
) -> RenderableType:
    """Return how the candidates came to an end: why the losers lost."""
    made = table("\nWhat became of the candidates", why="", count="plans>", share="share>")
    rows = [
        (f"infeasible: {rule}", count) for rule, count in sorted(by_rule.items(), key=lambda item: -item[1])
    ]
    rows += [("cannot beat the best, by a lower bound", bounded_out), ("simulated", simulated)]
    for why, count in rows:
        made.add_row(why, f"{count:,}", f"{count / max(1, candidates):.1%}")
    return made


def changes(before: Prediction, after: Prediction) -> RenderableType:
    """Return what two predictions differ in: the parts of the step, and of the largest device's memory."""
    times = table("Step time", term="term", before="before>", after="after>", difference="change>")
    times.add_row("step", *_change(before.step_time_s, after.step_time_s, format_seconds))
    for c in time_changes(before, after):
        times.add_row(TERM_NAMES[c.term], *_change(c.before, c.after, format_seconds))
    memory_ = table(
        "\nMemory of the largest device", term="term", before="before>", after="after>", difference="change>"
    )
    memory_.add_row("peak", *_change(before.peak_memory_bytes, after.peak_memory_bytes, format_bytes))
    for c in memory_changes(before, after):
        memory_.add_row(c.term, *_change(c.before, c.after, format_bytes))
    return Group(times, memory_)


def _change(before: float, after: float, words: Callable[[float], str]) -> tuple[str, str, str]:
    sign = "+" if after >= before else "-"
    return words(before), words(after), sign + words(abs(after - before))
