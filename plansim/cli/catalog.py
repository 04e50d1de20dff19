"""``plansim catalog``: what plansim knows, with sources."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from plansim.cli.options import Json, usage
from plansim.errors import InputError, UnknownNameError, nearest

if TYPE_CHECKING:
    from collections.abc import Callable

catalog = typer.Typer(
    rich_markup_mode=None,
    add_completion=False,
    no_args_is_help=True,
    help="What plansim knows, with sources.",
)

Row = dict[str, Any]

DEVICE = "h100-sxm5-80gb"
"""Whose speed the table of compression methods shows unless another device is asked for."""


def _devices() -> list[Row]:
    from plansim.hardware.catalog import catalog_devices, find_device
    from plansim.units import format_bytes, format_flop_per_s, format_rate

    rows = []
    for device in map(find_device, catalog_devices()):
        best = "bf16" if "bf16" in device.peak_flop_per_s else next(iter(device.peak_flop_per_s))
        rows.append(
            {
                "name": device.id,
                "what": device.name,
                "memory": format_bytes(device.memory_bytes),
                "bandwidth": format_rate(device.memory_bandwidth_bytes_per_s),
                "peak": f"{format_flop_per_s(device.peak_flop_per_s[best])} {best}",
            }
        )
    return rows


def _profiles() -> list[Row]:
    from plansim.hardware.read import load_profile, profile_names

    rows = []
    for name in profile_names():
        profile = load_profile(name)
        rows.append(
            {
                "name": name,
                "devices": profile.num_devices,
                "device": " + ".join(dict.fromkeys(g.device.id for g in profile.groups)),
                "fabric": ", ".join(f"{level.name} ({level.kind})" for level in profile.fabric),
            }
        )
    return rows


def _models() -> list[Row]:
    from plansim.cli.show import parameters_text
    from plansim.workload.model import Model
    from plansim.workload.read import built_in_models, load_model
    from plansim.workload.totals import active_parameter_count, parameter_count

    rows = []
    for name in built_in_models():
        model = load_model(name)
        if isinstance(model, Model):
            rows.append(
                {
                    "name": name,
                    "family": model.family,
                    "parameters": parameters_text(parameter_count(model)),
                    "active": parameters_text(active_parameter_count(model)),
                    "layers": model.layers,
                    "hidden": model.hidden,
                    "seq_len": model.seq_len,
                }
            )
    return rows


def _families() -> list[Row]:
    from plansim.workload.defaults import FAMILY_DEFAULTS
    from plansim.workload.families import FAMILIES

    return [
        {
            "name": name,
            "own keys of a model file": ", ".join(family.keys),
            "defaults": ", ".join(f"{k}: {v}" for k, v in FAMILY_DEFAULTS.get(name, {}).items()),
        }
        for name, family in FAMILIES.items()
    ]


def _schedules() -> list[Row]:
    from plansim.schedules import SCHEDULES

    return [
        {"name": n, "splits backward": s.splits_backward, "what": s.about, "source": s.source}
        for n, s in SCHEDULES.items()
    ]


def _collectives() -> list[Row]:
    from plansim.costs.collectives import COLLECTIVE_ALGORITHMS

    return [{"name": name, "what": _first_line(a)} for name, a in COLLECTIVE_ALGORITHMS.items()]


def _transports() -> list[Row]:
    from plansim.hardware.transport import transport, transport_names

    rows = []
    for name in transport_names():
        found = transport(name)
        rows.append(
            {
                "name": name,
                "protocols": ", ".join(p.name for p in found.protocols),
                "source": "; ".join(found.sources.values()),
            }
        )
    return rows


def _compression() -> list[Row]:
    from plansim.cli.compression_table import compression_rows
    from plansim.hardware.catalog import find_device

    return compression_rows(find_device(DEVICE))


def _stacks() -> list[Row]:
    from plansim.hardware.stack import catalog_stacks

    return [{"name": name, "what": stack.about} for name, stack in catalog_stacks().items()]


def _modules() -> list[Row]:
    from plansim.plan.modules import MODULES, modules_in
    from plansim.workload.model import ATTENTION_FAMILIES, Model
    from plansim.workload.read import built_in_models, load_model

    models = [model for model in map(load_model, built_in_models()) if isinstance(model, Model)]
    return [
        {
            "name": name,
            "what": module.about,
            "keeps": "its input" if module.checkpoint else "nothing more",
            "families": ", ".join(
                family
                for family in ATTENTION_FAMILIES
                if any(m.family == family and name in modules_in(m) for m in models)
            ),
        }
        for name, module in MODULES.items()
    ]


def _backends() -> list[Row]:
    from plansim.plan.backends import BACKENDS

    return [
        {"name": name, "version": b.version, "families": ", ".join(b.families)}
        for name, b in BACKENDS.items()
    ]


def _first_line(thing: object) -> str:
    return (type(thing).__doc__ or "").strip().split("\n", 1)[0]


KINDS: dict[str, Callable[[], list[Row]]] = {
    "devices": _devices,
    "profiles": _profiles,
    "models": _models,
    "families": _families,
    "schedules": _schedules,
    "collectives": _collectives,
    "transports": _transports,
    "compression": _compression,
    "stacks": _stacks,
    "modules": _modules,
    "backends": _backends,
}
"""What `catalog list` can list -> its rows; the first column is the name."""


@catalog.command("list")
def list_(
    kind: Annotated[str | None, typer.Argument(metavar="[KIND]", help=f"One of: {', '.join(KINDS)}.")] = None,
    device: Annotated[
        str | None, typer.Option("--device", metavar="NAME", help="Whose speed compression is listed with.")
    ] = None,
    json: Json = False,
) -> None:
    """List everything of one kind; without a kind, say what kinds there are."""
    from plansim.cli import console

    if kind is not None and kind not in KINDS:
        with usage("KIND"):
            raise UnknownNameError("kind of catalogue entry", kind, KINDS)
    if kind is None:
        rows: list[Row] = [{"name": name, "entries": len(rows_of())} for name, rows_of in KINDS.items()]
    elif device is not None:
        rows = _on_device(kind, device)
    else:
        rows = KINDS[kind]()
    if json:
        console.emit_json({"schema": 1, "kind": kind or "kinds", "entries": rows})
        return
    if kind == "compression":
        from plansim.cli.compression_table import tables
        from plansim.hardware.catalog import find_device

        console.show(*tables(rows, find_device(device or DEVICE)))
        return
    long = {"what", "edges", "source", "fabric", "defaults", "own keys of a model file", "families"}
    made = console.table(
        **{key: f"{key}~" if key in long else f"{key}>" if _numeric(rows, key) else key for key in rows[0]}
    )
    for row in rows:
        made.add_row(*(_cell(value) for value in row.values()))
    console.show(made)


def _on_device(kind: str, name: str) -> list[Row]:
    from plansim.cli.compression_table import compression_rows
    from plansim.hardware.catalog import find_device

    if kind != "compression":
        raise typer.BadParameter(
            f"{name}: only compression depends on a device; leave it out for {kind}", param_hint="--device"
        )
    return compression_rows(find_device(name))


def _numeric(rows: list[Row], key: str) -> bool:
    return all(isinstance(row[key], int | float) and not isinstance(row[key], bool) for row in rows)


def _cell(value: object) -> str:
    return {True: "yes", False: "no"}[value] if isinstance(value, bool) else str(value)


@catalog.command()
def show(
    name: Annotated[str, typer.Argument(metavar="NAME", help="A device, profile, model, schedule, …")],
    json: Json = False,
) -> None:
    """Show one entry whole: every figure with its source."""
    from plansim.cli import console
    from plansim.files import dump_yaml

    found = [entry for entry in (_from_file(name), _from_tables(name)) if entry]
    if not found:
        near = nearest(name, [str(row["name"]) for rows_of in KINDS.values() for row in rows_of()])
        hint = f"did you mean '{near}'?" if near else "plansim catalog list KIND shows what there is"
        raise InputError(f"unknown catalogue entry '{name}' ({hint})")
    kind, data = found[0]
    if json:
        console.emit_json({"schema": 1, "kind": kind, "entry": data})
        return
    console.show(f"# {kind}")
    console.plain(dump_yaml(data))


def _from_file(name: str) -> tuple[str, Row] | None:
    """Return the file behind a device, profile, model, transport or stack."""
    from pathlib import Path

    from plansim.files import plain, read_yaml
    from plansim.hardware import catalog as devices
    from plansim.hardware.read import shipped_profiles
    from plansim.workload.read import BUILT_IN

    device = devices.device_names().get(name.lower(), name)
    folders: dict[str, Path] = {
        "profile": Path("hardware_profiles"),
        "shipped profile": shipped_profiles(),
        "model": BUILT_IN,
        "device": devices.FOLDER / "devices",
        "transport": devices.FOLDER / "fabrics",
        "stack": devices.FOLDER / "stacks",
    }
    for kind, folder in folders.items():
        path = folder / f"{device if kind == 'device' else name}.yaml"
        if "/" not in name and path.is_file():
            return kind, plain(read_yaml(path))
    return None


def _from_tables(name: str) -> tuple[str, Row] | None:
    for kind in ("families", "schedules", "collectives", "compression", "modules", "backends"):
        for row in KINDS[kind]():
            if row["name"] == name:
                return kind, row
    return None
