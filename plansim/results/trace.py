"""Chrome-trace JSON from spans: what Perfetto (ui.perfetto.dev) and chrome://tracing open.

Ranks are processes, streams are threads, messages are flow arrows, memory and link use are counters.

References
----------
Google, "Trace Event Format" (complete events ``X``, metadata ``M``, counters ``C``, flows ``s`` and ``f``).
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from plansim.files import write_atomic
from plansim.results.span import Span

MICROSECONDS = 1e6
"""Trace timestamps are microseconds."""

Samples = Sequence[tuple[float, float | Mapping[str, float]]]
"""(seconds, value or values by part) in order of time."""


def trace_events(
    spans: Iterable[Span],
    *,
    label: str = "",
    first_process: int = 0,
    counters: Mapping[tuple[int, str], Samples] | None = None,
    links: Mapping[str, Samples] | None = None,
) -> list[dict[str, Any]]:
    """Return the trace events of one run.

    Parameters
    ----------
    label : str
        Put before every process name, e.g. ``predicted``.
    first_process : int
        Added to every rank to make the process number, so that two runs can share a file.
    counters : mapping
        (rank, name) to samples; the value holds from its time to the next, and may be parts by name, which
        are drawn on top of each other.
    links : mapping
        Name of a link to the share of its capacity in use; drawn in a process of their own after the ranks.
    """
    ordered = sorted(spans, key=lambda s: (s.rank, s.stream, s.start_s, s.end_s))
    streams: dict[int, dict[str, int]] = {}
    for span in ordered:
        threads = streams.setdefault(span.rank, {})
        threads.setdefault(span.stream, len(threads))
    for rank, _ in counters or {}:
        streams.setdefault(rank, {})
    events: list[dict[str, Any]] = []
    for rank, threads in sorted(streams.items()):
        events += _names(rank, threads, label, first_process)
    events += [_complete(span, first_process, streams[span.rank][span.stream]) for span in ordered]
    events += _flows(ordered, first_process, streams, label)
    for (rank, name), samples in sorted((counters or {}).items()):
        events += [
            {
                "ph": "C",
                "pid": first_process + rank,
                "name": name,
                "ts": t * MICROSECONDS,
                "args": dict(value) if isinstance(value, Mapping) else {name: value},
            }
            for t, value in samples
        ]
    if links:
        process = first_process + max(streams, default=-1) + 1
        name = f"{label} links".strip()
        events.append({"ph": "M", "pid": process, "name": "process_name", "args": {"name": name}})
        events.append(
            {"ph": "M", "pid": process, "name": "process_sort_index", "args": {"sort_index": process}}
        )
        for link, samples in links.items():
            events += [
                {"ph": "C", "pid": process, "name": link, "ts": t * MICROSECONDS, "args": {"in use": value}}
                for t, value in samples
            ]
    return events


def _names(rank: int, threads: Mapping[str, int], label: str, first_process: int) -> list[dict[str, Any]]:
    """Return the metadata that names a rank and its streams."""
    process = first_process + rank
    name = f"{label} rank {rank}".strip()
    events = [
        {"ph": "M", "pid": process, "name": "process_name", "args": {"name": name}},
        {"ph": "M", "pid": process, "name": "process_sort_index", "args": {"sort_index": process}},
    ]
    for stream, thread in threads.items():
        common = {"ph": "M", "pid": process, "tid": thread}
        events.append({**common, "name": "thread_name", "args": {"name": stream}})
        events.append({**common, "name": "thread_sort_index", "args": {"sort_index": thread}})
    return events


def _complete(span: Span, first_process: int, thread: int) -> dict[str, Any]:
    """Return the bar of one span."""
    args = {"microbatch": span.microbatch, "chunk": span.chunk}
    return {
        "ph": "X",
        "pid": first_process + span.rank,
        "tid": thread,
        "name": span.name,
        "cat": span.category,
        "ts": span.start_s * MICROSECONDS,
        "dur": span.duration_s * MICROSECONDS,
        "args": {k: v for k, v in args.items() if v is not None},
    }


def _flows(
    spans: Sequence[Span], first_process: int, streams: Mapping[int, Mapping[str, int]], label: str
) -> list[dict[str, Any]]:
    """Return an arrow for every flow name that a sending and a receiving span share."""
    by_flow: dict[str, list[Span]] = {}
    for span in spans:
        if span.flow is not None:
            by_flow.setdefault(span.flow, []).append(span)
    events: list[dict[str, Any]] = []
    for flow, ends in sorted(by_flow.items()):
        if len(ends) < 2:
            continue
        send, receive = sorted(ends, key=lambda s: ("recv" in s.stream, s.end_s))[:2]
        common = {"name": flow, "cat": "message", "id": f"{label}:{flow}"}
        for phase, span, t in (("s", send, send.start_s), ("f", receive, receive.end_s)):
            place = {"pid": first_process + span.rank, "tid": streams[span.rank][span.stream]}
            events.append({**common, **place, "ph": phase, "ts": t * MICROSECONDS})
            if phase == "f":
                events[-1]["bp"] = "e"
    return events


def merge(predicted: Iterable[Span], measured: Iterable[Span]) -> list[dict[str, Any]]:
    """Return one trace with the predicted and the measured ranks side by side."""
    predicted, measured = list(predicted), list(measured)
    count = max((s.rank for s in predicted), default=-1) + 1
    return trace_events(predicted, label="predicted") + trace_events(
        measured, label="measured", first_process=count
    )


def use_samples(
    spans: Iterable[Span], streams: Sequence[str] = ("pp_send", "dp")
) -> dict[tuple[int, str], Samples]:
    """Return how many transfers run at a time on every rank's communication streams."""
    changes: dict[tuple[int, str], list[tuple[float, float]]] = {}
    for span in spans:
        for stream in streams:
            if span.stream.startswith(stream):
                moves = changes.setdefault((span.rank, f"{stream} in use"), [])
                moves += [(span.start_s, 1.0), (span.end_s, -1.0)]
    return {key: _running(moves) for key, moves in changes.items()}


def _running(changes: Iterable[tuple[float, float]]) -> list[tuple[float, float]]:
    """Return the sum after every time at which it is another than before."""
    total, samples = 0.0, {0.0: 0.0}
    for t, change in sorted(changes):
        total += change
        samples[t] = total
    kept: list[tuple[float, float]] = []
    for t, level in sorted(samples.items()):
        if not kept or level != kept[-1][1]:
            kept.append((t, level))
    return kept


def write_trace(path: str | Path, events: Sequence[Mapping[str, Any]]) -> None:
    """Write trace events as a file that Perfetto opens."""
    data = {"displayTimeUnit": "ms", "traceEvents": list(events)}
    write_atomic(Path(path), json.dumps(data))
