"""The catalogue of devices: one YAML file each, read when asked for, found by id or alias."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Final, Literal

from pydantic import Field

from plansim import files
from plansim.errors import InputError, UnknownNameError
from plansim.hardware.curves import GPU_TILES, AttentionCurve, MatmulCurve, MemoryCurve
from plansim.hardware.device import Device

FOLDER: Final = Path(__file__).parent.parent / "catalog"

FIGURE_KINDS: Final = ("printed", "measured", "fitted", "assumed")
"""How a figure came about; every source starts with one of these."""

FAMILIES: Final[dict[tuple[str, str], str]] = {
    ("gpu", "nvidia"): "nvidia-hopper",
    ("gpu", "amd"): "amd-cdna",
    ("tpu", "google"): "google-tpu",
    ("accelerator", "aws"): "systolic",
    ("accelerator", "intel"): "systolic",
    ("cpu", ""): "cpu",
}
"""(kind, vendor) -> family of pooled curves, where no architecture says better."""

ARCHITECTURES: Final[dict[str, str]] = {
    "maxwell": "nvidia-volta", "pascal": "nvidia-volta", "volta": "nvidia-volta", "turing": "nvidia-volta",
    "ampere": "nvidia-ampere",
    "ada": "nvidia-ada", "hopper": "nvidia-hopper", "grace hopper": "nvidia-hopper", "blackwell":
    "nvidia-blackwell",
    "blackwell ultra": "nvidia-blackwell", "grace blackwell": "nvidia-blackwell",
    "grace blackwell ultra": "nvidia-blackwell", "rubin": "nvidia-blackwell",
    "blackwell workstation": "nvidia-ada",
}  # fmt: skip
"""Architecture -> family of pooled curves."""


class MatmulSchema(files.Schema):
    """A `MatmulCurve` in a file."""

    peak_fraction: float
    bandwidth_fraction: float = 0.8
    launch: files.Seconds = 3e-6
    tiles: list[tuple[int, int]] | None = None
    depth_step: int = 32
    prologue_depth: float = 100.0
    small_tile_cost: float = 5.0
    wave_quantisation: float = 0.5
    roofline_sharpness: float = 3.0
    throttle_fraction: float = 0.0
    throttle: files.Seconds = 5e-3
    cast_bytes: float = 0.0
    cache_saving: float = 0.0
    residual_log_std: float = 0.10

    def curve(self) -> MatmulCurve:
        """Return the checked record."""
        values = self.model_dump(exclude={"launch", "throttle", "tiles"})
        tiles = GPU_TILES if self.tiles is None else tuple(self.tiles)
        return MatmulCurve(**values, launch_s=self.launch, throttle_s=self.throttle, tiles=tiles)


class AttentionSchema(files.Schema):
    """An `AttentionCurve` in a file."""

    peak_fraction: float
    backward_fraction: float = 0.87
    exponential_dim: float = 32.0
    block: int = 128
    prologue_keys: float = 100.0
    tail_items: float = 0.7
    launch: files.Seconds = 1e-5
    query_passes: float = 4.0
    key_passes: float = 3.0
    throttle_fraction: float = 0.0
    throttle: files.Seconds = 5e-3
    residual_log_std: float = 0.08

    def curve(self) -> AttentionCurve:
        """Return the checked record."""
        values = self.model_dump(exclude={"launch", "throttle"})
        return AttentionCurve(**values, launch_s=self.launch, throttle_s=self.throttle)


class MemorySchema(files.Schema):
    """A `MemoryCurve` in a file."""

    bandwidth_fraction: float = 0.85
    launch: files.Seconds = 3e-6
    cache_bandwidth_fraction: float = 0.0
    residual_log_std: float = 0.10

    def curve(self) -> MemoryCurve:
        """Return the checked record."""
        return MemoryCurve(**self.model_dump(exclude={"launch"}), launch_s=self.launch)


class CurvesSchema(files.Schema):
    """Fitted curves of one device or family."""

    matmul: dict[str, MatmulSchema] = Field(default_factory=dict)
    attention: dict[str, AttentionSchema] = Field(default_factory=dict)
    memory: MemorySchema | None = None


class PriceSchema(files.Schema):
    """Price of one device for one hour."""

    low: Annotated[float, Field(ge=0)]
    high: Annotated[float, Field(ge=0)]
    basis: str


class DeviceSchema(files.Schema):
    """One device file, or the inline ``device`` of a hardware profile."""

    schema_: Annotated[Literal[1], Field(alias="schema")] = 1
    id: str
    aliases: list[str] = Field(default_factory=list)
    name: str = ""
    vendor: str = ""
    architecture: str = ""
    kind: Literal["gpu", "tpu", "cpu", "accelerator"] = "gpu"
    year: int = 0
    memory: Annotated[files.Bytes, Field(gt=0)]
    memory_bandwidth: Annotated[files.BytesPerSecond, Field(gt=0)]
    peak_flop_per_s: dict[str, Annotated[files.FlopPerSecond, Field(gt=0)]]
    power: Annotated[files.Watts, Field(ge=0)] = 0.0
    sustained_fraction: Annotated[float, Field(gt=0, le=1.2)] = 1.0
    host_speed: Annotated[float, Field(gt=0, le=10)] = 1.0
    compute_units: Annotated[int, Field(ge=1)] = 1
    l2: Annotated[files.Bytes, Field(ge=0)] = 0.0
    scaleup_bandwidth_per_direction: Annotated[files.BytesPerSecond, Field(ge=0)] = 0.0
    pcie_per_direction: Annotated[files.BytesPerSecond, Field(ge=0)] = 0.0
    usd_per_hour: PriceSchema | None = None
    curves: CurvesSchema = CurvesSchema()
    sources: dict[str, str] = Field(default_factory=dict)

    def device(self) -> Device:
        """Return the checked record."""
        price = self.usd_per_hour
        curves = self.curves
        return Device(
            id=self.id,
            name=self.name or self.id,
            vendor=self.vendor,
            architecture=self.architecture,
            kind=self.kind,
            year=self.year,
            memory_bytes=self.memory,
            memory_bandwidth_bytes_per_s=self.memory_bandwidth,
            peak_flop_per_s=self.peak_flop_per_s,
            compute_units=self.compute_units,
            l2_bytes=self.l2,
            power_watts=self.power,
            sustained_fraction=self.sustained_fraction,
            host_speed=self.host_speed,
            pcie_bytes_per_s=self.pcie_per_direction,
            scaleup_bytes_per_s=self.scaleup_bandwidth_per_direction,
            usd_per_hour=(price.low, price.high) if price else None,
            matmul={dtype: c.curve() for dtype, c in curves.matmul.items()},
            attention={dtype: c.curve() for dtype, c in curves.attention.items()},
            memory=curves.memory.curve() if curves.memory else None,
            sources=self.sources | ({"usd_per_hour": f"printed: {price.basis}"} if price else {}),
            aliases=tuple(self.aliases),
        )


class FamilySchema(CurvesSchema):
    """A file of pooled curves."""

    schema_: Annotated[Literal[1], Field(alias="schema")] = 1
    sources: dict[str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class FamilyCurves:
    """Curves pooled over the measured devices of one family."""

    memory: MemoryCurve
    matmul: Mapping[str, MatmulCurve] = field(default_factory=dict)
    attention: Mapping[str, AttentionCurve] = field(default_factory=dict)


def device_from(data: Mapping[str, Any], source: str) -> Device:
    """Return the device written out in `data`, as in a hardware profile.

    Raises
    ------
    InputError
        With every wrong key and its place in `source`.
    """
    schema = files.check(data, DeviceSchema, source=source)
    try:
        return schema.device()
    except InputError as error:
        raise InputError(f"{source}: {error}") from None


def load_device(path: Path) -> Device:
    """Return the device of one YAML file."""
    return device_from(files.read_yaml(path), str(path))


@cache
def catalog_devices() -> dict[str, Path]:
    """Return the catalogue: device id -> its file."""
    return {path.stem: path for path in sorted((FOLDER / "devices").glob("*.yaml"))}


@cache
def device_names() -> dict[str, str]:
    """Return every name a device answers to, in lower case -> its id.

    Only the one-line ``aliases: [...]`` of each file is read, so that a lookup does not parse the catalogue.
    """
    names: dict[str, str] = {}
    for device_id, path in catalog_devices().items():
        names[device_id.lower()] = device_id
        match = re.search(r"^aliases: \[(.*)\]$", files.read_text(path), re.MULTILINE)
        for alias in re.findall(r"\"([^\"]+)\"|([^,\s][^,]*)", match[1]) if match else ():
            names[(alias[0] or alias[1]).strip().lower()] = device_id
    return names


def find_device(name: str) -> Device:
    """Return a catalogue device by id or alias, in any case and with any of the usual separators.

    What a driver prints before the product's own name (``NVIDIA``, ``AMD Instinct``) is left out.

    Raises
    ------
    UnknownNameError
        With the nearest known name.

    Examples
    --------
    >>> find_device("H100-SXM").id
    'h100-sxm5-80gb'
    >>> find_device("NVIDIA GeForce RTX 4090").id
    'rtx-4090-24gb'
    """
    device_id = device_names().get(name.strip().lower()) or _bare_names().get(_bare(name))
    if device_id is None:
        raise UnknownNameError("device", name, device_names())
    return _catalog_device(device_id)


BRANDS = ("nvidia", "amd", "google", "instinct", "radeon", "tesla", "geforce", "quadro")


def _bare(name: str) -> str:
    """Return a name without brands and separators."""
    words = re.split(r"[\s_\-]+", name.strip().lower())
    return "".join(word for word in words if word not in BRANDS)


@cache
def _bare_names() -> dict[str, str]:
    return {_bare(name): device_id for name, device_id in device_names().items()}


@cache
def _catalog_device(device_id: str) -> Device:
    return load_device(catalog_devices()[device_id])


@cache
def family_curves(kind: str, vendor: str, architecture: str) -> FamilyCurves:
    """Return the pooled curves for a device of this kind, vendor and architecture."""
    vendor = vendor.lower()
    name = ARCHITECTURES.get(architecture.lower()) if vendor == "nvidia" else None
    name = name or FAMILIES.get((kind, vendor)) or FAMILIES.get((kind, "")) or "generic"
    return _pooled(name)


@cache
def _pooled(name: str) -> FamilyCurves:
    path = FOLDER / "curves" / f"{name}.yaml"
    curves = files.check(files.read_yaml(path), FamilySchema, source=str(path))
    return FamilyCurves(
        memory=(curves.memory or MemorySchema()).curve(),
        matmul={dtype: c.curve() for dtype, c in curves.matmul.items()},
        attention={dtype: c.curve() for dtype, c in curves.attention.items()},
    )
