"""Collectives by the computing before them, measured by two real ranks."""

import pytest

from plansim.calibrate import meeting


@pytest.mark.distributed
def test_two_ranks_measure_a_collective_at_every_distance(monkeypatch):
    monkeypatch.setattr(meeting, "ROUNDS", 1)

    points = meeting.measure_meeting(2)
    found = meeting.shares(points, 0.004)

    apart = [a for a, _ in points]
    assert len(points) == 2 + len(meeting.PASSES)
    assert apart == sorted(apart)
    assert apart[-1] == pytest.approx(meeting.PASSES[-1])
    assert [share for _, share in found] == sorted(share for _, share in found)
    assert found[-1][1] in (0.0, 1.0)
    assert [a for a, _ in found] == pytest.approx([0.004 * a for a in apart], rel=1e-3)


def test_costs_below_none_are_noise():
    assert meeting.shares([(0.0, -0.1), (1.0, 0.3), (4.0, 0.6)], 1.0) == [[0.0, 0.0], [1.0, 0.5], [4.0, 1.0]]
