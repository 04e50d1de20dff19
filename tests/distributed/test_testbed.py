"""Testbeds for real: links as fast as asked, ranks on their hosts, nothing left behind (root, iproute2)."""

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from plansim.errors import ExecutionError, InputError
from plansim.execute import RunOptions, run_plan
from plansim.execute.cpu_share import cpu_root
from plansim.execute.launch import launch
from plansim.execute.netns import (
    CONGESTION,
    enter_namespace,
    inside_namespace,
    namespaces,
    require_namespaces,
)
from plansim.execute.testbed import TestbedSpec, bring_up, find, standing, sweep, take_down, temporary_testbed
from plansim.plan.model import Job, Parallel, Plan
from plansim.workload.read import load_model

pytestmark = pytest.mark.distributed


def reason_against():
    try:
        require_namespaces()
        probe = f"plansim-t{os.getpid()}-0.probe"
        subprocess.run(["ip", "netns", "add", probe], check=True, capture_output=True)
        subprocess.run(["ip", "netns", "del", probe], check=True, capture_output=True)
    except (ExecutionError, OSError, subprocess.CalledProcessError) as error:
        return str(error)
    return ""


REASON = reason_against()
pytestmark = [pytestmark, pytest.mark.skipif(bool(REASON), reason=REASON or "namespaces can be made")]


def ours(pid=None):
    return [n for n in namespaces() if n.startswith(f"plansim-t{pid or os.getpid()}-")]


def transfer_s(bed, nbytes):
    """Return the seconds from the first to the last byte of one TCP transfer from host 0 to host 1."""
    with bed.listen(1) as listener:
        port = listener.getsockname()[1]
        sender = inside_namespace(bed.namespace(0), lambda: socket.create_connection((bed.address(1), port)))
        receiver, _ = listener.accept()
    with sender, receiver:
        child = os.fork()
        if child == 0:
            sender.sendall(bytes(nbytes))
            os._exit(0)
        got = len(receiver.recv(1))
        start = time.perf_counter()
        while got < nbytes:
            got += len(receiver.recv(1 << 20))
        elapsed = time.perf_counter() - start
        os.waitpid(child, 0)
    return elapsed


@pytest.mark.parametrize("rate", [12.5e6, 62.5e6])
def test_a_link_is_as_fast_as_asked(rate):
    """Not faster than the wire, headers included, but for the first bucket; nor much slower."""
    nbytes = int(rate * 0.4)
    with temporary_testbed(TestbedSpec.even(2, rate)) as bed:
        elapsed = transfer_s(bed, nbytes)

    wire = nbytes * 1514 / 1448 / rate
    assert elapsed > 0.85 * wire
    assert elapsed < 2.0 * wire


def test_connections_between_hosts_use_reno_whatever_the_machine_prefers():
    mine = CONGESTION.read_text()
    with temporary_testbed(TestbedSpec.even(2)) as bed:
        assert [inside_namespace(bed.namespace(h), CONGESTION.read_text) for h in (0, 1)] == ["reno\n"] * 2
    assert CONGESTION.read_text() == mine


def test_ranks_run_on_their_hosts():
    def who(meet):
        interfaces = {name for _, name in socket.if_nameindex()}
        return (
            meet.rank,
            os.environ["GLOO_SOCKET_IFNAME"],
            "e0" in interfaces,
            str(Path("/proc/self/ns/net").readlink()),
        )

    with temporary_testbed(TestbedSpec.even(2, ranks_per_host=2)) as bed:
        found = launch(who, 4, timeout_s=60, place=bed)

    networks = [network for *_, network in found]
    assert [row[:3] for row in found] == [(rank, "e0", True) for rank in range(4)]
    assert networks[0] == networks[1] != networks[2] == networks[3]
    assert str(Path("/proc/self/ns/net").readlink()) not in networks


@pytest.mark.slow
def test_a_plan_runs_over_slow_links_and_pays_for_them():
    model = load_model("gpt-tiny")
    job = Job(global_batch=8, seq_len=64, dtype="fp32")
    plan = Plan(model="gpt-tiny", profile="local-cpu", job=job, parallel=Parallel(dp=2))
    options = RunOptions(trace=False)
    measured = {}
    for rate in (None, 5e6):
        with temporary_testbed(TestbedSpec.even(2, rate)) as bed:
            measured[rate] = run_plan(plan, model, steps=4, warmup=1, options=options, place=bed)
            sent = bed.sent_bytes(0)

    from plansim.workload.totals import parameter_count

    gradient = 4 * parameter_count(model)
    assert (
        sent > 5 * gradient
    )  # checked, warm-up and timed steps each send one gradient (2 ranks: 2 (n-1)/n = 1)
    assert measured[5e6].step_time_s > 0.8 * gradient / 5e6
    assert measured[5e6].step_time_s > 2 * min(measured[None].step_times_s)  # the least disturbed one
    assert measured[5e6].ranks[0].losses == measured[None].ranks[0].losses


def test_a_cpu_share_is_a_ceiling():
    try:
        cpu_root()
    except ExecutionError as error:
        pytest.skip(str(error))

    def burn(_meet):
        start, used = time.perf_counter(), time.process_time()
        while time.perf_counter() - start < 0.6:
            pass
        return (time.process_time() - used) / (time.perf_counter() - start)

    with temporary_testbed(TestbedSpec.even(1, cores=0.25)) as bed:
        (share,) = launch(burn, 1, timeout_s=60, place=bed)

    assert share < 0.32


def fail_inside_a_testbed():
    with temporary_testbed(TestbedSpec.even(2)):
        assert len(ours()) == 3
        raise RuntimeError("on purpose")


def test_an_error_leaves_nothing():
    with pytest.raises(RuntimeError, match="on purpose"):
        fail_inside_a_testbed()

    assert ours() == []


def test_a_dead_rank_ends_the_run_and_the_testbed():
    def die(meet):
        if meet.rank == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(60)

    start = time.monotonic()
    with (
        temporary_testbed(TestbedSpec.even(2)) as bed,
        pytest.raises(ExecutionError, match="SIGKILL") as failure,
    ):
        launch(die, 2, timeout_s=60, place=bed)

    assert failure.value.rank == 1
    assert time.monotonic() - start < 20
    assert ours() == []


CHILD = """
import sys, time
from plansim.execute.testbed import TestbedSpec, temporary_testbed
with temporary_testbed(TestbedSpec.even(2)):
    print("up", flush=True)
    time.sleep(60)
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_a_killed_process_leaves_nothing_for_long(number):
    """SIGTERM and Ctrl-C clean up themselves; after SIGKILL the next testbed does."""
    child = subprocess.Popen([sys.executable, "-c", CHILD], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    try:
        assert child.stdout.readline() == b"up\n"
        assert len(ours(child.pid)) == 3
        child.send_signal(number)
        child.wait(20)
    finally:
        child.kill()
        child.wait()
        child.stdout.close()

    if number == signal.SIGKILL:
        assert len(ours(child.pid)) == 3
        with temporary_testbed(TestbedSpec.even(1)):
            pass
    assert ours(child.pid) == []


def test_a_testbed_that_stays_up_is_found_and_taken_down():
    name = f"test-{os.getpid()}"
    bed = bring_up(name, TestbedSpec.even(2, 25e6))
    try:
        assert name in standing()
        assert find(name) == bed
        assert sweep() == []
        with pytest.raises(InputError, match="up already"):
            bring_up(name, TestbedSpec.even(1))
        assert bed.namespace(1) in namespaces()
    finally:
        take_down(name)

    assert name not in standing()
    assert bed.namespace(1) not in namespaces()
    with pytest.raises(ExecutionError, match="taken down"):
        enter_namespace(bed.namespace(1))
