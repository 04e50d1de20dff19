"""The recommendation in words and figures: what a manager reads first."""

from __future__ import annotations

from dataclasses import dataclass

from plansim.report.choose import Choice, usd_of, wall_of
from plansim.report.conditions import words_of
from plansim.report.option import Option, Run
from plansim.report.svg import esc
from plansim.report.words import between, dollars, duration, energy, mass, plan_words, short, whole_dollars
from plansim.units import format_bytes, format_seconds


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What stands at the top.

    Attributes
    ----------
    lead : str
        One sentence as HTML, escaped.
    numbers : list of (what, value, remark)
        Headline figures.
    rivals : list of rows
        Wish, option, run, cost, difference.
    """

    lead: str
    plain: str
    plan: str
    why: str
    numbers: list[tuple[str, str, str]]
    rivals: list[tuple[str, str, str, str, str]]


def answer_of(choice: Choice, given: dict[str, str] | None = None) -> Answer:
    """Return the recommendation in words."""
    best = choice.best
    run = best.run
    device = str(best.cluster.get("device_name") or best.cluster.get("device") or best.profile)
    lead = f"Train {best.model} on {best.devices:,} × {device}"
    end = ""
    if run:
        end = f": {duration(run.wall_s)}"
        end += f" and {dollars(run.usd)}" if run.usd else ""
        end += f" for {short(run.target_tokens)} {best.counted}"
    emphasised = f"Train {esc(best.model)} on <b>{best.devices:,} × {esc(device)}</b>"
    return Answer(
        lead=f"{emphasised}{esc(end)}.",
        plain=f"{lead}{end}.",
        plan=f"Plan: {plan_words(best.plan)}.",
        why=f"Chosen as {choice.why}." + _given(given or {}) + _tied(best),
        numbers=_numbers(best),
        rivals=_rivals(choice),
    )


def _given(given: dict[str, str]) -> str:
    return f" It holds for the middle of what was assumed: {words_of(given)}." if given else ""


def _tied(best: Option) -> str:
    if not best.tied:
        return ""
    return " Other plans on this cluster are so close that the model cannot tell them apart."


def _numbers(best: Option) -> list[tuple[str, str, str]]:
    run = best.run
    low, high = format_seconds(best.step_time_low_s), format_seconds(best.step_time_high_s)
    found = []
    if run:
        span = f"{duration(run.wall_low_s)} to {duration(run.wall_high_s)}"
        found.append(("Time of the run", duration(run.wall_s), span))
        if run.usd:
            found.append(
                ("Cost, on demand", dollars(run.usd), f"{dollars(run.usd_low)} to {dollars(run.usd_high)}")
            )
        if run.usd_reserved:
            span = between(run.usd_reserved_low, run.usd_reserved_high, dollars)
            found.append(("Cost, reserved", dollars(run.usd_reserved), span or "at the reserved price"))
        if run.usd:
            span = between(run.usd_per_giga_tokens_low, run.usd_per_giga_tokens_high, whole_dollars)
            found.append(
                (f"Cost of 10⁹ {best.counted}", whole_dollars(run.usd_per_giga_tokens), span or "on demand")
            )
    speed = f"{short(round(best.effective_tokens_per_s))}"
    found += [
        (f"{best.counted.capitalize()} per second", speed, "failures included" if run else "healthy"),
        (
            "Model FLOP utilisation",
            f"{best.mfu:.1%}",
            f"step {format_seconds(best.step_time_s)} ({low} to {high})",
        ),
    ]
    if run:
        found.append(("Goodput", f"{run.goodput:.1%}", _goodput_words(run)))
        often = f"{run.spare_nodes:.0f} spare nodes, the job stops every {duration(run.mtbf_s)}"
        found.append(("Interruptions", f"{run.failures:,.1f}", often))
        found.append(("Energy", energy(run.kwh), between(run.kwh_low, run.kwh_high, energy)))
        found.append(("CO₂", mass(run.kg_co2), between(run.kg_co2_low, run.kg_co2_high, mass)))
    room = best.memory_limit_bytes - best.peak_memory_bytes
    found.append(("Memory of a device", format_bytes(best.peak_memory_bytes), f"{format_bytes(room)} free"))
    return found


def _goodput_words(run: Run) -> str:
    """Return what simulation says of the formula's goodput."""
    drawn = run.simulated
    if drawn is None:
        return "by formula"
    return f"by formula; simulated {drawn.goodput:.1%} ± {drawn.standard_error:.2%}"


def _rivals(choice: Choice) -> list[tuple[str, str, str, str, str]]:
    rows = []
    wishes = (
        ("the lowest cost", choice.cheapest),
        ("the shortest run", choice.fastest),
        ("the fewest devices", choice.smallest),
    )
    for wish, option in wishes:
        if option.key == choice.best.key:
            continue
        time = wall_of(option) / wall_of(choice.best)
        money = usd_of(option) / usd_of(choice.best) if usd_of(choice.best) < float("inf") else None
        against = f"{time:.2f}× the time" + (f", {money:.2f}× the cost" if money is not None else "")
        run = duration(option.run.wall_s) if option.run else format_seconds(option.step_time_s)
        rows.append((wish, option.where, run, dollars(usd_of(option)), against))
    return rows
