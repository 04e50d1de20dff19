"""What stands in for blocks nobody timed is measured: DTensor, `fully_shard`, pooling."""

import pytest

from plansim.calibrate.untimed import measure_untimed


@pytest.mark.distributed
def test_overheads_of_blocks_are_those_of_an_eager_framework():
    found = measure_untimed()

    assert 1e-6 < found["dtensor_forward_s"] < 1e-2
    assert 1e-6 < found["dtensor_backward_s"] < 1e-2
    assert 1e-5 < found["sharded_forward_s"] < 1e-1
    assert 1e-5 < found["sharded_backward_s"] < 1e-1
    assert 0 <= found["sharded_backward_s_per_byte"] < 1e-7
    assert 0 < found["max_pool_s_per_byte"] < 1e-7
