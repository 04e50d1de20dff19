"""Results from files: plans, sweeps, sizings, comparisons and measurements, told apart by their keys."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from plansim.capacity.evaluate import cluster_data
from plansim.capacity.reality import reality_of
from plansim.capacity.scenario import with_devices
from plansim.capacity.store import merged
from plansim.errors import InputError, PlansimError
from plansim.files import read_text
from plansim.hardware.read import load_cluster
from plansim.plan.model import Plan
from plansim.plan.read import plan_from_data
from plansim.report.option import Data, Option, mapping, number, option_of
from plansim.simulate.predict import predict
from plansim.workload.module import ModuleModel
from plansim.workload.read import load_model

MAX_RESULT_BYTES = 256 * 2**20


@dataclass(frozen=True, slots=True, kw_only=True)
class Pair:
    """Prediction beside measurement; `low_s` and `high_s` bound 80 %."""

    name: str
    predicted_s: float
    low_s: float
    high_s: float
    measured_s: float
    group: str = ""

    @property
    def error(self) -> float:
        """Predicted over measured, minus one."""
        return self.predicted_s / self.measured_s - 1.0


@dataclass(slots=True)
class Results:
    """All that a report is made of.

    Attributes
    ----------
    refused : list of (what, why)
        Scenarios without a plan.
    problems : list of str
        Lines and files that could not be used, with the reason.
    target : str
        What a sizing was to reach.
    wish : tuple of str or None
        Key of the option that was asked for, and why.
    """

    options: list[Option] = field(default_factory=list)
    refused: list[tuple[str, str]] = field(default_factory=list)
    pairs: list[Pair] = field(default_factory=list)
    summaries: list[tuple[str, Data]] = field(default_factory=list)
    measurements: list[tuple[str, Data]] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    files: list[str] = field(default_factory=list)
    target: str = ""
    wish: tuple[str, str] | None = None
    searched: int = 0


def read_results(paths: Iterable[Path], say: Callable[[str], None] = lambda _: None) -> Results:
    """Return what the files hold together; `say` is told what is read.

    Raises
    ------
    InputError
        When a file cannot be read or is no result of plansim; a bad line of a sweep is only named.
    """
    results = Results()
    for path in paths:
        results.files.append(str(path))
        say(f"reading {path}")
        text = read_text(Path(path), MAX_RESULT_BYTES)
        if _is_lines(text):
            _read_lines(Path(path), results)
        else:
            _read_document(_parse(text, path), str(path), results)
    results.options.sort(key=lambda o: (o.model, o.profile, o.devices, o.rank, o.key))
    if not (results.options or results.pairs or results.measurements or results.refused):
        raise InputError(f"{', '.join(results.files)}: nothing to report")
    return results


def _is_lines(text: str) -> bool:
    first = text.lstrip().split("\n", 1)[0].rstrip()
    return first.startswith("{") and '"kind":"scenario"' in first


def _parse(text: str, path: Path) -> Data:
    def refuse(name: str) -> float:
        raise ValueError(f"{name} is not a number")

    try:
        data = json.loads(text, parse_constant=refuse)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: not a result of plansim: {error}") from None
    if not isinstance(data, Mapping):
        raise InputError(f"{path}: not a result of plansim: expected a JSON object")
    return data


def _read_document(data: Data, source: str, results: Results) -> None:
    for test, reader in READERS:
        if test(data):
            reader(data, source, results)
            return
    raise InputError(
        f"{source}: not a result of plansim; expected what plan --json, sweep, size --out, validate --json "
        "or run --out write"
    )


def _read_lines(path: Path, results: Results) -> None:
    for row in merged([path], results.problems).values():
        _guarded(row, str(path), results)


def _guarded(row: Data, source: str, results: Results) -> None:
    """Add one result line; what makes no sense is named and left out."""
    try:
        _read_row(row, source, results)
    except InputError as error:
        results.problems.append(str(error).splitlines()[0])


def _read_row(row: Data, source: str, results: Results) -> None:
    scenario = mapping(row, "scenario", source)
    if row.get("status") != "ok":
        what = f"{scenario.get('model')} on {scenario.get('profile')} × {scenario.get('devices')}"
        results.refused.append((what, str(row.get("reason", "no reason given"))))
        return
    search = row.get("search")
    results.searched += int(search.get("candidates", 0)) if isinstance(search, Mapping) else 0
    fix, changes = scenario.get("fix") or {}, scenario.get("changes") or {}
    results.options.append(
        option_of(
            key=str(row.get("key")),
            source=source,
            plan=mapping(row, "plan", source),
            prediction=mapping(row, "prediction", source),
            reality=mapping(row, "reality", source),
            cluster=mapping(row, "cluster", source),
            changes={**changes, **{f"plan.{k}": v for k, v in fix.items()}},
            tied=bool(row.get("tied")),
        )
    )


def _read_size(data: Data, source: str, results: Results) -> None:
    results.target = str(data.get("target", ""))
    best = mapping(mapping(data, "best", source), "cheapest", source)
    results.wish = (str(best.get("key")), f"the cheapest that meets {results.target}")
    for row in data["rows"]:
        _guarded(row, source, results)


def _read_plans(data: Data, source: str, results: Results) -> None:
    cluster = mapping(data, "cluster", source)
    results.searched += int(mapping(data, "search", source).get("candidates", 0))
    for entry in data["plans"]:
        plan = mapping(entry, "plan", source)
        facts, reality = _known(plan, cluster, results.problems)
        results.options.append(
            option_of(
                key=f"plan {entry.get('rank')}",
                source=source,
                plan=plan,
                prediction=mapping(entry, "prediction", source),
                reality=reality,
                cluster=facts,
                changes=dict(plan.get("overrides") or {}),
                rank=int(entry.get("rank", 1)),
                tied=bool(entry.get("tied")),
            )
        )


def _changed(plan: Plan, file: str) -> dict[str, str]:
    """Return what a plan keeps as changed in the file it names."""
    below = f"{file}."
    return {key.removeprefix(below): value for key, value in plan.overrides if key.startswith(below)}


def _known(plan: Data, cluster: Data, problems: list[str]) -> tuple[Data, Data | None]:
    """Return what the plan's profile says of its cluster, and the whole run, when its files can be found."""
    try:
        made = plan_from_data(plan)
        devices = round(number(cluster, "devices", "cluster"))
        profile = load_cluster(made.profile, _changed(made, "profile"))
        if profile.num_devices != devices:
            profile = with_devices(profile, devices)
        model = load_model(made.model, _changed(made, "model"))
        if isinstance(model, ModuleModel):
            return cluster_data(profile), None
        run = reality_of(predict(model, profile, made), made, model, profile)
        return cluster_data(profile), run.to_json()
    except PlansimError as error:
        problems.append(f"cost and failures of {plan.get('profile')} left out: {str(error).splitlines()[0]}")
        return cluster, None


def _read_validation(data: Data, source: str, results: Results) -> None:
    for row in data["rows"]:
        if not isinstance(row, Mapping):
            results.problems.append(f"{source}: a row is no mapping; skipped")
        elif row.get("predicted_step_time_s") and row.get("measured_step_time_s"):
            where = f"{source}: {row.get('id')}"
            predicted = number(row, "predicted_step_time_s", where)
            results.pairs.append(
                Pair(
                    name=str(row.get("id")),
                    predicted_s=predicted,
                    low_s=number({"low_s": row.get("low_s") or predicted}, "low_s", where),
                    high_s=number({"high_s": row.get("high_s") or predicted}, "high_s", where),
                    measured_s=number(row, "measured_step_time_s", where),
                    group=str(row.get("source") or ""),
                )
            )
    results.summaries.append((source, mapping(data, "summary", source)))


def _read_measurement(data: Data, source: str, results: Results) -> None:
    number(data, "step_time_s", source)
    results.measurements.append((source, data))
    results.problems += _against_prediction(data, source, results)


def _against_prediction(data: Data, source: str, results: Results) -> list[str]:
    """Put a prediction of the measured plan beside it; say why when there is none."""
    try:
        plan = plan_from_data(mapping(data, "plan", source), source=source)
        model = load_model(plan.model, _changed(plan, "model"))
        if isinstance(model, ModuleModel):
            return []
        prediction = predict(model, load_cluster(plan.profile, _changed(plan, "profile")), plan)
    except PlansimError as error:
        return [f"{source}: no prediction beside the measurement: {str(error).splitlines()[0]}"]
    results.pairs.append(
        Pair(
            name=Path(source).stem,
            predicted_s=prediction.step_time_s,
            low_s=prediction.step_time_low_s,
            high_s=prediction.step_time_high_s,
            measured_s=number(data, "step_time_s", source),
            group="measured here",
        )
    )
    return []


def _has_list(*keys: str) -> Callable[[Data], bool]:
    return lambda data: isinstance(data.get(keys[0]), list) and all(key in data for key in keys)


READERS: tuple[tuple[Callable[[Data], bool], Callable[[Any, str, Results], None]], ...] = (
    (lambda d: d.get("kind") == "size" and isinstance(d.get("rows"), list), _read_size),
    (_has_list("plans", "cluster", "search"), _read_plans),
    (_has_list("rows", "summary"), _read_validation),
    (_has_list("ranks", "plan"), _read_measurement),
)
"""How a document is told, and what reads it."""
