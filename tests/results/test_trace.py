"""Chrome traces: names, bars, arrows and counters as the format wants them."""

import json

from plansim.results import Span
from plansim.results.trace import merge, trace_events, use_samples, write_trace


def bar(rank, stream, name, start_s, end_s, **more):
    return Span(rank=rank, stream=stream, name=name, category="compute", start_s=start_s, end_s=end_s, **more)


SPANS = [
    bar(0, "compute", "F0", 0.0, 1.0, microbatch=0, chunk=0),
    bar(0, "pp_send_forward", "to 1", 1.0, 1.5, flow="activation 0"),
    bar(1, "pp_recv_forward", "from 0", 1.0, 1.5, flow="activation 0"),
    bar(1, "compute", "F0", 1.5, 2.5, microbatch=0, chunk=1),
    bar(1, "compute", "B0", 2.5, 4.5, microbatch=0, chunk=1),
]


def test_every_span_is_a_bar_in_microseconds():
    bars = [e for e in trace_events(SPANS) if e["ph"] == "X"]
    assert len(bars) == len(SPANS)
    first = bars[0]
    assert (first["pid"], first["name"], first["ts"], first["dur"]) == (0, "F0", 0.0, 1e6)
    assert first["args"] == {"microbatch": 0, "chunk": 0}


def test_ranks_and_streams_have_names():
    named = {
        (e["pid"], e.get("tid")): e["args"]["name"]
        for e in trace_events(SPANS)
        if e["name"].endswith("_name")
    }
    assert named[0, None] == "rank 0"
    assert {named[1, 0], named[1, 1]} == {"compute", "pp_recv_forward"}


def test_a_message_is_an_arrow_from_sender_to_receiver():
    start, end = (e for e in trace_events(SPANS) if e["ph"] in "sf")
    assert (start["ph"], start["pid"], end["ph"], end["pid"]) == ("s", 0, "f", 1)
    assert start["id"] == end["id"]
    assert start["ts"] <= end["ts"]


def test_predicted_and_measured_share_a_file_without_sharing_processes(tmp_path):
    events = merge(SPANS, SPANS)
    names = [e["args"]["name"] for e in events if e["name"] == "process_name"]
    assert names == ["predicted rank 0", "predicted rank 1", "measured rank 0", "measured rank 1"]
    assert len({e["id"] for e in events if e["ph"] == "s"}) == 2
    write_trace(tmp_path / "t.json", events)
    assert len(json.loads((tmp_path / "t.json").read_text())["traceEvents"]) == len(events)


def test_counters_follow_what_is_held_and_what_is_in_use():
    use = use_samples(SPANS)
    assert use[0, "pp_send in use"] == [(0.0, 0.0), (1.0, 1.0), (1.5, 0.0)]
    memory = {(1, "memory"): [(0.0, {"weights": 3.0}), (1.5, {"weights": 3.0, "activations": 7.0})]}
    counters = [e for e in trace_events(SPANS, counters=use | memory) if e["ph"] == "C"]
    assert {"pid": 0, "ts": 1e6, "args": {"pp_send in use": 1.0}}.items() <= counters[1].items()
    assert {"pid": 1, "ts": 1.5e6, "args": {"weights": 3.0, "activations": 7.0}}.items() <= counters[
        -1
    ].items()


def test_links_have_a_process_of_their_own_after_the_ranks():
    events = trace_events(SPANS, label="predicted", links={"ib out of node 0": [(0.0, 0.0), (1.0, 0.9)]})
    process = next(e for e in events if e.get("args", {}).get("name") == "predicted links")["pid"]
    assert process == 2
    used = [e for e in events if e["ph"] == "C" and e["pid"] == process]
    assert [(e["name"], e["ts"], e["args"]) for e in used][-1] == ("ib out of node 0", 1e6, {"in use": 0.9})
