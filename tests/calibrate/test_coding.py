"""Coding rates measured here: of the right size, and good for a codec they were not taken from."""

from __future__ import annotations

import pytest
import torch

from plansim.calibrate.coding import measure_coding
from plansim.calibrate.timing import median_s
from plansim.costs.compression import COMPRESSION_METHODS, coding_s, rates_of
from plansim.execute.codecs import BlockIntegers
from plansim.hardware.catalog import find_device


@pytest.fixture(scope="module")
def rates():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield rates_of(find_device("cpu-core"), {"coding": measure_coding(torch.device("cpu"))})
    torch.set_num_threads(threads)


def test_rates_are_those_of_a_processor(rates):
    assert all(1e-12 < seconds < 1e-9 for _, seconds in rates.stream)
    assert 1e-13 < rates.operation_s < 1e-9
    assert rates.launch_s < 1e-4
    assert rates.fault_s_per_byte < 1e-8
    assert 1e9 < rates.flop_per_s < 1e13


def test_they_predict_the_time_of_another_codec(rates):
    """int4, from rates that int8 gave; loose, because other work shares the machine."""
    codec, num_elements = BlockIntegers(levels=7, width=4), 2**20
    rows = torch.randn(1, num_elements)
    measured = median_s(lambda _: codec.encode(rows), torch.device("cpu"))
    predicted = coding_s(COMPRESSION_METHODS["int4"].encode_once({}), num_elements, rates)

    assert 0.4 < predicted / measured < 2.5
