"""How the time to simulate a step grows: reports/simulator-cost, measured on the machine at hand.

python tools/simulator_cost.py [FOLDER]
"""

import math
import platform
import re
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from plansim import __version__
from plansim.costs.build import step_costs
from plansim.costs.layout import Layout
from plansim.files import write_atomic
from plansim.hardware.fabric import Fabric
from plansim.hardware.read import load_profile, with_nodes
from plansim.hardware.routing import capacities, route
from plansim.hardware.topology import build_topology
from plansim.plan.grid import AXES, Grid
from plansim.plan.model import Job, Parallel, Plan
from plansim.report.svg import WIDE, padded, plane, series
from plansim.report.words import short
from plansim.simulate import simulate_step
from plansim.simulate.events import simulate_events
from plansim.simulate.flows import Flow, simulate_flows
from plansim.simulate.fold import Spread
from plansim.simulate.world import simulate_world
from plansim.workload.read import load_model

MODEL, PROFILE, STAGES, TENSOR = "llama-3.1-70b", "h100x8", 8, 8
ADDITIONS = 1_000_000

LOOK = """<style>
svg{--card:#fff;--ink:#16202c;--soft:#5a6675;--grid:#e3e8ee;background:var(--card);
--s0:#2f6fdb;--s1:#8fb3ee;--s2:#e0872b;--s4:#8a55c9;--s5:#1b9e9e;--s6:#2f9e5b;--s7:#c94f7c;
font:12px system-ui,"Segoe UI",Roboto,Arial,sans-serif}
@media (prefers-color-scheme:dark){svg{--card:#171e28;--ink:#e8edf4;--soft:#9aa8b8;--grid:#2a3442;
--s0:#5b95f5;--s1:#7f9fd8;--s2:#f2a154;--s4:#b48cf0;--s5:#3fc4c4;--s6:#57c785;--s7:#ec7fa6}}
text{fill:var(--ink)}.tick,.axis{fill:var(--soft)}.end{text-anchor:end}.mid{text-anchor:middle}
.grid{stroke:var(--grid)}.line{fill:none;stroke:var(--c);stroke-width:2;stroke-linejoin:round}
.dot{fill:var(--c);stroke:var(--card)}
.name{font-weight:600;fill:var(--c);paint-order:stroke;stroke:var(--card);stroke-width:4px}
.s0{--c:var(--s0)}.s1{--c:var(--s1)}.s2{--c:var(--s2)}.s4{--c:var(--s4)}.s5{--c:var(--s5)}
.s6{--c:var(--s6)}.s7{--c:var(--s7)}
</style><rect width="100%" height="100%" style="fill:var(--card)"/>"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Growth:
    """One axis: its name, what is timed, and CPU seconds by size."""

    name: str
    about: str
    points: tuple[tuple[int, float], ...]

    @property
    def power(self) -> float:
        """Exponent of the upper half of the points: 1 where twice the size takes twice the time."""
        half = self.points[len(self.points) // 2 :]
        x, y = np.log([n for n, _ in half]), np.log([s for _, s in half])
        return float(np.polyfit(x, y, 1)[0])


def cpu_s(work: Callable[[], object], least_s: float = 0.02) -> float:
    """Return the least CPU time of some runs, after one to fill caches; short work is repeated."""
    begin = time.process_time()
    work()
    times = max(1, math.ceil(least_s / max(time.process_time() - begin, 1e-5)))
    found = []
    for _ in range(3):
        begin = time.process_time()
        for _ in range(times):
            work()
        found.append((time.process_time() - begin) / times)
    return min(found)


def reference() -> float:
    """Add floats in a loop: the unit that ratios are in."""
    total = 0.0
    for _ in range(ADDITIONS):
        total += 1.0
    return total


def plan_of(dp: int, microbatches: int) -> Plan:
    job = Job(global_batch=dp * microbatches, seq_len=8192)
    parallel = Parallel(dp=dp, tp=TENSOR, pp=STAGES, zero_stage=1, microbatch=1, schedule="1f1b")
    return Plan(model=MODEL, profile=PROFILE, job=job, parallel=parallel, recompute="selective")


def layout(dp: int, microbatches: int, layers: int | None = None) -> Layout:
    model = load_model(MODEL, {"layers": str(layers)} if layers else {})
    profile = with_nodes(load_profile(PROFILE), dp * STAGES * TENSOR // 8)
    return Layout.of(model, profile, plan_of(dp, microbatches))


def step(dp: int, microbatches: int, layers: int | None = None) -> Callable[[], object]:
    made = layout(dp, microbatches, layers)
    return lambda: simulate_step(step_costs(made))


def uneven(dp: int) -> Callable[[], object]:
    """One device in a hundred is slower than the rest, each by its own factor."""
    costs = step_costs(layout(dp, 64))
    grid = Grid(axes=AXES, sizes=(STAGES, dp, 1, TENSOR))
    rng = np.random.default_rng(0)
    ranks = rng.choice(grid.world_size, max(1, grid.world_size // 100), replace=False).tolist()
    slow = Spread(slowdown=dict(zip(ranks, (1 + rng.random(len(ranks))).tolist(), strict=True)))
    return lambda: simulate_world(costs, grid, slow)


def events(microbatches: int) -> Callable[[], object]:
    costs = step_costs(layout(1, microbatches))
    return lambda: simulate_events(costs)


def flows(count: int) -> Callable[[], object]:
    """Random pairs of 1,024 devices send between 1 and 100 MB at once."""
    graph = build_topology(Fabric(levels=load_profile(PROFILE).fabric, devices_per_node=8), 1024)
    rng = np.random.default_rng(0)
    pairs = [rng.choice(1024, 2, replace=False).tolist() for _ in range(count)]
    links = capacities(graph)
    sent = [Flow(path=route(graph, a, b), nbytes=float(rng.integers(1, 100)) * 1e6) for a, b in pairs]
    return lambda: simulate_flows(sent, links)


def powers(low: int, high: int, factor: int = 2) -> list[int]:
    return [low * factor**i for i in range(int(math.log(high / low, factor) + 1e-9) + 1)]


def measure() -> list[Growth]:
    """Return every axis, each growing alone from the same case."""
    axes: list[tuple[str, str, Sequence[int], Callable[[int], Callable[[], object]]]] = [
        ("devices, all alike", "costs and simulation; replicas that do the same are simulated once",
         powers(64, 65_536, 4), lambda n: step(n // 64, 64)),
        ("devices, 1 % slow", "simulation in which every slow device is told apart",
         powers(64, 65_536, 4), lambda n: uneven(n // 64)),
        ("microbatches", "costs and simulation; a steady rhythm is recognised and skipped over",
         powers(8, 2048), lambda n: step(1, n)),
        ("microbatches, event by event", "simulation with SimPy processes, nothing skipped",
         powers(8, 512), events),
        ("layers", "costs and simulation; layers that are alike are costed once",
         powers(8, 512), lambda n: step(1, 64, n)),
        ("concurrent flows", "max-min fair shares on 1,024 devices, worked out anew whenever one ends",
         powers(4, 512), flows),
    ]  # fmt: skip
    return [
        Growth(name=name, about=about, points=tuple((n, cpu_s(make(n))) for n in sizes))
        for name, about, sizes, make in axes
    ]


def chart(found: Sequence[Growth]) -> str:
    """Return the log-log drawing, each line named at its end; light and dark."""
    xs = [float(n) for g in found for n, _ in g.points]
    ys = [1e3 * s for g in found for _, s in g.points]
    words = "; ".join(f"{g.name}: size to the power {g.power:.2f}" for g in found)
    low, high = padded(xs, log=True)
    drawn = plane(
        "Time to simulate one step", words, (low, high * 7), padded(ys, log=True, by=0.08),
        log_x=True, log_y=True, height=460, width=WIDE,
    )  # fmt: skip
    decades = [10.0**e for e in range(1, math.floor(math.log10(high)) + 1)]
    drawn.axes("size of the axis", "CPU time, ms", short, lambda t: f"{t:g}", x_ticks=decades)
    taken: list[float] = []
    for i, g in sorted(enumerate(found), key=lambda pair: pair[1].points[-1][1]):
        points = [(float(n), 1e3 * s) for n, s in g.points]
        drawn.line(points, series(i))
        for n, ms in points:
            drawn.dot(n, ms, series(i), f"{g.name} {n:,.0f}: {ms:.3g} ms", radius=3.5)
        x, y = drawn.x(points[-1][0]) + 9, drawn.y(points[-1][1]) + 4
        while any(abs(y - other) < 15 for other in taken):
            y -= 3
        taken.append(y)
        drawn.text(x, y, g.name, f"name {series(i)}")
    svg = re.sub(r' tabindex="0"', "", drawn.svg())
    svg = re.sub(r'<circle ([^>]*?) data-tip="([^"]*)"/>', r"<circle \1><title>\2</title></circle>", svg)
    return svg.replace("<svg ", '<svg xmlns="http://www.w3.org/2000/svg" ', 1).replace(">", f">{LOOK}", 1)


def text(found: Sequence[Growth], unit_s: float) -> str:
    """Return the report in Markdown."""
    lines = [
        "# What simulating costs",
        "",
        f"plansim {__version__}, Python {platform.python_version()}, {platform.machine()}. CPU time of one",
        f"core, least of three. {MODEL} on {PROFILE}, {STAGES} stages x tensor {TENSOR}, 1F1B, 64",
        "microbatches; each line grows one axis alone. A ratio of 1 is a million additions in a Python loop,",
        f"here {1e3 * unit_s:.1f} ms, so that figures of other machines can be compared.",
        "",
        "![Time to simulate a step over devices, microbatches, layers, flows; log-log](simulator-cost.svg)",
        "",
        "| axis | from | ms | to | ms | ratio | grows as | what is timed |",
        "| --- | ---: | ---: | ---: | ---: | ---: | --- | --- |",
    ]
    for g in found:
        (first, low), (last, high) = g.points[0], g.points[-1]
        lines.append(
            f"| {g.name} | {first:,} | {1e3 * low:.3g} | {last:,} | {1e3 * high:.3g} | {high / unit_s:.3g} "
            f"| size^{g.power:.2f} | {g.about} |"
        )
    lines += [
        "",
        "The power is fitted to the upper half of each line: 0 costs the same at any size, 1 doubles with",
        "it. Made by `make reports`.",
        "",
    ]
    return "\n".join(lines)


def make(folder: Path) -> None:
    """Measure, and write report.md and simulator-cost.svg."""
    unit_s = cpu_s(reference)
    found = measure()
    write_atomic(folder / "simulator-cost.svg", chart(found))
    write_atomic(folder / "report.md", text(found, unit_s))
    print(f"simulator-cost: {sum(len(g.points) for g in found)} cases")


if __name__ == "__main__":
    make(Path(sys.argv[1] if len(sys.argv) > 1 else "reports/simulator-cost"))
