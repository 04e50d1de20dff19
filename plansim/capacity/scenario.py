"""A scenario: one cluster, one model, one job; known by its content, so that results can be found again."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from plansim import __version__
from plansim.errors import InputError, ProfileError
from plansim.hardware.profile import Profile
from plansim.hardware.read import load_cluster, load_profile, with_nodes
from plansim.plan.model import Job
from plansim.workload.model import Model
from plansim.workload.module import ModuleModel
from plansim.workload.read import load_model

CATALOG = Path(__file__).parents[1] / "catalog"
MONEY = ("profile.economics.", "profile.reliability.")
"""Changes that leave the step as it is: price, power, failures."""

Changes = tuple[tuple[str, str], ...]
"""Dotted key (``profile.economics.usd_per_device_hour``) and YAML text, in the order given."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Scenario:
    """One point of a sweep.

    Attributes
    ----------
    model, profile : str
        Names or paths.
    devices : int or None
        Devices to use; None takes the profile as it is.
    changes : tuple
        Changes to the profile and the model file, checked as the files are.
    fix : tuple
        Choices of the plan held fast, by name, as text.
    search : str
        ``quick`` (the choices that usually win) or ``full`` (everything the planner knows).
    """

    model: str
    profile: str
    job: Job
    devices: int | None = None
    changes: Changes = ()
    fix: Changes = ()
    objective: str = "throughput"
    search: str = "quick"

    def to_json(self) -> dict[str, Any]:
        """Return plain data; `scenario_from_data` reads it back equal."""
        data = asdict(self)
        return data | {"changes": dict(self.changes), "fix": dict(self.fix)}

    @property
    def planning(self) -> Scenario:
        """The part that decides the plan: scenarios that differ only in price or failures share it."""
        kept = tuple(c for c in self.changes if not c[0].startswith(MONEY))
        return replace(self, changes=kept, job=replace(self.job, target_tokens=None))


def scenario_from_data(data: Mapping[str, Any]) -> Scenario:
    """Return the scenario in plain data.

    Raises
    ------
    InputError
        When the data is no scenario.
    """
    try:
        fields = dict(data)
        job = Job(**fields.pop("job"))
        changes, fix = (tuple(dict(fields.pop(name)).items()) for name in ("changes", "fix"))
        return Scenario(job=job, changes=changes, fix=fix, **fields)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise InputError(f"not a scenario: {error}") from None


def key_of(scenario: Scenario) -> str:
    """Return the content hash of a scenario: its fields, the files it names, the catalogue and the version.

    A changed profile, model file, catalogue or release gives a new key, so old results are never taken for
    new ones.
    """
    text = json.dumps(scenario.to_json(), sort_keys=True, separators=(",", ":"))
    parts = (__version__, _catalogue_digest(), _file_digest(scenario.profile, scenario.model), text)
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:32]


@lru_cache(maxsize=1)
def _catalogue_digest() -> str:
    digest = hashlib.sha256()
    for path in sorted(CATALOG.rglob("*.yaml")):
        digest.update(path.name.encode())
        digest.update(path.read_bytes())
    return digest.hexdigest()


@lru_cache(maxsize=4096)
def _file_digest(profile: str, model: str) -> str:
    return hashlib.sha256(f"{load_profile(profile)!r}{_model(model, ())!r}".encode()).hexdigest()


def case_of(scenario: Scenario) -> tuple[Model, Profile]:
    """Return the model and the cluster of a scenario.

    Raises
    ------
    InputError
        When a name is unknown, a change is wrong, or the devices do not make whole nodes.
    """
    profile = _profile(scenario.profile, _below("profile", scenario.changes))
    model = _model(scenario.model, _below("model", scenario.changes))
    return model, profile if scenario.devices is None else with_devices(profile, scenario.devices)


def _below(kind: str, changes: Changes) -> Changes:
    return tuple((key.removeprefix(f"{kind}."), text) for key, text in changes if key.startswith(f"{kind}."))


@lru_cache(maxsize=1024)
def _profile(name: str, changes: Changes) -> Profile:
    return load_cluster(name, dict(changes))


@lru_cache(maxsize=256)
def _model(name: str, changes: Changes) -> Model:
    model = load_model(name, dict(changes))
    if isinstance(model, ModuleModel):
        raise InputError(f"{name}: a Python factory has no shape before it is built; give a name or file")
    return model


def with_devices(profile: Profile, devices: int) -> Profile:
    """Return the profile with another number of devices: whole nodes, or a part of one.

    Raises
    ------
    ProfileError
        When they do not make whole nodes.
    """
    if len(profile.groups) > 1:
        raise ProfileError(f"{profile.name} mixes devices; give its node counts instead of devices")
    per_node = profile.devices_per_node
    if devices < per_node:
        group = replace(profile.groups[0], devices=devices, count=1)
        return replace(profile, groups=(group,), fabric=profile.fabric[:1])
    if devices % per_node:
        near = max(1, round(devices / per_node)) * per_node
        raise ProfileError(
            f"{devices} devices do not fill nodes of {per_node} ({profile.name}); {near} would"
        )
    return with_nodes(profile, devices // per_node)
