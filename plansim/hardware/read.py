"""Hardware profiles: found by name or path, read with places, written so that they read back equal."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from plansim.errors import InputError, ProfileError
from plansim.files import (
    Bytes,
    BytesPerSecond,
    Count,
    Name,
    Schema,
    Seconds,
    Watts,
    check,
    plain,
    read_yaml,
    resolve,
)
from plansim.hardware.catalog import DeviceSchema, catalog_devices, device_names, find_device
from plansim.hardware.device import Device
from plansim.hardware.fabric import FabricLevel, fabric_of
from plansim.hardware.profile import BACKENDS, Economics, Host, NodeGroup, Profile, Reliability
from plansim.hardware.transport import transport

SUFFIXES = (".yaml", ".yml", ".json")
_PACKAGE = Path(__file__).parents[1]

Price = Annotated[float, Field(ge=0)]
Level = Literal["switch", "ring", "mesh", "torus", "fat-tree", "rail", "dragonfly", "graph"]


class NodeSchema(Schema):
    """``node:`` of a uniform cluster."""

    devices: Count
    count: Count = 1


class GroupSchema(NodeSchema):
    """One entry of ``nodes:``, the groups of a mixed cluster; `speed` slows a group down (a slow node)."""

    device: DeviceSchema
    speed: Annotated[float, Field(gt=0, le=1)] = 1.0


class LevelSchema(Schema):
    """One entry of ``fabric:``."""

    name: Name
    kind: Level
    group: Count | None = None
    bandwidth_per_direction: Annotated[BytesPerSecond, Field(gt=0)]
    latency: Annotated[Seconds, Field(ge=0)]
    oversubscription: Annotated[float, Field(ge=1)] = 1.0
    cross_traffic: Annotated[float, Field(ge=0, lt=1)] = 0.0
    rails: Count | None = None
    dims: list[Count] | None = None
    wrap: bool | list[bool] = True
    in_network_reduction: bool = False
    transport: Name | None = None
    graph: Name | None = None


class HostSchema(Schema):
    """``host:``, the machine around the devices of one node."""

    cores: Count = 1
    memory: Annotated[Bytes, Field(ge=0)] = 0.0
    pcie_per_direction: Annotated[BytesPerSecond, Field(gt=0)] | None = None
    storage_read: Annotated[BytesPerSecond, Field(gt=0)] = 5e9
    storage_write: Annotated[BytesPerSecond, Field(gt=0)] = 2e9


class EconomicsSchema(Schema):
    """``economics:``, what a device costs to run."""

    usd_per_device_hour: Price | None = None
    usd_per_device_hour_reserved: Price | None = None
    usd_per_device_hour_low: Price | None = None
    usd_per_device_hour_high: Price | None = None
    power_watts: Annotated[Watts, Field(ge=0)] | None = None
    pue: Annotated[float, Field(ge=1)] = 1.2
    kg_co2_per_kwh: Annotated[float, Field(ge=0)] = 0.4
    basis: str = "not stated"


class ReliabilitySchema(Schema):
    """``reliability:``, failures of one device and the time to start again."""

    mtbf_device_hours: Annotated[float, Field(gt=0)] = 50_000.0
    restart_s: Annotated[Seconds, Field(ge=0)] = 300.0


class ProfileSchema(Schema):
    """A hardware profile."""

    schema_: Annotated[Literal[1], Field(alias="schema")] = 1
    name: Name
    device: DeviceSchema | None = None
    node: NodeSchema | None = None
    nodes: Annotated[list[GroupSchema], Field(min_length=1)] | None = None
    fabric: Annotated[list[LevelSchema], Field(min_length=1, max_length=16)]
    backend: Literal["nccl", "rccl", "gloo", "ici"] | None = None
    host: HostSchema = HostSchema()
    economics: EconomicsSchema = EconomicsSchema()
    reliability: ReliabilitySchema = ReliabilitySchema()
    calibration: dict[str, Any] = {}  # noqa: RUF012  (pydantic copies defaults)
    sources: dict[str, str] = {}  # noqa: RUF012

    @model_validator(mode="after")
    def _one_way_to_say_the_nodes(self) -> ProfileSchema:
        uniform = self.device is not None and self.node is not None
        if (self.nodes is not None) == uniform or (self.nodes and (self.device or self.node)):
            raise ProfileError(
                "write either device and node, or nodes (a list of groups for a mixed cluster)"
            )
        return self


def shipped_profiles() -> Path:
    """Return the folder of profiles that came with plansim: in the package, or beside it in a checkout."""
    inside = _PACKAGE / "hardware_profiles"
    return inside if inside.is_dir() else _PACKAGE.parent / "hardware_profiles"


def profile_names() -> list[str]:
    """Return the names of the profiles in ``hardware_profiles`` here and in plansim."""
    folders = (Path("hardware_profiles"), shipped_profiles())
    return sorted({p.stem for folder in folders for p in folder.glob("*.yaml")})


def find_profile(name: str | Path) -> Path:
    """Return the file that a profile name or path means.

    Looks, in this order, at the path as given, at ``hardware_profiles/`` below the current folder, and at the
    profiles shipped with plansim; the suffix may be left off.
    """
    return resolve(
        str(name), (Path("hardware_profiles"), shipped_profiles()), SUFFIXES, "profile", profile_names
    )


def load_profile(name: str | Path, overrides: Mapping[str, str] | None = None) -> Profile:
    """Return the cluster that `name` describes.

    Parameters
    ----------
    name : str or Path
        A path or a profile name; see `find_profile`.
    overrides : mapping of str to str, optional
        Dotted key to YAML text, e.g. ``{"node.count": "64", "fabric.1.latency": "2 us"}``.

    Raises
    ------
    InputError
        Lists every wrong key or value with file, line and column.

    Examples
    --------
    >>> profile = load_profile("a100x8")
    >>> profile.num_devices, profile.device.id
    (8, 'a100-sxm4-80gb')
    """
    path = find_profile(name)
    return profile_from_data(read_yaml(path), source=str(path), overrides=overrides, folder=path.parent)


def profile_from_data(
    data: Any,
    *,
    source: str = "profile",
    overrides: Mapping[str, str] | None = None,
    folder: Path | None = None,
) -> Profile:
    """Return the profile in plain data; `folder` is where its graph files lie."""

    def prepare(plain: dict[str, Any]) -> dict[str, Any]:
        return _with_catalogue_devices(plain, source)

    file = check(data, ProfileSchema, source=source, overrides=overrides, prepare=prepare)
    try:
        return _without_foreign_prices(_profile(file, folder or Path()), overrides or {})
    except InputError as error:
        raise ProfileError(f"{source}: {error}") from None


def _with_catalogue_devices(data: dict[str, Any], source: str) -> dict[str, Any]:
    """Return the data of a profile with devices written out: the catalogue's, changed by what is given."""
    full = dict(data)
    if full.get("device") is not None:
        full["device"] = _written_out(full["device"], f"{source}: device")
    if isinstance(full.get("nodes"), list):
        full["nodes"] = [
            {**group, "device": _written_out(group["device"], f"{source}: nodes.{i}.device")}
            if isinstance(group, dict) and group.get("device") is not None
            else group
            for i, group in enumerate(full["nodes"])
        ]
    return full


def _written_out(device: Any, place: str) -> Any:
    given = {"id": device} if isinstance(device, str) else device
    if not isinstance(given, dict) or not isinstance(given.get("id"), str):
        return given
    known = device_names().get(given["id"].strip().lower())
    if known is None:
        if set(given) <= {"id"}:
            try:
                find_device(given["id"])
            except InputError as error:
                raise ProfileError(f"{place}: {error}; or write the device out inline") from None
        return given
    from_catalogue = plain(read_yaml(catalog_devices()[known]))
    return _merged(from_catalogue, {**given, "id": known})


def _merged(base: Any, change: Any) -> Any:
    if isinstance(base, dict) and isinstance(change, dict):
        return base | {k: _merged(base[k], v) if k in base else v for k, v in change.items()}
    return change


def _profile(file: ProfileSchema, folder: Path) -> Profile:
    groups = tuple(
        NodeGroup(device=at_speed(g.device.device(), g.speed), devices=g.devices, count=g.count)
        for g in file.nodes or ()
    )
    if file.device and file.node:
        groups = (NodeGroup(device=file.device.device(), devices=file.node.devices, count=file.node.count),)
    device = groups[0].device
    profile = Profile(
        name=file.name,
        groups=groups,
        fabric=tuple(_level(level, folder) for level in file.fabric),
        backend=file.backend or default_backend(device),
        host=_host(file.host, device),
        economics=_economics(file.economics, device),
        reliability=Reliability(**file.reliability.model_dump()),
        calibration=file.calibration,
        sources=file.sources,
    )
    return _joined(profile)


def at_speed(device: Device, speed: float) -> Device:
    """Return a device whose compute runs at a fraction of its speed: throttled, or shared with others."""
    if speed == 1.0:
        return device
    name = f"{device.name or device.id} at {speed:.0%}"
    return replace(device, name=name, sustained_fraction=device.sustained_fraction * speed)


def _joined(profile: Profile) -> Profile:
    """Return the profile whose fabric reaches every device; refuse one that does not."""
    fabric_of(profile)  # the levels must fit together
    node = profile.devices_per_node
    for level in profile.fabric:
        if level.group is not None and node % level.group and level.group % node:
            raise ProfileError(
                f"fabric level '{level.name}': group {level.group} neither divides a node of {node} devices "
                "nor holds whole nodes"
            )
    outermost = profile.fabric[-1]
    if outermost.group is not None and outermost.group < profile.num_devices:
        raise ProfileError(
            f"fabric level '{outermost.name}', the outermost, joins {outermost.group} of "
            f"{profile.num_devices} devices; add a level above it, or leave its group out"
        )
    return profile


def default_backend(device: Device) -> str:
    """Return the collective library that a device's makers provide."""
    return "rccl" if device.vendor.lower() == "amd" else BACKENDS[device.kind]


def _level(file: LevelSchema, folder: Path) -> FabricLevel:
    if file.transport is not None:
        transport(file.transport)
    graph = None
    if file.kind == "graph":
        if file.graph is None:
            raise ProfileError(f"fabric level '{file.name}': kind graph needs graph: FILE with its links")
        graph = str((folder / file.graph).resolve())
        if not Path(graph).is_file():
            raise ProfileError(f"fabric level '{file.name}': graph file {graph} does not exist")
    elif file.graph is not None:
        raise ProfileError(f"fabric level '{file.name}': graph means nothing for kind {file.kind}")
    given = file.model_dump(exclude={"bandwidth_per_direction", "latency", "dims", "wrap", "graph"})
    return FabricLevel(
        **given,
        bandwidth_bytes_per_s=file.bandwidth_per_direction,
        latency_s=file.latency,
        dims=None if file.dims is None else tuple(file.dims),
        wrap=file.wrap if isinstance(file.wrap, bool) else tuple(file.wrap),
        graph=graph,
    )


def _host(file: HostSchema, device: Device) -> Host:
    return Host(
        cores=file.cores,
        memory_bytes=file.memory,
        pcie_bytes_per_s=file.pcie_per_direction or device.pcie_bytes_per_s or Host().pcie_bytes_per_s,
        storage_read_bytes_per_s=file.storage_read,
        storage_write_bytes_per_s=file.storage_write,
    )


def _economics(file: EconomicsSchema, device: Device) -> Economics:
    """Return the economics; price and power left out are the catalogue's for the device (its lower price).

    The catalogue's range of prices joins a price that lies in it.
    """
    price, basis = file.usd_per_device_hour, file.basis
    if price is None and device.usd_per_hour is not None:
        price, basis = device.usd_per_hour[0], device.sources.get("usd_per_hour", basis)
    low, high = file.usd_per_device_hour_low, file.usd_per_device_hour_high
    if low is None and high is None and price and device.usd_per_hour is not None:
        cheapest, dearest = device.usd_per_hour
        if cheapest < dearest and cheapest <= price <= dearest:
            low, high = cheapest, dearest
    return Economics(
        usd_per_device_hour=price or 0.0,
        usd_per_device_hour_reserved=file.usd_per_device_hour_reserved,
        usd_per_device_hour_low=low,
        usd_per_device_hour_high=high,
        power_watts=device.power_watts if file.power_watts is None else file.power_watts,
        pue=file.pue,
        kg_co2_per_kwh=file.kg_co2_per_kwh,
        basis=basis,
    )


def _without_foreign_prices(profile: Profile, overrides: Mapping[str, str]) -> Profile:
    """Return the profile without what others ask when the user stated a price of their own."""
    price = "economics.usd_per_device_hour"
    if price not in overrides or any(f"{price}_{end}" in overrides for end in ("low", "high")):
        return profile
    own = replace(profile.economics, usd_per_device_hour_low=None, usd_per_device_hour_high=None)
    return replace(profile, economics=own)


def load_cluster(name: str | Path, overrides: Mapping[str, str], nodes: int | None = None) -> Profile:
    """Return the cluster that `name` describes with its changes; ``node.count`` also resizes a torus."""
    count = overrides.get("node.count", "")
    if nodes is None and count.isdigit() and len(load_profile(name).groups) == 1:
        nodes, overrides = int(count), {k: v for k, v in overrides.items() if k != "node.count"}
    cluster = load_profile(name, overrides)
    return cluster if nodes is None else with_nodes(cluster, nodes)


def with_nodes(profile: Profile, count: int) -> Profile:
    """Return the profile with another number of nodes; a torus that holds the whole cluster is resized.

    A resized torus is as near to a cube as it goes and closes into rings only where every dimension is a
    multiple of 4 (three dimensions) or 16 (two): smaller TPU slices have no wrap-around links (Google Cloud
    TPU documentation, "TPU v5p" and "TPU v5e" system architecture).

    Raises
    ------
    ProfileError
        For a mixed cluster, or a count that its torus cannot hold.
    """
    if len(profile.groups) > 1:
        raise ProfileError(
            f"{profile.name} has {len(profile.groups)} groups of nodes; change nodes.N.count instead"
        )
    if count < 1:
        raise ProfileError(f"a cluster needs at least 1 node, got {count}")
    group = replace(profile.groups[0], count=count)
    levels = tuple(_resized(level, profile.num_devices, group.num_devices) for level in profile.fabric)
    return _joined(replace(profile, groups=(group,), fabric=levels))


def _resized(level: FabricLevel, devices: int, wanted: int) -> FabricLevel:
    if level.dims is None or level.group not in (None, devices) or devices == wanted:
        return level
    dims = _near_cube(wanted, len(level.dims))
    unit = 4 if len(dims) >= 3 else 16
    wrap = level.kind == "torus" and all(d % unit == 0 for d in dims)
    return replace(level, dims=dims, wrap=wrap, group=None if level.group is None else wanted)


def _near_cube(count: int, num_dims: int) -> tuple[int, ...]:
    """Return factors of `count` as equal as they go, ascending.

    Examples
    --------
    >>> _near_cube(128, 3), _near_cube(256, 2)
    ((4, 4, 8), (16, 16))
    """
    if num_dims == 1:
        return (count,)
    target = round(count ** (1 / num_dims))
    first = max(d for d in range(1, max(target, 1) + 1) if count % d == 0)
    return (first, *_near_cube(count // first, num_dims - 1))
