"""Options that commands share, and the overrides they carry."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated

import typer

from plansim.errors import InputError, UnknownNameError

if TYPE_CHECKING:
    from plansim.hardware.profile import Profile
    from plansim.plan.model import Plan
    from plansim.plan.rule import Rejected
    from plansim.workload.model import Model

Json = Annotated[bool, typer.Option("--json", help="Print one JSON document instead of tables.")]
Override = Annotated[
    list[str] | None,
    typer.Option(
        "-o",
        "--override",
        metavar="KEY=VALUE",
        help="Change one value, checked as the file is: profile.node.count=64, model.layers=12, "
        "plan.parallel.tp=4, job.global_batch=512; list items by index.",
    ),
]
ProfileName = Annotated[
    str,
    typer.Option(
        "--profile", "-p", metavar="P", help="Hardware profile: a path or a name (see catalog list profiles)."
    ),
]
ModelName = Annotated[
    str | None,
    typer.Option(
        "--model",
        "-m",
        metavar="M",
        help="Built-in name, model file, Hugging Face config.json, or package.module:factory.",
    ),
]

KINDS = ("profile", "model", "plan", "job")


@contextmanager
def usage(option: str) -> Iterator[None]:
    """Make what is wrong with the value of an option a usage error (exit code 2).

    The rule: what can be seen to be wrong on the command line alone is a usage error; what is wrong in a file
    (also by ``-o``, which changes files), or only beside one, is an input error (exit code 3).
    """
    try:
        yield
    except InputError as error:
        raise typer.BadParameter(str(error).removeprefix(f"{option} "), param_hint=option) from None


def require_known(option: str, given: str | None, known: Iterable[str]) -> None:
    """Refuse a word that an option does not know, as a usage error."""
    names = list(known)
    if given is not None and given not in names:
        with usage(option):
            raise UnknownNameError("name", given, names)


def require_agreement(changes: dict[str, dict[str, str]], options: Mapping[str, tuple[object, str]]) -> None:
    """Refuse an option and an override that say different things, as a usage error.

    Parameters
    ----------
    changes : dict
        Overrides, as `split_overrides` returns them.
    options : mapping of str to (object, str)
        Options: the value given, or None, and the override that says the same.
    """
    for option, (value, same) in options.items():
        kind, _, key = same.partition(".")
        other = changes.get(kind, {}).get(key)
        if None not in (value, other) and str(value) != other:
            raise typer.BadParameter(f"{value} contradicts -o {same}={other}; give one", param_hint=option)


def split_overrides(given: Iterable[str] | None, kinds: tuple[str, ...] = KINDS) -> dict[str, dict[str, str]]:
    """Return overrides by the file they change, each as dotted key -> YAML text.

    Parameters
    ----------
    given : iterable of str
        As typed: ``kind.key.path=value``.
    kinds : tuple of str
        What this command reads.

    Raises
    ------
    typer.BadParameter
        When the text is no assignment, or changes a file that this command does not read (usage errors).
    """
    found: dict[str, dict[str, str]] = {kind: {} for kind in kinds}
    for text in given or ():
        path, equals, value = text.partition("=")
        kind, dot, key = path.strip().partition(".")
        if not (equals and dot and key):
            raise typer.BadParameter(
                f"'{text}' is not KEY=VALUE with a key such as {kinds[0]}.name", param_hint="-o"
            )
        if kind not in kinds:
            raise typer.BadParameter(
                f"{text}: {UnknownNameError('kind of file', kind, kinds)}", param_hint="-o"
            )
        value = value.strip()
        if found[kind].setdefault(key, value) != value:
            raise typer.BadParameter(
                f"{path.strip()} is given as {found[kind][key]} and as {value}; give one", param_hint="-o"
            )
    return found


def read_shape(name: str, overrides: dict[str, str] | None = None) -> Model:
    """Return the model of a name, a file, or Python code (built and traced, which needs torch)."""
    from plansim.errors import MissingExtraError
    from plansim.workload.module import ModuleModel
    from plansim.workload.read import load_model

    model = load_model(name, overrides)
    if isinstance(model, ModuleModel):
        try:
            from plansim.execute.factory import traced_model
        except ImportError:
            raise MissingExtraError("a model given as Python code", "torch", "execute") from None
        return traced_model(name)
    return model


def read_cluster(name: str, changes: dict[str, str], nodes: int | None = None) -> Profile:
    """Return a profile with its changes; another number of nodes also resizes a torus."""
    from plansim.hardware.read import load_cluster

    return load_cluster(name, changes, nodes)


def read_case(
    plan_path: str, given: Iterable[str] | None, *, profile: str | None = None, model: str | None = None
) -> tuple[Plan, Model, Profile]:
    """Return a plan file with the model and the profile it names (or those given instead), checked together.

    Raises
    ------
    InputError
        When a file is wrong, or the plan breaks a rule on this model and profile.
    """
    from dataclasses import replace

    from plansim.costs.compression.rules import COMPRESSION_RULES
    from plansim.plan.read import load_plan
    from plansim.plan.rules import check_plan, require

    changes = split_overrides(given)
    require_agreement(changes, {f"-o job.{key}": (v, f"plan.job.{key}") for key, v in changes["job"].items()})
    in_plan = changes["plan"] | {f"job.{key}": value for key, value in changes["job"].items()}
    plan = load_plan(plan_path, in_plan)
    own = split_overrides((f"{key}={value}" for key, value in plan.overrides), ("profile", "model"))
    for kind, given_name, named in (("profile", profile, plan.profile), ("model", model, plan.model)):
        if given_name not in (None, named):
            own[kind] = {}  # they were made for another file
    plan = replace(plan, model=model or plan.model, profile=profile or plan.profile)
    shape = read_shape(plan.model, own["model"] | changes["model"])
    cluster = read_cluster(plan.profile, own["profile"] | changes["profile"])
    require(check_plan(plan, shape, cluster, COMPRESSION_RULES), source=plan_path)
    return plan, shape, cluster


def misfit_data(over: Rejected | None) -> dict[str, str] | None:
    """Return why a plan does not fit as plain data, or None."""
    return {"rule": over.rule, "detail": over.detail, "remedy": over.remedy} if over else None


def require_room(over: Rejected | None) -> None:
    """End a command that has answered with exit code 4 where its plan does not fit."""
    from plansim.errors import NoRoomError

    if over:
        raise NoRoomError(f"this plan does not fit: {over}")


def warn_without_effect(plan: Plan, model: Model) -> None:
    """Warn of every setting of the plan that changes nothing."""
    import warnings

    from plansim.errors import PlansimWarning
    from plansim.plan.rules import without_effect

    for text in without_effect(plan, model):
        warnings.warn(text, PlansimWarning, stacklevel=2)
