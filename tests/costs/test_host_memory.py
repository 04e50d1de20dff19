"""Memory of a CPU rank as a walk over its passes: what each pass adds and gives back."""

from plansim.costs.hostmemory import _walk

ROW = {"forward_peak_bytes": 30.0, "backward_peak_bytes": 20.0, "kept_bytes": 10.0, "parameters": 1}


def of_gradients(row):
    return 4.0 * row["parameters"]


def peak(*passes):
    return _walk([(kind, 0) for kind in passes], {0: [ROW]}, {}, gradient_bytes=of_gradients)


def test_a_forward_keeps_until_its_backward():
    assert peak("F", "B", "F", "B") == (34.0, 4.0)  # the second forward stands on the gradients of the first
    assert peak("F", "F", "B", "B") == (40.0, 4.0)  # and here on what the first one keeps


def test_a_split_backward_gives_back_with_its_second_half():
    """Between its halves a microbatch keeps what the weight gradients need: the next forward stands on it."""
    assert peak("F", "I", "W", "F", "I", "W") == peak("F", "B", "F", "B")
    assert peak("F", "I", "F", "W", "I", "W") == (40.0, 4.0)


def test_a_split_backward_owes_gradients_until_its_second_half():
    """Gradients of what every product puts out wait for the weight pass, beside the kept activations."""
    row = {**ROW, "owed_bytes": 7.0, "weight_peak_bytes": 5.0}

    def highest(*passes):
        return _walk([(kind, 0) for kind in passes], {0: [row]}, {}, gradient_bytes=of_gradients)

    assert highest("F", "I", "F", "W", "I", "W") == (47.0, 4.0)  # the second forward stands on 10 + 7
    assert highest("F", "I", "W", "F", "I", "W") == peak("F", "B", "F", "B")
