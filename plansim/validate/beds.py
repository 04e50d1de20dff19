"""The same plans over links of several rates: a testbed for each, predictions frozen before the first run."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path

from plansim.calibrate.collectives import averaged, fitted_lines, measure_collectives
from plansim.errors import InfeasibleError, InputError
from plansim.execute import RunOptions, check_plan_runs
from plansim.execute.launch import Place
from plansim.execute.netns import require_namespaces
from plansim.execute.testbed import TestbedSpec, temporary_testbed
from plansim.execute.testbed_profile import profile_of_testbed
from plansim.files import dump_json, write_atomic
from plansim.hardware.profile import Profile
from plansim.plan.model import Job, Plan
from plansim.planner import plan as best_plans
from plansim.simulate.predict import predict
from plansim.units import parse
from plansim.validate.folder import write_folder
from plansim.validate.live import LivePlan, LiveResult, Say, plan_id, run_again, with_blocks
from plansim.validate.pace import usual_pace_s, with_pace
from plansim.workload.model import Model

UNSHAPED = "unshaped"
LINK_ROUNDS = 2
PLAIN: dict[str, object] = {"cp": 1, "zero_stage": 0, "compression.gradients": "none"}


def rates_of(text: str) -> dict[str, float | None]:
    """Return link rates by the words they were given in, bytes per second; None where not shaped.

    Examples
    --------
    >>> rates_of("50 Mbit/s, unshaped")
    {'50 Mbit/s': 6250000.0, 'unshaped': None}
    """
    found: dict[str, float | None] = {}
    for word in filter(None, (w.strip() for w in text.split(","))):
        found[word] = rate = None if word == UNSHAPED else parse(word, "bytes/s")
        if rate is not None and not rate > 0:
            raise InputError(f"'{word}': expected more than 0")
    if not found:
        raise InputError(f"no rate given: write some such as '50 Mbit/s,1 Gbit/s,{UNSHAPED}'")
    return found


def strategies(ranks: int) -> list[dict[str, object]]:
    """Return what each strategy of so many ranks fixes, by the names in a plan file."""
    if ranks == 1:
        return [{**PLAIN, "dp": 1}]
    data = {**PLAIN, "dp": ranks, "tp": 1, "pp": 1}
    found = [data, {**data, "zero_stage": 3, "compression.parameters": "none"}]
    found += [{**data, "compression.gradients": method} for method in ("bf16", "int8", "powersgd")]
    found += [{**PLAIN, axis: ranks} for axis in ("pp", "tp")]
    if ranks > 2 and ranks % 2 == 0:
        found += [{**PLAIN, "dp": ranks // 2, axis: 2} for axis in ("pp", "tp")]
    return found


def contenders(
    model: Model, profile: Profile, job: Job, bed: TestbedSpec, *, say: Say = lambda _: None
) -> list[tuple[Model, Plan]]:
    """Return the best plan of every strategy, by prediction: those that compete for the ranks of a testbed.

    One rank alone; data parallelism plain, with gradients in 16 and 8 bit and factored, and with everything
    sharded; a pipeline; tensor parallelism; and, from four ranks on, products of two axes.
    """
    one = TestbedSpec.even(1)
    found: dict[Plan, None] = {}
    for spec in (one, bed) if bed.num_ranks > 1 else (one,):
        cluster = profile_of_testbed(spec, profile)
        for choice in strategies(spec.num_ranks):
            fix = {name: (value,) for name, value in choice.items()}
            try:
                plan = best_plans(model, cluster, job, fix=fix, top=1, backend="plansim").best.plan
                check_plan_runs(plan, model)
            except (InfeasibleError, InputError) as error:
                words = ", ".join(
                    f"{name} {value}" for name, value in choice.items() if value not in (0, 1, "none")
                )
                say(f"left out: {words or 'one rank'}: {error}")
                continue
            found[plan] = None
    return [(model, plan) for plan in found]


def bed_of(plan: Plan, rate_bytes_per_s: float | None, ranks_per_host: int) -> TestbedSpec:
    """Return the testbed that a plan fills."""
    hosts = -(-plan.parallel.world_size // ranks_per_host)
    return TestbedSpec.even(hosts, rate_bytes_per_s, ranks_per_host=ranks_per_host)


def validate_on_testbed(
    cases: Sequence[tuple[Model, Plan]],
    profile: Profile,
    rates: dict[str, float | None],
    *,
    ranks_per_host: int = 1,
    out: Path | None = None,
    steps: int = 10,
    warmup: int = 3,
    repeats: int = 3,
    measure: bool = True,
    say: Say = lambda _: None,
) -> LiveResult:
    """Return every plan over links of every rate: predicted, then run, and compared.

    Nothing is calibrated over a shaped link: collectives are timed between two hosts whose links are not
    shaped, and the rate of the links is all that a prediction learns of a testbed.

    Parameters
    ----------
    profile : Profile
        This machine, as ``plansim calibrate`` wrote it.
    rates : mapping
        From `rates_of`.
    ranks_per_host : int
        Ranks that share a host and its link.
    """
    if not cases:
        raise InputError("nothing to validate: no plan was given")
    require_namespaces()
    for model, plan in cases:
        check_plan_runs(plan, model)
    known = with_blocks(with_links(profile, cases, ranks_per_host, say), cases, say) if measure else profile
    rows = [_row(model, plan, known, word, rate, ranks_per_host) for word, rate in rates.items()
            for model, plan in cases]  # fmt: skip
    frozen = dump_json({"schema": 1, "rows": [row.to_json() for row in rows]})
    if out is not None:
        write_atomic(out / "prediction.json", frozen)
    sha = hashlib.sha256(frozen.encode()).hexdigest()
    for number in range(repeats):
        options = RunOptions(check=number == 0, trace=number == repeats - 1)
        for i, row in enumerate(rows):
            say(f"run {number + 1} of {repeats}: {row.id}")
            with _place(row.plan, rates[row.link], ranks_per_host) as place:
                usual_s = usual_pace_s(_cluster(row.plan, rates[row.link], ranks_per_host, known), row.plan)
                rows[i] = run_again(row, options, steps, warmup, place, usual_s=usual_s)
        paced = tuple(
            with_pace(row, _cluster(row.plan, rates[row.link], ranks_per_host, known)) for row in rows
        )
        result = LiveResult(profile=known.name, plans=paced, prediction_sha256=sha)
        if out is not None:  # a stop loses no more than the round under way
            write_folder(result, known, out)
    return result


def with_links(
    profile: Profile, cases: Sequence[tuple[Model, Plan]], ranks_per_host: int, say: Say
) -> Profile:
    """Return the profile with collectives as they are between hosts of a testbed, links not shaped.

    They cost more there than over the machine's loopback: every packet crosses two links and a bridge.
    """
    worlds = {plan.parallel.world_size for _, plan in cases} & {2, 4}
    if ranks_per_host > 1 or not worlds:
        return profile
    say("timing collectives between hosts of a testbed, links not shaped")
    samples = []
    for world in sorted({2} | worlds):
        with temporary_testbed(TestbedSpec.even(world)) as place:
            for _ in range(LINK_ROUNDS):
                samples += measure_collectives(
                    (world,), pace_s=profile.calibration.get("pace_s"), place=place
                )
    lines = fitted_lines(averaged(samples))
    link = next(line for line in lines if line["collective"] == "send_recv" and line["ranks"] == 2)
    inner = replace(profile.fabric[0], bandwidth_bytes_per_s=1.0 / max(link["s_per_byte"], 1e-12))
    return replace(
        profile,
        fabric=(inner, *profile.fabric[1:]),
        calibration={**profile.calibration, "collectives": lines},
    )


def _row(
    model: Model, plan: Plan, known: Profile, word: str, rate: float | None, ranks_per_host: int
) -> LivePlan:
    """Return a plan with what is predicted for it over links of one rate."""
    cluster = _cluster(plan, rate, ranks_per_host, known)
    return LivePlan(
        id=f"{plan_id(model, plan)} at {word}", model=model, plan=plan, link=word, link_bytes_per_s=rate,
        prediction=predict(model, cluster, plan),
    )  # fmt: skip


def _cluster(plan: Plan, rate: float | None, ranks_per_host: int, known: Profile) -> Profile:
    return profile_of_testbed(bed_of(plan, rate, ranks_per_host), known)


def _place(plan: Plan, rate: float | None, ranks_per_host: int) -> AbstractContextManager[Place]:
    return temporary_testbed(bed_of(plan, rate, ranks_per_host))
