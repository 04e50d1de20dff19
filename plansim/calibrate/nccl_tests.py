"""Runs of nccl-tests, from its table or its JSON file (``-J``), and the links that explain them."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from plansim.calibrate.collectives import relative_line
from plansim.errors import InputError, UnknownNameError
from plansim.files import read_text
from plansim.hardware.profile import Profile

BUSBW_FACTOR: dict[str, Callable[[int], float]] = {
    "all_reduce": lambda n: 2 * (n - 1) / n,
    "all_gather": lambda n: (n - 1) / n,
    "reduce_scatter": lambda n: (n - 1) / n,
    "alltoall": lambda n: (n - 1) / n,
    "sendrecv": lambda _: 1.0,
    "broadcast": lambda _: 1.0,
}
"""Bytes on the busiest link over the bytes of the array, by nccl-tests program."""

REDUCING = ("all_reduce", "reduce_scatter")
"""Programs with a reduction; a table that does not name its program is told by it and its bus bandwidth."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """One run of an nccl-tests program.

    Attributes
    ----------
    points : tuple of (float, float)
        Bytes of the array and seconds, out of place and in place.
    """

    program: str
    ranks: int
    points: tuple[tuple[float, float], ...]

    @property
    def hops(self) -> int:
        """Messages one after the other."""
        return 2 * (self.ranks - 1) if self.program == "all_reduce" else self.ranks - 1

    def of_a_hop(self) -> list[tuple[float, float]]:
        """Return bytes on the busiest link and seconds of every message of a ring."""
        factor = BUSBW_FACTOR[self.program](self.ranks)
        return [(factor * nbytes / self.hops, seconds / self.hops) for nbytes, seconds in self.points]


def read_nccl_tests(path: Path) -> list[Run]:
    """Return the runs in a file: the table that nccl-tests prints, several one after the other, or its JSON.

    Raises
    ------
    InputError
        When the file holds no result, or does not say what was run.
    """
    text = read_text(path)
    if text.lstrip().startswith("{"):
        return [_from_json(path, text)]
    head, runs = "", list[Run]()
    for part in re.split(r"^(?=# nThread )", text, flags=re.M):
        wide = "i_min" in part
        lines = [(line, _row(line, wide=wide)) for line in part.splitlines()]
        last = max((i + 1 for i, (_, row) in enumerate(lines) if row), default=0)
        if last:
            table = "\n".join(line for line, _ in lines[:last])
            runs.append(_from_table(path, head, table, [row for _, row in lines if row]))
            head = ""
        head += "\n".join(line for line, _ in lines[last:] if "concluded" not in line) + "\n"
    if not runs:
        raise InputError(
            f"{path}: no result row of nccl-tests found (size, count, type, redop, root, time …); give what "
            "it prints, or the file that it writes with -J"
        )
    return runs


Row = tuple[float, str, list[tuple[float, float, float]]]
"""Bytes, reduction, and (seconds, algorithm and bus bandwidth) out of place and in place."""


def _row(line: str, *, wide: bool) -> Row | None:
    """Return one line of results, None for any other; `wide` tables hold four more figures of each kind."""
    found = re.match(r"\s*(\d+)\s+\d+\s+\w+\s+(\w+)\s+-?\d+\s+(\S.*)", line)
    if not found:
        return None
    cells, times = found[3].split(), []
    for at in (0, 8 if wide else 4):
        try:
            us, algbw, busbw = (float(cell) for cell in cells[at : at + 3])
        except ValueError:
            continue
        times.append((us * 1e-6, algbw, busbw))
    return (float(found[1]), found[2], times) if times else None


def _from_table(path: Path, head: str, table: str, rows: Sequence[Row]) -> Run:
    """Return the run of a table; what stands between the last one and it may name its program."""
    ranks = len(re.findall(r"^#\s+Rank\s+\d+", table, flags=re.M))
    if ranks < 2:
        raise InputError(f"{path}: found {ranks} ranks ('#  Rank  0 …' lines), expected at least 2")
    named = re.findall(r"(\w+)_perf\b", table) or re.findall(r"(\w+)_perf\b", head)
    points = [(nbytes, seconds) for nbytes, _, times in rows for seconds, _, _ in times]
    return _run(path, named[-1] if named else _told_by(path, rows, ranks), ranks, points)


def _told_by(path: Path, rows: Sequence[Row], ranks: int) -> str:
    """Return the program whose bus bandwidth goes with the one of the largest array."""
    _, redop, times = max(rows, key=lambda row: row[0])
    _, algbw, busbw = times[0]
    for name in ("all_reduce", "reduce_scatter", "all_gather", "broadcast"):
        alike = abs(busbw - BUSBW_FACTOR[name](ranks) * algbw) <= 0.02 * busbw
        if alike and (name in REDUCING) == (redop != "none"):
            return name
    raise InputError(
        f"{path}: does not say which program of nccl-tests ran; write its name above the table, such as "
        "'# all_reduce_perf'"
    )


def _from_json(path: Path, text: str) -> Run:
    """Return the run of a file that ``-J`` wrote (versions 1 and 2)."""
    try:
        data = json.loads(text)
        program = Path(str(data["args"][0])).name.removesuffix("_perf")
        config, results = data["config"], data["results"]
        processes = len({(d["hostname"], d["pid"]) for d in config["devices"]})
        ranks = processes * int(config["nthreads"]) * int(config["ngpus"])
        points = [(float(row["size"]), seconds) for row in results for seconds in _seconds(row)]
    except json.JSONDecodeError as error:
        raise InputError(f"{path}:{error.lineno}:{error.colno}: not valid JSON: {error.msg}") from None
    except (KeyError, IndexError, TypeError, ValueError) as error:
        missing = f": {error} is missing" if isinstance(error, KeyError) else ""
        raise InputError(
            f"{path}: not the JSON of nccl-tests -J (args, config.devices, results with size, out_of_place "
            f"and in_place){missing}"
        ) from None
    if ranks < 2:
        raise InputError(f"{path}: ran on {ranks} rank, expected at least 2")
    return _run(path, program, ranks, points)


def _seconds(row: dict[str, Any]) -> list[float]:
    """Return the times of one size, out of place and in place; `-C` reports the CPU's and not these."""
    both = (row.get(name) for name in ("out_of_place", "in_place"))
    return [float(each["time"]) * 1e-6 for each in both if each and "time" in each]


def _run(path: Path, program: str, ranks: int, points: Sequence[tuple[float, float]]) -> Run:
    """Return a run, checked."""
    program = program.removesuffix("_perf")
    if program not in BUSBW_FACTOR:
        raise InputError(f"{path}: {UnknownNameError('program of nccl-tests', program, BUSBW_FACTOR)}")
    kept = tuple((nbytes, seconds) for nbytes, seconds in points if nbytes > 0 and seconds > 0)
    if not kept:
        raise InputError(f"{path}: {program} has no time above 0")
    return Run(program=program, ranks=ranks, points=kept)


def with_nccl_tests(profile: Profile, paths: Sequence[Path]) -> Profile:
    """Return the profile with its innermost level's bandwidth and latency fitted to runs of nccl-tests.

    All messages of all runs lie on one line: latency, and the bytes on the busiest link over bandwidth.
    """
    runs = [run for path in paths for run in read_nccl_tests(path)]
    (base, slope), spread = relative_line([point for run in runs for point in run.of_a_hop()])
    level = replace(
        profile.fabric[0], bandwidth_bytes_per_s=1.0 / max(slope, 1e-15), latency_s=max(base, 1e-7)
    )
    files = ", ".join(path.name for path in paths)
    notes: dict[str, Any] = {
        "program": ", ".join(dict.fromkeys(run.program for run in runs)),
        "ranks": max(run.ranks for run in runs),
        "file": files,
        "spread": float(f"{spread:.3g}"),
    }
    return replace(
        profile,
        fabric=(level, *profile.fabric[1:]),
        calibration={**profile.calibration, "nccl_tests": notes},
        sources={**profile.sources, f"fabric.{level.name}": f"measured: nccl-tests, {files}"},
    )
