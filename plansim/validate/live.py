"""Predictions beside runs on this machine: frozen first, then every plan in turn, several times, compared."""

from __future__ import annotations

import hashlib
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from plansim.errors import ExecutionError, InputError
from plansim.execute import RunOptions, check_plan_runs, run_plan
from plansim.execute.launch import Place
from plansim.files import dump_json, write_atomic
from plansim.hardware.profile import Profile
from plansim.plan.grid import Grid, grid_of
from plansim.plan.model import Plan
from plansim.plan.read import plan_data
from plansim.results import Measurement, Prediction
from plansim.simulate.predict import predict
from plansim.validate.flips import flips_data
from plansim.validate.metrics import Pair, mean_kendall_tau, quantile, regret, summary
from plansim.validate.pace import at_pace, paced_summary, usual_pace_s, with_pace
from plansim.workload.model import Model

MAX_FOREIGN = 0.05
"""Share of the machine that other processes may use while a plan is timed; above it the run is done again."""

MAX_DRIFT = 0.07
"""How far the machine's pace during a run may move a step by the frozen prediction, as a share of it; beyond,
guests that this system cannot see disturbed the run, and it is done again. Read between steps, the pace knows
nothing of their times."""

MAX_AGAIN = 3
Say = Callable[[str], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class LivePlan:
    """One plan: what was predicted, and every run of it.

    Attributes
    ----------
    runs : tuple of Measurement
        One per repeat; `discarded` counts those that other processes disturbed.
    paces : tuple of float
        Of each run, what a fixed piece of computing took between its steps over what it took in the
        calibration; empty where either did not time it.
    paced_s : tuple of float
        What the frozen model says of each run at that pace, seconds.
    link, link_bytes_per_s : str, float or None
        Rate of the links it ran over, in words and as a number (None: not shaped); empty inside the machine.
    """

    id: str
    model: Model
    plan: Plan
    prediction: Prediction
    runs: tuple[Measurement, ...] = ()
    discarded: int = 0
    paces: tuple[float, ...] = ()
    paced_s: tuple[float, ...] = ()
    skipped: str | None = None
    link: str = ""
    link_bytes_per_s: float | None = None

    @property
    def measured_s(self) -> float:
        """Median over repeats of the median step, seconds."""
        return statistics.median(run.step_time_s for run in self.runs)

    @property
    def noise(self) -> float:
        """Half the range of the repeats' medians over their median, or a single run's own spread."""
        times = [run.step_time_s for run in self.runs]
        return (max(times) - min(times)) / 2 / self.measured_s if len(times) > 1 else self.runs[0].spread

    @property
    def pair(self) -> Pair:
        """Prediction and measurement."""
        p = self.prediction
        return Pair(
            predicted_s=p.step_time_s,
            low_s=p.step_time_low_s,
            high_s=p.step_time_high_s,
            measured_s=self.measured_s,
        )

    @property
    def paced_error(self) -> float | None:
        """Relative error at the pace that the machine had in each run, the median over runs."""
        if not self.paced_s:
            return None
        return statistics.median(
            s / run.step_time_s - 1.0 for s, run in zip(self.paced_s, self.runs, strict=True)
        )

    @property
    def peak_memory_bytes(self) -> float:
        """Largest peak of any rank of any run, bytes."""
        return max(run.peak_memory_bytes for run in self.runs)

    def to_json(self) -> dict[str, Any]:
        """Return the row of this plan."""
        p, gib = self.prediction, 2.0**30
        row = {
            "id": self.id,
            "plan": plan_data(self.plan),
            "predicted_step_time_s": p.step_time_s,
            "low_s": p.step_time_low_s,
            "high_s": p.step_time_high_s,
            "predicted_peak_mem_gib": p.peak_memory_bytes / gib,
            "feasible": p.fits,
            "skipped": self.skipped,
            "discarded_runs": self.discarded,
            **({"link": self.link} if self.link else {}),
        }
        if not self.runs:
            return row | dict.fromkeys(
                ("measured_step_time_s", "error", "spread", "measured_peak_mem_gib"), None
            )
        return row | {
            "measured_step_time_s": self.measured_s,
            "error": self.pair.error,
            "spread": self.noise,
            "pace": statistics.median(self.paces) if self.paces else None,
            "error_at_pace": self.paced_error,
            "measured_peak_mem_gib": self.peak_memory_bytes / gib,
            "phases": phases(self),
        }


def phases(row: LivePlan) -> dict[str, dict[str, float]]:
    """Return predicted and measured seconds side by side for the phases that both sides tell apart.

    Measured phases are the mean over the ranks of the stage that the predicted parts are of (the critical
    one), the median over runs. Time in the queue of a shared core counts as computing, as it does in a
    prediction; ``waiting`` is all that is neither computing nor the optimizer.
    """
    b = row.prediction.breakdown
    exposed = b.tp_exposed_s + b.pp_exposed_s + b.dp_exposed_s + b.cp_exposed_s + b.ep_exposed_s
    predicted = {
        "compute": b.compute_s + b.recompute_s + b.host_s,
        "optimizer": b.optimizer_s,
        "waiting": exposed + b.bubble_s + b.compression_s,
    }
    stage = int(row.prediction.details.get("critical_stage", 0))
    sides = [_measured_phases(run, grid_of(row.plan), stage) for run in row.runs]
    return {
        name: {"predicted_s": predicted[name], "measured_s": statistics.median(side[name] for side in sides)}
        for name in predicted
        if any(sum(side.values()) for side in sides)
    }


def _measured_phases(run: Measurement, grid: Grid, stage: int) -> dict[str, float]:
    """Return the mean over a stage's ranks of the phases that a prediction has too, seconds."""
    ranks = [rank for rank in run.ranks if grid.coordinates(rank.rank)["pp"] == stage]

    def mean(*names: str) -> float:
        return statistics.fmean(sum(rank.phases_s.get(name, 0.0) for name in names) for rank in ranks)

    return {
        "compute": mean("forward", "backward", "queued"),
        "optimizer": mean("optimizer"),
        "waiting": mean("communication", "idle"),
    }


@dataclass(frozen=True, slots=True, kw_only=True)
class LiveResult:
    """All plans of one validation."""

    profile: str
    plans: tuple[LivePlan, ...]
    prediction_sha256: str = ""
    refit: dict[str, Any] | None = None

    @property
    def compared(self) -> tuple[LivePlan, ...]:
        """The plans that ran."""
        return tuple(p for p in self.plans if p.runs)

    def summary(self) -> dict[str, Any]:
        """Return the error summary: step times, memory, ranking and regret per model."""
        rows = self.compared
        pairs = [row.pair for row in rows]
        tau = mean_kendall_tau([r.pair for r in group] for group in _rivals(rows).values())
        found = summary(pairs, len(self.plans) - len(rows), tau)
        if not rows:
            return found
        memory = [abs(r.prediction.peak_memory_bytes / r.peak_memory_bytes - 1) for r in rows]
        groups = _rivals(rows)
        return found | {
            "max_ape": max(abs(p.error) for p in pairs),
            "memory_median_ape": statistics.median(memory),
            "memory_max_ape": max(memory),
            "noise_median": statistics.median(r.noise for r in rows),
            "noise_p90": quantile([r.noise for r in rows], 0.9),
            "discarded_runs": sum(r.discarded for r in self.plans),
            **paced_summary(rows),
            "regret": {name: regret([r.pair for r in group]) for name, group in groups.items()},
        }

    def to_json(self) -> dict[str, Any]:
        """Return the result in the shape of the file contract."""
        data: dict[str, Any] = {
            "schema": 1,
            "profile": self.profile,
            "prediction_sha256": self.prediction_sha256,
            "rows": [row.to_json() for row in self.plans],
            "summary": {"all": self.summary(), "by_source": {}},
        }
        data |= flips_data(self.compared) if any(row.link for row in self.compared) else {}
        return data | ({"refit": self.refit} if self.refit is not None else {})


def _rivals(rows: Sequence[LivePlan]) -> dict[str, list[LivePlan]]:
    """Return the plans by what they compete for: one model and one batch, over links of one rate."""
    groups: dict[str, list[LivePlan]] = {}
    for row in rows:
        job = row.plan.job
        at = f" at {row.link}" if row.link else ""
        groups.setdefault(f"{row.model.name} batch {job.global_batch} x {job.seq_len}{at}", []).append(row)
    return groups


def validate_live(
    cases: Sequence[tuple[Model, Plan]],
    profile: Profile,
    *,
    out: Path | None = None,
    steps: int = 10,
    warmup: int = 3,
    repeats: int = 3,
    measure: bool = True,
    refit: bool = False,
    say: Say = lambda _: None,
) -> LiveResult:
    """Return every plan predicted, then run, and compared.

    Predictions are made and written before anything runs. The runs go round the plans `repeats` times, so
    that drift of the machine hurts all alike; a run that other processes disturbed is done again and counted.

    Parameters
    ----------
    cases : sequence of (Model, Plan)
        What to predict and run.
    out : path, optional
        Folder for ``prediction.json``, ``measurement.json``, ``manifest.json`` and ``report.md``.
    measure : bool
        On a CPU, time each model's own blocks on one rank first, as part of the calibration.
    refit : bool
        Scale compute and communication to half of the plans afterwards, and show the other half before and
        after.
    """
    from plansim.validate.folder import write_folder

    if not cases:
        raise InputError("nothing to validate: no plan was given")
    for model, plan in cases:
        check_plan_runs(plan, model)
    known = with_blocks(profile, cases, say) if measure and profile.backend == "gloo" else profile
    rows = [
        LivePlan(id=plan_id(model, plan), model=model, plan=plan, prediction=predict(model, known, plan))
        for model, plan in cases
    ]
    frozen = dump_json({"schema": 1, "rows": [row.to_json() for row in rows]})
    if out is not None:
        write_atomic(out / "prediction.json", frozen)
    device = "cpu" if profile.backend == "gloo" else "cuda"
    options = RunOptions(device=device)
    digest = hashlib.sha256(frozen.encode()).hexdigest()
    for number in range(repeats):
        for i, row in enumerate(rows):
            say(f"run {number + 1} of {repeats}: {row.id}")
            run = replace(options, check=number == 0, trace=number == repeats - 1)
            rows[i] = run_again(row, run, steps, warmup, usual_s=usual_pace_s(known, row.plan))
        paced = tuple(with_pace(row, known) for row in rows)
        result = LiveResult(profile=profile.name, plans=paced, prediction_sha256=digest)
        if out is not None:  # a stop loses no more than the round under way
            write_folder(result, known, out)
    if refit:
        from plansim.validate.refit import refit_on_half

        result = replace(result, refit=refit_on_half(result, known))
        if out is not None:
            write_folder(result, known, out)
    return result


def with_blocks(profile: Profile, cases: Sequence[tuple[Model, Plan]], say: Say) -> Profile:
    """Return the profile with the blocks of every model timed on one rank, beside what it already knows."""
    from plansim.calibrate.blocks import blocks_and_pace, table_of
    from plansim.calibrate.pace import Pace, joined

    models = ", ".join(dict.fromkeys(model.name for model, _ in cases))
    say(f"timing the blocks of {models} by themselves")
    data = profile.calibration
    usual = data.get("pace_s")
    blocks, now = blocks_and_pace(cases, pace_s=usual)
    found = replace(profile, calibration={**data, "blocks": [*data.get("blocks", ()), *table_of(blocks)]})
    if not usual or now is None:
        return found
    before = Pace(pass_s=usual, watched_s=data.get("pace_watched_s", 0.0))
    return at_pace(found, joined((before, now)).pass_s / usual)


def run_again(
    row: LivePlan,
    options: RunOptions,
    steps: int,
    warmup: int,
    place: Place | None = None,
    *,
    usual_s: float | None = None,
) -> LivePlan:
    """Run a plan once more; repeat while others disturb it; `usual_s` is the pace when they do not."""
    if row.skipped:
        return row
    discarded, best = row.discarded, None
    for _ in range(MAX_AGAIN):
        try:
            run = run_plan(row.plan, row.model, steps=steps, warmup=warmup, options=options, place=place)
        except ExecutionError as error:
            return replace(row, skipped=str(error))
        if best is None or disturbance(row, run, usual_s) < disturbance(row, best, usual_s):
            best = run
        if disturbance(row, best, usual_s) <= 1.0:
            break
        discarded += 1
    kept = best if best is not None else run
    return replace(row, runs=(*row.runs, replace(kept, spans=())), discarded=discarded)


def disturbance(row: LivePlan, run: Measurement, usual_s: float | None) -> float:
    """Return how far others disturbed a run, in parts of what is allowed: processes here, unseen guests."""
    foreign = float(run.hardware.get("foreign_cpu_fraction", 0.0)) / MAX_FOREIGN
    if usual_s is None or run.pace_s is None:
        return foreign
    b = row.prediction.breakdown
    computing = (b.compute_s + b.recompute_s + b.host_s + b.optimizer_s) / row.prediction.step_time_s
    return max(foreign, computing * abs(run.pace_s / usual_s - 1.0) / MAX_DRIFT)


def plan_id(model: Model, plan: Plan) -> str:
    """Return a short name of a plan: its model and what is not 1 or none.

    Examples
    --------
    >>> from plansim.plan.model import Job, Parallel
    >>> model = Model(name="gpt-mini", family="gpt", layers=4, hidden=256)
    >>> job = Job(global_batch=16, seq_len=8)
    >>> plan_id(model, Plan(model="m", profile="p", job=job, parallel=Parallel(dp=2)))
    'gpt-mini dp2 mb1'
    """
    p = plan.parallel
    parts = [model.name]
    parts += [f"{axis}{getattr(p, axis)}" for axis in ("dp", "tp", "pp", "cp") if getattr(p, axis) > 1]
    parts += [degree.replace(" ", "") for degree in p.expert_degrees]
    parts += ["single"] if p.world_size == 1 else []
    parts += [f"zero{p.zero_stage}"] if p.zero_stage else []
    parts += ["sp"] if p.sequence_parallel else []
    parts += [p.schedule] if p.pp > 1 else []
    parts += [f"vs{p.virtual_stages}"] if p.virtual_stages > 1 else []
    parts += [f"mb{p.microbatch}"]
    parts += ["shares" + "-".join(map(str, p.batch_shares))] if p.batch_shares else []
    parts += [str(plan.recompute)] if plan.recompute != "none" else []
    parts += ["server"] if plan.aggregation == "parameter_server" else []
    parts += [m.method for _, m in plan.compression.items() if m.method != "none"]
    return " ".join(parts)
