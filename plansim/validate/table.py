"""Predict every row of a table of measured runs and say how far off each is."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from plansim.costs.layout import Layout
from plansim.errors import PlansimError
from plansim.results import RESULT_SCHEMA, Prediction
from plansim.simulate.predict import Z80, predict_layout
from plansim.validate.assume import Case, case_of
from plansim.validate.metrics import Pair, mean_kendall_tau, quantile, regret, summary
from plansim.validate.rows import Row, Unpredictable, read_rows
from plansim.validate.settle import settled

GIB = 2.0**30

UNSTATED_LAYOUT_LOG_STD = 0.2
"""Spread of log(measured / predicted) that a blank layout adds: its rows are off by 13 % (median)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RowResult:
    """What came of one row: a prediction, or the reason why there is none."""

    row: Row
    case: Case | None = None
    prediction: Prediction | None = None
    skipped: str | None = None
    assumptions: tuple[str, ...] = ()
    scale: float = 1.0

    @property
    def pair(self) -> Pair | None:
        """Prediction beside measurement, when the row has both."""
        p, measured = self.prediction, self.row.step_time_derived
        if p is None or not measured:
            return None
        return Pair(
            predicted_s=p.step_time_s * self.scale,
            low_s=p.step_time_low_s * self.scale,
            high_s=p.step_time_high_s * self.scale,
            measured_s=measured,
        )

    def to_json(self) -> dict[str, Any]:
        """Return the row of the file contract."""
        p, pair = self.prediction, self.pair
        return {
            "id": self.row.id,
            "predicted_step_time_s": p.step_time_s * self.scale if p else None,
            "low_s": p.step_time_low_s * self.scale if p else None,
            "high_s": p.step_time_high_s * self.scale if p else None,
            "measured_step_time_s": self.row.step_time_derived,
            "error": pair.error if pair else None,
            "predicted_peak_mem_gib": p.peak_memory_bytes / GIB if p else None,
            "measured_peak_mem_gib": self.row.peak_mem_gib,
            "feasible": p.fits if p else None,
            "skipped": self.skipped,
            "assumptions": list(self.assumptions),
            "breakdown": asdict(p.breakdown) if p else None,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class TableResult:
    """Every row of a table, with summaries by group."""

    table: str
    rows: tuple[RowResult, ...]

    def pairs(self, rows: Iterable[RowResult] | None = None) -> list[Pair]:
        """Return the rows that have both prediction and measurement."""
        return [r.pair for r in (self.rows if rows is None else rows) if r.pair]

    def grouped(self, key: Callable[[Row], str]) -> dict[str, list[RowResult]]:
        """Return the rows by a key, in order of first appearance."""
        groups: dict[str, list[RowResult]] = defaultdict(list)
        for r in self.rows:
            groups[key(r.row)].append(r)
        return dict(groups)

    def to_json(self) -> dict[str, Any]:
        """Return the answer of ``validate --table --json``."""
        return {
            "schema": RESULT_SCHEMA,
            "table": self.table,
            "rows": [r.to_json() for r in self.rows],
            "summary": {
                "all": self.summary(self.rows)
                | {"ranking": self.ranking(), "memory": memory_summary(self.rows)},
                "by_source": {
                    k: self.summary(v) for k, v in self.grouped(lambda r: r.source or "not stated").items()
                },
                "by_device": {
                    k: self.summary(v) for k, v in self.grouped(lambda r: r.device or "not stated").items()
                },
            },
        }

    def summary(self, rows: Sequence[RowResult]) -> dict[str, Any]:
        """Return the errors of some rows; tau is taken inside groups that share model, devices and batch."""
        tau = mean_kendall_tau([r.pair for r in group if r.pair] for group in rivals(rows))
        return summary(self.pairs(rows), sum(r.skipped is not None for r in rows), tau)

    def ranking(self) -> dict[str, Any]:
        """Return how well we would have picked inside every group of rival plans."""
        groups = rivals(self.rows)
        regrets = [regret([r.pair for r in g if r.pair]) for g in groups]
        return {
            "groups": len(groups),
            "mean_regret": sum(regrets) / len(regrets) if regrets else None,
            "max_regret": max(regrets, default=None),
        }


def rivals(rows: Sequence[RowResult], at_least: int = 3) -> list[list[RowResult]]:
    """Return the groups of rows that do the same work on the same devices in different ways."""
    groups: dict[Hashable, list[RowResult]] = defaultdict(list)
    for r in rows:
        if r.pair:
            row = r.row
            shape = (row.model, row.layers, row.hidden, row.heads, row.seq, row.dtype)
            groups[(row.source, *shape, row.n_devices, row.device, row.gbs)].append(r)
    return [g for g in groups.values() if len(g) >= at_least]


def memory_summary(rows: Sequence[RowResult]) -> dict[str, Any]:
    """Return memory errors, and how many runs that did not fit were called so."""
    errors = [
        r.prediction.peak_memory_bytes / GIB / r.row.peak_mem_gib - 1.0
        for r in rows
        if r.prediction and r.row.peak_mem_gib and r.case and r.case.layout_known
    ]
    failed = [r for r in rows if r.prediction and r.row.out_of_memory]
    ran = [r for r in rows if r.pair and r.case and r.case.layout_known]
    return {
        "n": len(errors),
        "median_ape": quantile([abs(e) for e in errors], 0.5) if errors else None,
        "p90_ape": quantile([abs(e) for e in errors], 0.9) if errors else None,
        "out_of_memory_rows": len(failed),
        "out_of_memory_called_infeasible": sum(not r.prediction.fits for r in failed if r.prediction),
        "ran_rows": len(ran),
        "ran_called_infeasible": sum(not r.prediction.fits for r in ran if r.prediction),
    }


def validate_table(path: Path, progress: Callable[[int, int], None] | None = None) -> TableResult:
    """Return predictions for every row of a table.

    Parameters
    ----------
    path : Path
        A CSV file with the columns of the file contract.
    progress : callable, optional
        Called with (rows done, rows in all).
    """
    rows = read_rows(path)
    results = []
    for i, row in enumerate(rows):
        results.append(predict_row(row))
        if progress:
            progress(i + 1, len(rows))
    return TableResult(table=str(path), rows=tuple(results))


def predict_row(row: Row) -> RowResult:
    """Return what comes of one row; nothing a row holds raises."""
    try:
        case = case_of(row)
        return predict_case(case)
    except Unpredictable as error:
        return RowResult(row=row, skipped=str(error))
    except PlansimError as error:
        return RowResult(row=row, skipped=str(error))


def widened(prediction: Prediction, log_std: float) -> Prediction:
    """Return a prediction whose 80 % interval holds another spread of log(measured / predicted) too."""
    own = math.log(prediction.step_time_high_s / prediction.step_time_s)
    factor = math.exp(math.hypot(own, Z80 * log_std))
    return replace(
        prediction,
        step_time_low_s=prediction.step_time_s / factor,
        step_time_high_s=prediction.step_time_s * factor,
    )


def predict_case(case: Case) -> RowResult:
    """Return the prediction of a case, choosing what the row left open by what fits and is fastest.

    Transfers have their links to themselves, as they had where the stacks were fitted: sharing changes these
    steps by 2 % at most and would take four times as long.
    """
    case = settled(case)
    layout = Layout.of(case.model, case.profile, case.plan, case.stack)
    prediction = predict_layout(layout, work=case.work, contention=False)
    if not case.layout_known:
        prediction = widened(prediction, UNSTATED_LAYOUT_LOG_STD)
    return RowResult(
        row=case.row, case=case, prediction=prediction, assumptions=case.assumptions, scale=case.scale
    )
