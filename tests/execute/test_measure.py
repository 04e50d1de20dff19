"""The allocator's peak from its events, also those that were not seen."""

from hypothesis import given
from hypothesis import strategies as st

from plansim.execute.memory import Heap, steady_peak_bytes


def peak_bytes(changes):
    return steady_peak_bytes([(i, *change) for i, change in enumerate(changes)])


@given(st.lists(st.integers(1, 1000), min_size=1, max_size=30), st.randoms(use_true_random=False))
def test_what_is_seen_whole_is_a_running_sum(sizes, random):
    """Blocks that do not overlap, allocated and freed in any order."""
    starts = [sum(sizes[:i]) for i in range(len(sizes))]
    changes, level, peak, live = [], 0, 0, []
    for i in random.sample(range(len(sizes)), len(sizes)):
        changes.append((starts[i], sizes[i]))
        live.append(i)
        level += sizes[i]
        peak = max(peak, level)
        if random.random() < 0.5:
            gone = live.pop(random.randrange(len(live)))
            changes.append((starts[gone], -sizes[gone]))
            level -= sizes[gone]

    assert peak_bytes(changes) == peak


def test_a_block_freed_unseen_is_gone_when_its_place_is_given_out_again():
    assert peak_bytes([(0, 100), (0, 100), (0, 100)]) == 100
    assert peak_bytes([(0, 60), (60, 60), (30, 60)]) == 120
    assert peak_bytes([(0, 100), (10, 20), (40, 20), (60, 40)]) == 100


def test_what_was_there_before_is_not_counted():
    assert peak_bytes([(5, -100), (0, 10), (5, -3)]) == 10


def test_a_block_freed_unseen_is_not_in_the_peak_of_all_steps():
    """100 to stay, 50 in each step for a while; those of the first step are never seen to go."""
    changes = [(0, 0, 100), (11, 200, 50), (21, 300, 50), (22, 300, -50), (31, 200, 50), (32, 200, -50)]
    steps = [(moment, [(0, 100)]) for moment in (10, 20, 30)]

    assert steady_peak_bytes(changes, steps, 0) == 150
    assert steady_peak_bytes(changes, steps) == 200


def test_what_another_thread_allocated_is_there_when_a_tensor_has_it():
    changes = [(0, 0, 100), (11, 200, 10), (12, 200, -10), (21, 200, 10), (22, 200, -10)]
    steps = [(10, [(0, 100)]), (20, [(0, 100), (500, 70)])]

    assert steady_peak_bytes(changes, steps, 1) == 180
    assert steady_peak_bytes(changes, steps) == 110


def test_what_was_there_before_the_steady_steps_needs_no_tensor():
    """A bucket of DDP is no tensor of Python's."""
    heap = Heap()
    heap.change(0, 100, step=0)
    heap.change(200, 50, step=2)
    heap.reconcile([(400, 5)], since=1)

    assert heap.level == 105


def test_the_peak_before_the_steady_steps_counts():
    changes = [(0, 0, 500), (1, 0, -500), (11, 0, 100), (12, 0, -100), (21, 0, 100)]

    assert steady_peak_bytes(changes, [(10, []), (20, [])], 0) == 500
