"""Fit the transports of the catalogue to measured collectives, or print how well they predict them.

python tools/fit_collectives.py FOLDER            print fitted parameters
python tools/fit_collectives.py FOLDER --write    fit and write plansim/catalog/fabrics/*.yaml
python tools/fit_collectives.py FOLDER --check    accuracy by table, system and collective (--held-out too)

FOLDER holds the tables of measurements. Parameters belong to a transport (a kind of link with its library),
never to a row, a source or a collective; all-to-all has its own protocols as libraries send it otherwise.
"""

from __future__ import annotations

import argparse
import sys
from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, fields, replace
from math import inf
from pathlib import Path

import numpy as np
from scipy.optimize import least_squares

sys.path.insert(0, str(Path(__file__).parent))
from collective_tables import Row, intra_rows, multinode_rows, published_rows

from plansim.costs.collectives import CostCurve, candidate_curves
from plansim.hardware.transport import Protocol, Transport, transport

CATALOG = Path(__file__).parents[1] / "plansim" / "catalog" / "fabrics"
TRANSPORTS = Callable[[str], Transport]


def predict(rows: list[Row], look_up: TRANSPORTS) -> np.ndarray:
    """Return the predicted seconds of every row with the transports that `look_up` gives."""
    known: dict[object, tuple[CostCurve, ...]] = {}
    predicted = []
    for row in rows:
        key = (row.collective, row.group, row.fabric, row.backend, row.algorithm)
        if key not in known:
            transports = lambda level, _: look_up(level.transport or "")  # noqa: E731
            known[key] = candidate_curves(*key[:4], transports, algorithm=row.algorithm)
        seconds = min(c.seconds(row.nbytes) for c in known[key] if row.nbytes <= c.max_nbytes)
        predicted.append(max(seconds, row.floor_s))
    return np.array(predicted)


@dataclass(frozen=True)
class Knob:
    """One parameter of a transport: where it stands and its bounds."""

    part: str  # "", "protocols.0", "exchange.1", "in_network"
    name: str
    low: float
    high: float


TIMES = {"hop_s": (1e-8, 1e-3), "setup_s": (1e-7, 1e-3), "fill_s": (1e-8, 1e-4), "stage_s": (1e-9, 1e-3)}


def knobs(t: Transport) -> list[Knob]:
    """Return the free parameters: every value that is given (not zero or infinite)."""
    found = [Knob("", "base_s", 1e-7, 1e-3)]
    if t.copy_bytes_per_s < inf:
        found.append(Knob("", "copy_bytes_per_s", 1e10, 5e12))
    parts = [(f"protocols.{i}", p) for i, p in enumerate(t.protocols)]
    parts += [(f"exchange.{i}", p) for i, p in enumerate(t.exchange)]
    parts += [("in_network", t.in_network)] if t.in_network else []
    for part, protocol in parts:
        for f in fields(Protocol):
            if f.name == "efficiency":
                found.append(Knob(part, f.name, 1e-3, 0.985))
            elif f.name in TIMES and getattr(protocol, f.name) > 0:
                found.append(Knob(part, f.name, *TIMES[f.name]))
    return found


def get(t: Transport, knob: Knob) -> float:
    where = t
    if knob.part:
        name, _, index = knob.part.partition(".")
        where = getattr(t, name)
        where = where[int(index)] if index else where
    return float(getattr(where, knob.name))


def with_values(t: Transport, table: list[Knob], values: Iterable[float]) -> Transport:
    plain: dict[str, float] = {}
    parts: dict[str, dict[str, float]] = defaultdict(dict)
    for knob, value in zip(table, values, strict=True):
        (parts[knob.part] if knob.part else plain)[knob.name] = float(value)
    changed: dict[str, object] = dict(plain)
    for name in ("protocols", "exchange"):
        old = getattr(t, name)
        changed[name] = tuple(replace(p, **parts.get(f"{name}.{i}", {})) for i, p in enumerate(old))
    if t.in_network:
        changed["in_network"] = replace(t.in_network, **parts.get("in_network", {}))
    return replace(t, **changed)  # type: ignore[arg-type]


def decidable(t: Transport, rows: list[Row]) -> list[Knob]:
    """Return the parameters that the rows can decide.

    A handful of rows decides the plain protocol's efficiency and ramp; without small messages the protocols
    for small messages and the fixed cost stay as they are.
    """
    last, table = f"protocols.{len(t.protocols) - 1}", knobs(t)
    large = min(r.nbytes for r in rows) > 2**20
    if len(rows) < 8:
        names = ("efficiency", "stage_s") if large else ("efficiency", "stage_s", "base_s")
        return [k for k in table if k.part in ("", last, "in_network") and k.name in names]
    if large:
        return [
            k for k in table if k.part in (last, "in_network", "exchange.1") or k.name == "copy_bytes_per_s"
        ]
    return table


def fit(start: Transport, rows: list[Row], others: TRANSPORTS) -> Transport:
    """Return `start` with its parameters fitted to `rows` (robust least squares of log time)."""
    table = decidable(start, rows)
    low, high = (np.log([getattr(k, side) for k in table]) for side in ("low", "high"))
    first = np.clip(np.log([get(start, k) for k in table]), low + 1e-6, high - 1e-6)
    measured = np.log([r.seconds for r in rows])

    def residual(logs: np.ndarray) -> np.ndarray:
        t = with_values(start, table, np.exp(logs))
        look_up = lambda name: t if name == t.name else others(name)  # noqa: E731
        data = np.log(predict(rows, look_up)) - measured
        return np.append(data, 0.1 * (logs - first))  # a weak pull keeps unused parameters where they were

    solution = least_squares(residual, first, bounds=(low, high), loss="soft_l1", f_scale=0.05, max_nfev=40)
    return with_values(start, table, np.exp(solution.x))


def fit_with_switch(start: Transport, rows: list[Row], others: TRANSPORTS) -> Transport:
    """Return the best fit over the size per rank up to which the library stays with LL128."""
    names = [p.name for p in start.protocols]
    if "LL128" not in names:
        return fit(start, rows, others)
    index, best = names.index("LL128"), (inf, start)
    for kib in (256, 1024, 3072):
        protocols = list(start.protocols)
        protocols[index] = replace(protocols[index], max_step_bytes=kib * 1024.0)
        fitted = fit(replace(start, protocols=tuple(protocols)), rows, others)
        look_up = lambda name, f=fitted: f if name == f.name else others(name)  # noqa: E731
        cost = float(np.mean(np.abs(np.log1p(errors(rows, look_up)))))
        if cost < best[0]:
            best = (cost, fitted)
    return best[1]


INSIDE = {"hop_s": 1e-6, "setup_s": 4e-6, "fill_s": 5e-7, "stage_s": 1e-6, "base_s": 7e-6}
OUTSIDE = {"hop_s": 2e-5, "setup_s": 1e-5, "fill_s": 1e-6, "stage_s": 2e-5, "base_s": 4e-5}
EFFICIENCY = {"LL": 0.05, "LL128": 0.4, "Simple": 0.85}


def neutral(name: str) -> Transport:
    """Return a transport with typical values instead of fitted ones, so that held-out rows leave no trace."""
    t = transport(name)
    typical = INSIDE if name.startswith(("nvlink", "pcie", "xgmi", "ici")) else OUTSIDE
    table = knobs(t)
    values = []
    for knob in table:
        if knob.name == "efficiency":
            protocol = knob.part.startswith("protocols")
            values.append(EFFICIENCY[_part_name(t, knob)] if protocol or "exchange.0" in knob.part else 0.7)
        elif knob.name == "copy_bytes_per_s":
            values.append(5e11)
        else:
            values.append(typical[knob.name])
    return with_values(t, table, values)


def _part_name(t: Transport, knob: Knob) -> str:
    group, _, index = knob.part.partition(".")
    return str(getattr(t, group)[int(index)].name)


ORDER = (
    "nvlink3", "nvlink4", "nvlink5", "nvlink2", "pcie3", "pcie4", "pcie5", "xgmi",
    "tcp", "efa-v1", "efa-v2", "efa-v4", "roce", "ib-ndr", "ib-hdr", "omni-path", "ici",
)  # fmt: skip
"""Inner links first, so that the networks are fitted on top of them."""


def belongs(row: Row, name: str) -> bool:
    """Whether a row decides the parameters of a transport: it crosses it and nothing further out."""
    return bool(row.transports) and row.transports[-1] == name


def fit_all(rows: list[Row], only: set[str], start: TRANSPORTS = transport) -> dict[str, Transport]:
    fitted: dict[str, Transport] = {}
    look_up = lambda name: fitted.get(name) or (start if name in only else transport)(name)  # noqa: E731
    for name in ORDER:
        mine = [r for r in rows if belongs(r, name)]
        if mine and (not only or name in only):
            fitted[name] = fit_with_switch(look_up(name), mine, look_up)
    return fitted


def errors(rows: list[Row], look_up: TRANSPORTS) -> np.ndarray:
    return predict(rows, look_up) / np.array([r.seconds for r in rows]) - 1


def line(label: str, e: np.ndarray) -> str:
    a = np.abs(e)
    return (
        f"{label:58s} n={len(a):4d}  median {np.median(a):6.1%}  mean {a.mean():6.1%}"
        f"  p90 {np.quantile(a, 0.9):6.1%}  max {a.max():6.1%}  bias {np.median(e):+6.1%}"
    )


def grouped(rows: list[Row], key: Callable[[Row], str]) -> dict[str, list[Row]]:
    groups: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        groups[key(row)].append(row)
    return groups


def check(rows: list[Row], *, held_out: bool) -> None:
    for label, key in (
        ("table", lambda r: r.table),
        ("collective", lambda r: f"{r.table} {r.collective}"),
        ("system", lambda r: f"{r.table} {r.system}"),
    ):
        print(f"-- by {label}")
        for name, part in grouped(rows, key).items():
            print(line(name, errors(part, transport)))
    if held_out:
        print("-- held out: transports fitted from typical values without the rows judged")
        for name, part in cross_validated(rows).items():
            print(line(name, part))


def cross_validated(rows: list[Row]) -> dict[str, np.ndarray]:
    """Return errors on rows that the fit has not seen: every fifth row in turn, and whole systems."""
    result: dict[str, np.ndarray] = {}
    folds = [(f"every 5th row, fold {k}", rows[k::5]) for k in range(5)]
    systems = [(f"without {s}", part) for s, part in grouped(rows, lambda r: f"{r.table} {r.system}").items()]
    for prefix, parts in (("rows", folds), ("systems", systems)):
        collected: list[np.ndarray] = []
        for label, part in parts:
            names = {r.transports[-1] for r in part}
            unseen = set(map(id, part))
            rest = [r for r in rows if id(r) not in unseen]
            fitted = fit_all(rest, names, neutral)
            shared = [r for r in part if any(belongs(o, r.transports[-1]) for o in rest)]
            if not shared:
                continue
            e = errors(shared, lambda name, f=fitted: f.get(name) or transport(name))
            collected.append(e)
            if prefix == "systems":
                result[f"{label}"] = e
        result[f"all {prefix} held out"] = np.concatenate(collected)
    return result


def as_yaml(t: Transport) -> str:
    """Return the catalogue file of a transport."""
    us = lambda s: f'"{s * 1e6:.4g} us"'  # noqa: E731

    def protocol(p: Protocol) -> str:
        parts = [f"name: {p.name}", f"hop: {us(p.hop_s)}", f"efficiency: {p.efficiency:.4g}"]
        parts += [
            f"{k}: {us(getattr(p, k + '_s'))}" for k in ("setup", "fill", "stage") if getattr(p, k + "_s")
        ]
        if p.max_step_bytes < inf:
            parts.append(f'max_step: "{p.max_step_bytes / 1024:g} KiB"')
        return "{" + ", ".join(parts) + "}"

    lines = [
        "schema: 1",
        f"name: {t.name}",
        f"reference_latency: {us(t.reference_latency_s)}",
        f"base: {us(t.base_s)}",
    ]
    lines += ["protocols:", *(f"  - {protocol(p)}" for p in t.protocols)]
    if t.exchange:
        lines += ["exchange:", *(f"  - {protocol(p)}" for p in t.exchange)]
    if t.in_network:
        lines += [f"in_network: {protocol(t.in_network)}", f"min_in_network_ranks: {t.min_in_network_ranks}"]
    if t.copy_bytes_per_s < inf:
        lines.append(f'copy_bandwidth: "{t.copy_bytes_per_s / 1e9:.4g} GB/s"')
    if t.cpu_s_per_byte:
        lines.append(f"cpu_seconds_per_byte: {t.cpu_s_per_byte:g}")
    if t.half_duplex_fraction:
        lines.append(f"half_duplex_fraction: {t.half_duplex_fraction:g}")
    if t.max_links:
        lines.append(f"max_links: {t.max_links}")
    lines += ["sources:", *(f'  {k}: "{v}"' for k, v in t.sources.items())]
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--check", action="store_true", help="print accuracy only")
    parser.add_argument("--held-out", action="store_true", help="with --check: cross-validate (minutes)")
    parser.add_argument("--write", action="store_true", help="write the catalogue")
    parser.add_argument("--only", nargs="*", default=[], help="transports to fit")
    parser.add_argument("--worst", type=int, default=0, help="print the worst rows")
    args = parser.parse_args()
    published, skipped = published_rows(args.folder)
    rows = intra_rows(args.folder) + multinode_rows(args.folder) + published
    if not args.check:
        fitted = fit_all(rows, set(args.only))
        for name, t in fitted.items():
            mine = [r for r in rows if belongs(r, name)]
            print(line(name, errors(mine, lambda n, f=fitted: f.get(n) or transport(n))))
            if args.write:
                (CATALOG / f"{name}.yaml").write_text(as_yaml(t))
            else:
                print(as_yaml(t))
        return
    check(rows, held_out=args.held_out)
    print(f"-- not predicted: {len(skipped)} rows:", "; ".join(sorted({reason for _, reason in skipped})))
    e = errors(rows, transport)
    for k in np.argsort(-np.abs(np.log1p(e)))[: args.worst]:
        r = rows[k]
        what = f"{r.system} {r.collective} n={r.group.counts} {r.nbytes:.3g} B"
        print(f"{e[k]:+7.1%} {what} {r.seconds * 1e6:.1f} us {r.id}")


if __name__ == "__main__":
    main()
