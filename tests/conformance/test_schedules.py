"""Every registered schedule: complete, ordered, finishes, and torch reads the same order."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from plansim.schedules import SCHEDULES, validate_program


def runs_to_the_end(program, rank_of, num_chunks):
    """Execute the actions as messages allow; return whether all ranks finish."""
    done, at = set(), [0] * len(program)
    moved = True
    while moved:
        moved = False
        for rank, actions in enumerate(program):
            while at[rank] < len(actions):
                a = actions[at[rank]]
                if a.kind == "F" and a.chunk > 0 and ("F", a.microbatch, a.chunk - 1) not in done:
                    break
                if (
                    a.kind in "BI"
                    and a.chunk < num_chunks - 1
                    and ("G", a.microbatch, a.chunk + 1) not in done
                ):
                    break
                done.add(("G" if a.kind in "BI" else a.kind, a.microbatch, a.chunk))
                at[rank] += 1
                moved = True
    return all(n == len(actions) for n, actions in zip(at, program, strict=True))


@pytest.mark.parametrize("name", SCHEDULES)
@given(pp=st.integers(1, 8), rounds=st.integers(1, 6), v=st.integers(1, 4), extra=st.integers(0, 7))
def test_every_schedule_is_complete_and_finishes(name, pp, rounds, v, extra):
    schedule = SCHEDULES[name]
    m = pp * rounds + extra
    if schedule.check(pp, m, v):
        return
    program = schedule.actions(pp, m, v)

    validate_program(program, lambda chunk: schedule.rank_of_chunk(chunk, pp, v), pp * v, m)
    assert runs_to_the_end(program, lambda c: schedule.rank_of_chunk(c, pp, v), pp * v)
    assert schedule.splits_backward or all(a.kind in "FB" for actions in program for a in actions)


@pytest.mark.parametrize("name", SCHEDULES)
def test_every_schedule_accepts_some_counts(name):
    """The property above must not pass by skipping everything."""
    accepted = [
        (pp, m, v)
        for pp in range(1, 5)
        for m in range(1, 13)
        for v in (1, 2)
        if not SCHEDULES[name].check(pp, m, v)
    ]
    assert len(accepted) >= 16


@pytest.mark.parametrize(
    ("name", "torch_name", "v"),
    [
        ("interleaved", "ScheduleInterleaved1F1B", 2),
        ("zbv", "ScheduleZBVZeroBubble", 2),
        ("dualpipev", "ScheduleDualPipeV", 2),
    ],
)
def test_torch_has_the_same_order(name, torch_name, v):
    """torch.distributed.pipelining computes the same actions for the same counts."""
    schedules = pytest.importorskip("torch.distributed.pipelining.schedules")
    for pp, m in ((2, 4), (4, 8), (4, 16)):
        ours = SCHEDULES[name].actions(pp, m, v)
        for rank in range(pp):
            assert [str(a) for a in ours[rank]] == torch_order(schedules, torch_name, pp, m, v, rank)


def torch_order(schedules, class_name, pp, m, v, rank):
    """Return one rank's order as torch writes it, without starting processes."""
    cls = getattr(schedules, class_name)
    maker = cls.__new__(cls)
    maker.pp_group_size, maker.n_local_stages, maker._n_microbatches = pp, v, m
    maker._num_stages = maker.num_stages = pp * v
    maker.rank = rank
    maker.number_of_rounds = max(1, m // pp)
    maker.microbatches_per_round = m // maker.number_of_rounds
    flat = []
    for action in maker._calculate_single_rank_operations(rank):
        if action is not None:
            flat += list(action.sub_actions) if action.sub_actions else [action]
    letters = {"FORWARD": "F", "FULL_BACKWARD": "B", "BACKWARD_INPUT": "I", "BACKWARD_WEIGHT": "W"}
    return [f"{a.stage_index}{letters[a.computation_type.name]}{a.microbatch_index}" for a in flat]
