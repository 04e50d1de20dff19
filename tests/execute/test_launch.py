"""Ranks are started, and ended: by a failure, a signal, the clock or Ctrl-C; nothing is left running."""

import os
import signal
import socket
import subprocess
import sys
import time

import pytest

from plansim.errors import ExecutionError, PlanError
from plansim.execute.launch import Rendezvous, launch

pytestmark = pytest.mark.distributed


def square(meet: Rendezvous):
    return meet.rank**2


def fail_on_one(meet: Rendezvous):
    if meet.rank == 1:
        print("about to fail")
        raise ValueError("no such luck")
    time.sleep(60)


def refuse(meet: Rendezvous):
    raise PlanError("this plan cannot be run")


def die_on_two(meet: Rendezvous):
    if meet.rank == 2:
        os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(60)


def sleep(meet: Rendezvous):
    time.sleep(60)


def warn(meet: Rendezvous):
    import warnings

    warnings.warn("only logged", UserWarning, stacklevel=1)
    return "survived"


def test_results_come_in_the_order_of_ranks():
    assert launch(square, 4, timeout_s=20) == [0, 1, 4, 9]


def test_first_failure_ends_the_job_with_its_rank_and_log():
    start = time.monotonic()
    with pytest.raises(ExecutionError, match="rank 1 of 3 failed: ValueError: no such luck") as caught:
        launch(fail_on_one, 3, timeout_s=60)

    assert time.monotonic() - start < 10
    assert caught.value.rank == 1
    assert "about to fail" in caught.value.log_tail


def test_own_errors_come_through_as_they_are():
    with pytest.raises(PlanError, match="this plan cannot be run"):
        launch(refuse, 2, timeout_s=20)


def test_a_killed_rank_is_named_within_seconds():
    start = time.monotonic()
    with pytest.raises(ExecutionError, match="rank 2 of 3 failed: the process was killed by SIGKILL"):
        launch(die_on_two, 3, timeout_s=60)

    assert time.monotonic() - start < 10


def test_silence_ends_at_the_timeout():
    with pytest.raises(ExecutionError, match="no result from rank 0, 1 within 1 s"):
        launch(sleep, 2, timeout_s=1)


def test_a_port_in_use_is_said():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen(1)
        port = taken.getsockname()[1]
        with pytest.raises(ExecutionError, match=f"port {port} cannot be used"):
            launch(square, 2, timeout_s=20, port=port)


def test_warnings_of_ranks_are_not_errors():
    assert launch(warn, 1, timeout_s=20) == ["survived"]


def test_ctrl_c_leaves_nothing_running(tmp_path):
    script = tmp_path / "job.py"
    script.write_text(
        "import os, time\n"
        "from plansim.execute.launch import launch\n"
        "def work(meet):\n"
        f"    open(r'{tmp_path}/' + str(meet.rank), 'w').write(str(os.getpid()))\n"
        "    time.sleep(60)\n"
        "if __name__ == '__main__':\n"
        "    launch(work, 2, timeout_s=60)\n"
    )
    process = subprocess.Popen([sys.executable, str(script)], stderr=subprocess.DEVNULL)
    files = [tmp_path / str(rank) for rank in range(2)]
    deadline = time.monotonic() + 60
    while not all(f.exists() and f.read_text() for f in files) and time.monotonic() < deadline:
        time.sleep(0.05)

    process.send_signal(signal.SIGINT)

    assert process.wait(20) != 0
    for f in files:
        assert not _alive(int(f.read_text()))


def _alive(pid):
    for _ in range(100):
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return False
        time.sleep(0.05)
    return True


def crash(meet: Rendezvous):
    import ctypes

    ctypes.string_at(0)


def test_a_crash_outside_python_leaves_its_line_in_the_log():
    with pytest.raises(ExecutionError, match="killed by SIGSEGV") as caught:
        launch(crash, 1, timeout_s=20)

    assert "in crash" in caught.value.log_tail
