"""Fit what software stacks and sustained clocks do to training steps, on tables of measured runs.

Usage: fit_stacks.py FOLDER [--write] [--folds N --by source|device]
FOLDER holds published_training*.csv (columns as `plansim validate --table` documents). Few parameters, each
with a meaning (plansim/hardware/stack.py): per stack the efficiency of products and attention, passes of
memory-bound operators, host time per kernel, stragglers, collectives; per device the sustained clock and the
speed of its host.
Gauss-Newton on log(measured / predicted) with Huber weights and priors; sources weigh by the square root of
their rows. `--leave-out` reports errors on runs whose source (or device) took no part.
"""

from __future__ import annotations

import argparse
import math
import re
import statistics
import sys
from collections import Counter, defaultdict
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path

import numpy as np

from plansim.costs.layout import Layout
from plansim.errors import PlansimError
from plansim.hardware.catalog import find_device
from plansim.hardware.stack import FOLDER as STACKS
from plansim.simulate.predict import predict_layout
from plansim.validate.assume import Case, case_of
from plansim.validate.rows import read_rows
from plansim.validate.settle import settled
from plansim.validate.software import SHARDED_STACKS

DEVICES = STACKS.parent / "devices"
# parameter -> (prior mean, prior sigma of the log, lower bound, upper bound)
STACK_PRIORS = {
    "matmul_efficiency": (0.95, 0.10, 0.4, 1.1),
    "attention_efficiency": (0.85, 0.30, 0.2, 1.6),
    "scan_efficiency": (0.8, 0.4, 0.1, 1.0),
    "elementwise_passes": (1.3, 0.35, 1.0, 5.0),
    "operator_host_s": (3e-5, 0.8, 1.5e-5, 2e-4),
    "straggler_fraction": (0.004, 0.7, 1e-4, 0.03),
    "routing_passes": (2.5, 0.5, 1.0, 12.0),
    "grouped_efficiency": (0.85, 0.2, 0.3, 1.1),
    "expert_overlap": (0.3, 0.5, 0.01, 0.95),
    "collective_efficiency": (0.9, 0.15, 0.3, 1.0),
}
DEVICE_PRIORS = {"sustained_fraction": (0.88, 0.08, 0.45, 1.1), "host_speed": (1.0, 0.3, 0.2, 5.0)}
REPLICATING = (*SHARDED_STACKS, "gpt-neox")
"""Stacks that use data parallelism alone where nothing is said of the layout: such rows take part."""

EXPERTS = ("scan_efficiency", "routing_passes", "grouped_efficiency", "expert_overlap")
"""Parameters that mixtures of experts alone decide; dense runs decide the others."""

HOST = ("operator_host_s", "host_speed")
"""Parameters that both decide: small experts wait for launches most."""

NOISE = 0.06
"""Spread that one run is worth: its own noise and what no parameter here explains."""


def cases_in(folder: Path, every: int, most: int) -> list[Case]:
    """Return the rows worth fitting on: layout stated, step time measured, figures consistent."""
    found = []
    for path in sorted(folder.glob("published_training*.csv")):
        for i, row in enumerate(read_rows(path)):
            if not row.step_time_derived or ("single_node" in path.name and i % every):
                continue
            try:
                case = case_of(row)
                if (case.layout_known or case.stack.name in REPLICATING) and case.work in ("", "pretrain"):
                    found.append(case)
            except PlansimError:
                continue
    return [settled(c) for c in thinned(found, most)]


def thinned(cases: list[Case], most: int) -> list[Case]:
    """Return at most `most` rows of each publisher, device and stack, evenly spread.

    Many rows of one kind add time, not knowledge.
    """
    groups = defaultdict(list)
    for c in cases:
        groups[
            family_of(c.row.source), c.profile.device.id, c.row.dtype, c.profile.num_nodes > 1, c.stack.name
        ].append(c)
    return [c for g in groups.values() for c in g[:: max(1, -(-len(g) // most))]]


def family_of(source: str) -> str:
    """Return the publisher of a source: what is left out together."""
    return re.split(r"[(:,]| v\d| 20\d\d", source)[0].strip().lower()[:28]


class Fit:
    """Parameters as logs, by (stack, name) and (device, name)."""

    def __init__(self, cases: list[Case], *, clocks: bool = True) -> None:
        self.cases, self.clocks = cases, clocks
        self.keys: list[tuple[str, str]] = sorted({(c.stack.name, p) for c in cases for p in STACK_PRIORS})
        self.keys += sorted({(c.profile.device.id, p) for c in cases for p in DEVICE_PRIORS})
        moe = Counter(c.stack.name for c in cases if c.model.moe)
        dense = Counter(c.stack.name for c in cases if not c.model.moe)
        self.mostly_moe = {name for name in moe if moe[name] > dense[name]}
        self.prior = np.array([math.log(self._prior(k)[0]) for k in self.keys])
        self.sigma = np.array([self._prior(k)[1] for k in self.keys])
        self.low = np.array([math.log(self._prior(k)[2]) for k in self.keys])
        self.high = np.array([math.log(self._prior(k)[3]) for k in self.keys])
        self.index = {k: i for i, k in enumerate(self.keys)}
        self.x = self.prior.copy()
        for i, (name, parameter) in enumerate(self.keys):
            if parameter in DEVICE_PRIORS:
                self.x[i] = math.log(getattr(find_device(name), parameter))

    @staticmethod
    def _prior(key: tuple[str, str]) -> tuple[float, float, float, float]:
        return DEVICE_PRIORS.get(key[1]) or STACK_PRIORS[key[1]]

    def own(self, case: Case) -> list[int]:
        """Return the parameters that a case depends on."""
        keys = [(case.stack.name, p) for p in STACK_PRIORS] + [
            (case.profile.device.id, p) for p in DEVICE_PRIORS
        ]
        return [self.index[k] for k in keys]

    def decided(self, case: Case) -> list[int]:
        """Return the parameters that a case takes part in deciding."""
        moe = case.model.moe is not None
        mine = self.own(case)
        if not (moe and case.stack.name in self.mostly_moe):
            mine = [i for i in mine if (self.keys[i][1] in EXPERTS) == moe or self.keys[i][1] in HOST]
        return [i for i in mine if self.clocks or self.keys[i][1] not in DEVICE_PRIORS]

    def log_s(self, case: Case, x: np.ndarray) -> float:
        """Return the log of the predicted step."""
        values = {self.keys[i][1]: math.exp(x[i]) for i in self.own(case)}
        # figures of a device multiply those of a stack, so they are folded into the stack's copies
        device = case.profile.device
        clock = values.pop("sustained_fraction") / device.sustained_fraction
        values["matmul_efficiency"] *= clock
        values["attention_efficiency"] *= clock
        values["operator_host_s"] *= device.host_speed / values.pop("host_speed")
        stack = replace(case.stack, **values)
        scale = (case.row.gbs or 1) / case.plan.job.global_batch
        layout = Layout.of(case.model, case.profile, case.plan, stack)
        return math.log(
            predict_layout(layout, work=case.work or "pretrain", contention=False).step_time_s * scale
        )

    def slopes(self, n: int, x: np.ndarray, base: float) -> dict[int, float]:
        """Return d log(step) / d log(parameter) of one case."""
        row = {}
        for i in self.decided(self.cases[n]):
            moved = x.copy()
            moved[i] += 0.2
            row[i] = (self.log_s(self.cases[n], moved) - base) / 0.2
        return row

    def run(self, rounds: int = 3, inner: int = 4) -> None:
        """Fit: a fresh Jacobian each round, a few damped steps with it."""
        sources = [family_of(c.row.source) for c in self.cases]
        many = {s: sources.count(s) for s in set(sources)}
        weight = np.array([1 / math.sqrt(math.sqrt(many[s])) for s in sources])
        measured = np.array([math.log(c.row.step_time_derived or 1) for c in self.cases])
        numbers = range(len(self.cases))
        _FITS.append(self)
        with get_context("fork").Pool() as pool:
            for round_ in range(rounds):
                base = np.array(pool.map(_logs, [(n, self.x) for n in numbers], 8))
                jac = pool.map(_slopes, [(n, self.x, base[n]) for n in numbers], 4)
                for step in range(inner):
                    if step:
                        base = np.array(pool.map(_logs, [(n, self.x) for n in numbers], 8))
                    residual = measured - base
                    self._step(residual, jac, weight)
                    print(
                        f"round {round_} step {step}: median |log error| {np.median(abs(residual)):.4f}",
                        file=sys.stderr,
                        flush=True,
                    )
            self.residual = measured - np.array(pool.map(_logs, [(n, self.x) for n in numbers], 8))
        self.jac, self.weight = jac, weight

    def without(self, numbers: list[int]) -> np.ndarray:
        """Return the parameters that the cases but `numbers` give, with the slopes of the last round."""
        start, left = self.x.copy(), set(numbers)
        residual = self.residual.copy()
        kept = np.array([n not in left for n in range(len(self.cases))])
        try:
            for _ in range(8):
                self._step(residual, self.jac, np.where(kept, self.weight, 0.0))
                moved = self.x - start
                residual = self.residual - np.array(
                    [sum(g * moved[i] for i, g in row.items()) for row in self.jac]
                )
            return self.x.copy()
        finally:
            self.x = start

    def _step(self, residual: np.ndarray, jac: list[dict[int, float]], weight: np.ndarray) -> None:
        huber = np.minimum(1.0, 1.5 * NOISE / np.maximum(1e-9, abs(residual)))
        w = weight * huber / NOISE**2
        a = np.diag(1 / self.sigma**2)
        b = (self.prior - self.x) / self.sigma**2
        for r, row, wi in zip(residual, jac, w, strict=True):
            for i, gi in row.items():
                b[i] += wi * gi * r
                for j, gj in row.items():
                    a[i, j] += wi * gi * gj
        move = np.clip(np.linalg.solve(a, b), -0.35, 0.35)
        if not self.clocks:  # devices stay what the catalogue says
            move[[i for i, k in enumerate(self.keys) if k[1] in DEVICE_PRIORS]] = 0.0
        self.x = np.clip(self.x + move, self.low, self.high)


_FITS: list[Fit] = []
"""The fit that worker processes inherit; the last one is running."""


def _logs(task: tuple[int, np.ndarray]) -> float:
    fit = _FITS[-1]
    return fit.log_s(fit.cases[task[0]], task[1])


def _slopes(task: tuple[int, np.ndarray, float]) -> dict[int, float]:
    return _FITS[-1].slopes(*task)


def report(fit: Fit) -> None:
    """Print parameters and errors by stack and source."""
    for k, x in zip(fit.keys, fit.x, strict=True):
        print(f"{k[0]:22s} {k[1]:24s} {math.exp(x):.4g}")
    groups = defaultdict(list)
    for c, r in zip(fit.cases, fit.residual, strict=True):
        groups[c.stack.name, family_of(c.row.source)].append(r)
    for k in sorted(groups):
        v = groups[k]
        print(
            f"{k[0]:20s} {k[1]:30s} n {len(v):4d} median |e| {statistics.median(map(abs, v)):.3f} "
            f"bias {statistics.fmean(v):+.3f} std {statistics.pstdev(v):.3f}"
        )


def write(fit: Fit) -> None:
    """Write the fitted figures into the catalogue."""
    spread = defaultdict(list)
    for c, r in zip(fit.cases, fit.residual, strict=True):
        spread[c.stack.name, "expert_log_std" if c.model.moe else "residual_log_std"].append(r)
    figures: dict[Path, dict[str, float]] = defaultdict(dict)
    for (name, parameter), x in zip(fit.keys, fit.x, strict=True):
        folder = DEVICES if parameter in DEVICE_PRIORS else STACKS
        figures[folder / f"{name}.yaml"][parameter] = math.exp(x)
    for (name, parameter), residuals in spread.items():
        scale = float(np.quantile(np.abs(residuals), 0.8)) / 1.2816
        figures[STACKS / f"{name}.yaml"][parameter] = max(NOISE, scale)
    for path, values in figures.items():
        set_figures(path, values, before="curves:" if path.parent == DEVICES else "sources:")


def set_figures(path: Path, values: dict[str, float], before: str) -> None:
    """Replace top-level figures of a catalogue file in their places; new ones go before the key `before`."""
    lines = path.read_text().splitlines()
    new = dict(values)
    for i, line in enumerate(lines):
        key = line.split(":")[0]
        if key in new:
            lines[i] = f"{key}: {new.pop(key):.4g}"
    at = next((i for i, line in enumerate(lines) if line.startswith((before, "sources:"))), len(lines))
    lines[at:at] = [f"{k}: {v:.4g}" for k, v in new.items()]
    if before != "sources:" and new:
        at = next(i for i, line in enumerate(lines) if line.startswith("sources:")) + 1
        source = "fitted: published training steps, tools/fit_stacks.py"
        lines[at:at] = [f'  {k}: "{source}"' for k in new]
    path.write_text("\n".join(lines) + "\n")


def left_out(fit: Fit, by: str) -> None:
    """Print errors on the runs of every source (or device) as predicted without it.

    The others are fitted again with the slopes at the whole fit; the runs left out are then predicted
    exactly. What nothing else decides (a stack or device seen only there) goes to its prior.
    """
    groups: dict[str, list[int]] = defaultdict(list)
    for n, c in enumerate(fit.cases):
        groups[c.profile.device.id if by == "device" else family_of(c.row.source)].append(n)
    _FITS.append(fit)
    with get_context("fork").Pool() as pool:
        found = pool.map(_without, groups.values(), 1)
    for name, errors in sorted(zip(groups, found, strict=True)):
        print(f"{name:30s} n {len(errors):4d} median {statistics.median(errors):.3f}")
    errors = [e for each in found for e in each]
    medians = [statistics.median(each) for each in found]
    print(
        f"each {by} left out: n {len(errors)} median {statistics.median(errors):.3f} "
        f"90th percentile {np.quantile(errors, 0.9):.3f}; "
        f"median over {len(medians)} {by}s {statistics.median(medians):.3f}"
    )


def _without(numbers: list[int]) -> list[float]:
    fit = _FITS[-1]
    x = fit.without(numbers)
    measured = [math.log(fit.cases[n].row.step_time_derived or 1) for n in numbers]
    return [abs(math.expm1(fit.log_s(fit.cases[n], x) - m)) for n, m in zip(numbers, measured, strict=True)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--write", action="store_true")
    parser.add_argument("--leave-out", choices=("source", "device"), help="predict each without its own runs")
    parser.add_argument("--every", type=int, default=6, help="use every n-th single-node row")
    parser.add_argument("--most", type=int, default=24, help="rows of one publisher on one device")
    parser.add_argument("--only", help="fit this stack alone, clocks as they are")
    args = parser.parse_args()
    cases = cases_in(args.folder, args.every, args.most)
    if args.only:
        cases = [c for c in cases if c.stack.name == args.only]
    print(f"{len(cases)} runs", file=sys.stderr)
    fit = Fit(cases, clocks=not args.only)
    fit.run()
    report(fit)
    if args.leave_out:
        left_out(fit, args.leave_out)
    if args.write:
        write(fit)


if __name__ == "__main__":
    main()
