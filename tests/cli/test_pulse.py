"""What a command is at, told while it takes long."""

import time

import pytest

from plansim.cli import pulse
from plansim.cli.pulse import Pulse


@pytest.fixture
def quick(monkeypatch):
    for name in ("FIRST_S", "RENEWED_S", "PIPED_S"):
        monkeypatch.setattr(pulse, name, 0.01)


def wait_for(condition):
    until = time.monotonic() + 10
    while not condition() and time.monotonic() < until:
        time.sleep(0.005)
    assert condition()


def test_work_that_says_nothing_is_told_all_the_same(quick, capsys):
    said = []
    with Pulse("searching") as beat:
        wait_for(lambda: said.append(capsys.readouterr().err) or "searching (0 s)\n" in "".join(said))
        beat.text = "searching: 1 plan simulated"
        wait_for(lambda: said.append(capsys.readouterr().err) or "1 plan simulated (0 s)\n" in "".join(said))
    capsys.readouterr()
    time.sleep(0.05)

    assert capsys.readouterr().err == ""


def test_a_terminal_has_one_line_that_is_cleared_in_the_end(quick, capsys, monkeypatch):
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    said = []
    with Pulse("at work"):
        wait_for(lambda: said.append(capsys.readouterr().err) or "".join(said).count("\rat work") > 1)
    text = "".join(said) + capsys.readouterr().err

    assert "\n" not in text
    assert text.endswith(f"\r{'':<{len('at work (0 s)')}}\r")


def test_what_is_over_soon_says_nothing(capsys):
    with Pulse("searching"):
        pass

    assert capsys.readouterr().err == ""
