"""``plansim testbed``: a cluster of network namespaces with shaped links, on one Linux machine."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from plansim.cli.options import Json, ModelName, Override, read_case, usage

if TYPE_CHECKING:
    from plansim.execute.testbed import TestbedSpec

testbed = typer.Typer(
    rich_markup_mode=None,
    add_completion=False,
    no_args_is_help=True,
    help="A cluster on one machine: shaped links (Linux, root)",
)

Hosts = Annotated[int, typer.Option("--hosts", min=1, max=64, help="Namespaces that stand for machines.")]
Rate = Annotated[
    str | None, typer.Option("--rate", help='Rate of every link, e.g. "1 Gbit/s"; unshaped when left out.')
]
RanksPerHost = Annotated[int, typer.Option("--ranks-per-host", min=1, help="Ranks placed on one host.")]
Cpu = Annotated[
    str | None,
    typer.Option("--cpu", metavar="CORES", help="CPU cores every host may use: 0.5, or of each: 1,0.5."),
]
Name = Annotated[str, typer.Option("--name", help="Which testbed.")]
Base = Annotated[str, typer.Option("--profile", "-p", metavar="P", help="Profile of this machine.")]


@testbed.command()
def up(
    hosts: Hosts = 2,
    rate: Rate = None,
    ranks_per_host: RanksPerHost = 1,
    cpu: Cpu = None,
    name: Name = "bed",
    profile: Base = "local-cpu",
    out: Annotated[
        Path | None, typer.Option("--out", metavar="FILE", help="Write the testbed's profile, for planning.")
    ] = None,
    json: Json = False,
) -> None:
    """Make a testbed that stays up, and print the profile that describes it."""
    from plansim.cli import console

    _needs_torch()
    from plansim.execute.testbed import bring_up

    spec = _spec(hosts, rate, ranks_per_host, cpu)
    text = _profile_text(spec, profile)
    bed = bring_up(name, spec)
    if out:
        from plansim.files import write_atomic

        write_atomic(out, text)
    if json:
        from dataclasses import asdict

        places = [
            {"rank": r, "namespace": bed.namespace(r), "address": bed.address(r)}
            for r in range(spec.num_ranks)
        ]
        console.emit_json({"schema": 1, "name": name, "spec": asdict(spec), "ranks": places, "profile": text})
        return
    table = console.table(rank="rank>", namespace="namespace", address="address")
    for rank in range(spec.num_ranks):
        table.add_row(str(rank), bed.namespace(rank), bed.address(rank))
    console.show(table)
    console.plain(f"\nprofile{f' (written to {out})' if out else ''}:\n{text}")
    console.say(f"remove it with: plansim testbed down --name {name}")


@testbed.command()
def run(
    plan: Annotated[str, typer.Argument(metavar="PLAN", help="A plan file.")],
    name: Annotated[
        str | None, typer.Option("--name", help="A testbed that is up; otherwise one is made and removed.")
    ] = None,
    hosts: Annotated[
        int | None,
        typer.Option("--hosts", min=1, max=64, help="Hosts; by default as many as the plan fills."),
    ] = None,
    rate: Rate = None,
    ranks_per_host: RanksPerHost = 1,
    cpu: Cpu = None,
    steps: Annotated[int, typer.Option("--steps", min=1, help="Timed steps.")] = 10,
    warmup: Annotated[int, typer.Option("--warmup", min=0, help="Untimed steps before them.")] = 3,
    check: Annotated[
        bool, typer.Option("--check/--no-check", help="Compare the first losses with a single process.")
    ] = True,
    timeout: Annotated[
        float, typer.Option("--timeout", min=0.001, help="Seconds after which to give up.")
    ] = 600.0,
    out: Annotated[str | None, typer.Option("--out", metavar="FILE", help="Write the measurement.")] = None,
    model: ModelName = None,
    override: Override = None,
    json: Json = False,
) -> None:
    """Execute a plan with its ranks on the hosts of a testbed; print it measured and predicted.

    Everything is removed afterwards, also after Ctrl-C; what a kill -9 leaves goes with the next testbed.
    """
    from contextlib import nullcontext

    from plansim.cli import console
    from plansim.cli.run import predicted, tables, with_prediction

    made = {"--hosts": hosts, "--rate": rate, "--cpu": cpu}
    if name and any(made.values()):
        unused = ", ".join(option for option, value in made.items() if value)
        raise typer.BadParameter(f"{unused}: no effect on a testbed that is up", param_hint="--name")
    given, shape, machine = read_case(plan, override, model=model)
    _needs_torch()
    from plansim.execute import RunOptions, run_plan
    from plansim.execute.testbed import find, temporary_testbed
    from plansim.execute.testbed_profile import profile_of_testbed

    needed = -(-given.parallel.world_size // ranks_per_host)
    bed = (
        nullcontext(find(name))
        if name
        else temporary_testbed(_spec(hosts or needed, rate, ranks_per_host, cpu))
    )
    options = RunOptions(check=check, timeout_s=timeout)
    with bed as place:
        place.host(given.parallel.world_size - 1)
        measured = run_plan(given, shape, steps=steps, warmup=warmup, out=out, options=options, place=place)
        of_testbed = "shared_cores" in machine.calibration  # the plan was made for a testbed's own profile
        cluster = machine if of_testbed else profile_of_testbed(place.spec, machine)
        expected = predicted(given, shape, cluster)
    if json:
        console.emit_json(with_prediction(measured, expected))
        return
    console.show(*tables(measured, expected))


@testbed.command()
def down(
    name: Name = "bed",
    every: Annotated[
        bool, typer.Option("--all", help="Every testbed, and what killed processes left.")
    ] = False,
    json: Json = False,
) -> None:
    """Remove a testbed that is up."""
    from plansim.cli import console

    _needs_torch()
    from plansim.execute.testbed import standing, sweep, take_down

    removed = standing() if every else [name]
    for each in removed:
        take_down(each)
        console.say(f"removed testbed {each}")
    left = sweep() if every else []
    for each in left:
        console.say(f"removed what was left of {each}")
    if json:
        console.emit_json({"schema": 1, "removed": removed, "leftovers": left})


@testbed.command(name="list")
def list_(json: Json = False) -> None:
    """List the testbeds that are up."""
    from plansim.cli import console

    _needs_torch()
    from plansim.execute.testbed import find, standing

    beds = {name: find(name).spec for name in standing()}
    if json:
        from dataclasses import asdict

        console.emit_json({"schema": 1, "testbeds": {name: asdict(spec) for name, spec in beds.items()}})
        return
    table = console.table(name="name", hosts="hosts>", ranks="ranks>", rates="rates~")
    for name, spec in beds.items():
        table.add_row(name, str(spec.hosts), str(spec.num_ranks), _rates(spec))
    console.show(table)


def _needs_torch() -> None:
    """Raise with the install line when torch is not installed: the testbed belongs to the executor."""
    from importlib.util import find_spec

    from plansim.errors import MissingExtraError

    if find_spec("torch") is None:
        raise MissingExtraError("a testbed", "torch", "execute")


def _rates(spec: TestbedSpec) -> str:
    from plansim.units import format_rate

    return ", ".join(sorted({"unshaped" if r is None else format_rate(r) for r in spec.rates_bytes_per_s}))


def _spec(hosts: int, rate: str | None, ranks_per_host: int, cpu: str | None) -> TestbedSpec:
    from dataclasses import replace

    from plansim.errors import InputError
    from plansim.execute.testbed import TestbedSpec
    from plansim.units import parse

    with usage("--rate"):
        bytes_per_s = None if rate is None else parse(rate, "bytes/s")
        if bytes_per_s is not None and not bytes_per_s > 0:
            raise InputError(f"'{rate}': expected more than 0")
        even = TestbedSpec.even(hosts, bytes_per_s, ranks_per_host=ranks_per_host)
    with usage("--cpu"):
        cores = _cores(cpu)
        return replace(even, cores=cores * hosts if len(cores) == 1 else cores)


def _cores(cpu: str | None) -> tuple[float | None, ...]:
    """Return the cores of one host for all, or of each.

    Examples
    --------
    >>> _cores("1,0.5"), _cores(None)
    ((1.0, 0.5), (None,))
    """
    from plansim.errors import InputError

    if cpu is None:
        return (None,)
    try:
        found = tuple(float(part) for part in cpu.split(","))
    except ValueError:
        found = (math.nan,)
    if not all(0 < cores < math.inf for cores in found):
        raise InputError(f"{cpu}: expected a number of cores, or one for each host as 1,0.5")
    return found


def _profile_text(spec: TestbedSpec, base: str) -> str:
    from plansim.execute.testbed_profile import profile_of_testbed
    from plansim.hardware.read import load_profile
    from plansim.hardware.write import dump_profile

    return dump_profile(profile_of_testbed(spec, load_profile(base)))
