"""Every error plansim raises on purpose, with the exit code its command ends with."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class PlansimWarning(UserWarning):
    """Something given has no effect, or is only approximated; commands print it on stderr."""


class PlansimError(Exception):
    """Base of every error that plansim raises on purpose.

    Attributes
    ----------
    exit_code : int
        What the command ends with.
    remedy : str
        A thing to do, where it stands apart from the message; empty otherwise.
    answered : bool
        Whether the command has printed its answer all the same.
    """

    exit_code = 1
    remedy = ""
    answered = False


class InputError(PlansimError, ValueError):
    """Something the user gave is wrong: says what was given, what was expected, and where."""

    exit_code = 3


class UnitError(InputError):
    """A quantity has a missing, unknown or wrong unit."""


class ProfileError(InputError):
    """A hardware profile cannot be read or makes no sense."""


class PlanError(InputError):
    """A plan breaks a rule: degrees that do not divide, an unknown schedule, a batch that does not split."""


class UnknownNameError(InputError):
    """A name is not in its table; the message offers the nearest known one.

    Examples
    --------
    >>> print(UnknownNameError("schedule", "1fb1", ["1f1b", "gpipe"]))
    unknown schedule '1fb1' (did you mean '1f1b'? known: 1f1b, gpipe)
    """

    def __init__(self, kind: str, given: object, known: Iterable[str]) -> None:
        names = sorted(known)
        near = nearest(str(given), names)
        hint = f"did you mean '{near}'? " if near else ""
        super().__init__(f"unknown {kind} '{given}' ({hint}known: {', '.join(names)})")
        self.kind, self.given, self.known = kind, given, names
        self.remedy = f"use '{near}'" if near else ""


class InfeasibleError(PlansimError):
    """No candidate plan fits; carries the rejections counted by rule."""

    exit_code = 4

    def __init__(self, message: str, rejected_by_rule: dict[str, int] | None = None) -> None:
        super().__init__(message)
        self.rejected_by_rule = dict(rejected_by_rule or {})


class NoRoomError(InfeasibleError):
    """A given plan was predicted, and does not fit: the message says by how much, and what would."""

    answered = True


class SimulationError(PlansimError):
    """The simulated step cannot finish; says when, and who waits for whom."""


class ExecutionError(PlansimError):
    """A real run failed; carries the rank that failed first and the end of its log."""

    exit_code = 5

    def __init__(self, message: str, *, rank: int | None = None, log_tail: str = "") -> None:
        super().__init__(message)
        self.rank, self.log_tail = rank, log_tail


class MissingExtraError(PlansimError):
    """An optional dependency is not installed; the message holds the install line.

    Examples
    --------
    >>> print(MissingExtraError("running a plan", "torch", "execute"))
    running a plan needs torch, which is not installed: pip install 'plansim[execute]'
    """

    exit_code = 2

    def __init__(self, what: str, package: str, extra: str) -> None:
        self.remedy = f"pip install 'plansim[{extra}]'"
        super().__init__(f"{what} needs {package}, which is not installed: {self.remedy}")


class AccuracyError(PlansimError):
    """Predictions are further from the measurements than the gate that was asked for."""

    exit_code = 6
    answered = True


def nearest(given: str, known: Iterable[str]) -> str | None:
    """Return the known name closest to `given`, or None when nothing is close."""
    names = list(known)
    folded = {name.lower(): name for name in names}
    close = difflib.get_close_matches(given.lower(), folded, n=1, cutoff=0.6)
    return folded[close[0]] if close else None
