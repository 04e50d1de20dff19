"""Quantities: what they mean, what they refuse, and that formatting is readable."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from plansim.errors import UnitError
from plansim.units import (
    UNITS,
    format_bytes,
    format_count,
    format_flop_per_s,
    format_rate,
    format_seconds,
    parse,
)


@pytest.mark.parametrize(
    ("text", "dimension", "si"),
    [
        ("400 Gbit/s", "bytes/s", 50e9),
        ("400Gbps", "bytes/s", 50e9),
        ("300 GB/s", "bytes/s", 300e9),
        ("80 GiB", "bytes", 80 * 2**30),
        ("80 GB", "bytes", 80e9),
        ("1 kB", "bytes", 1000),
        ("8 bit", "bytes", 1),
        ("3 us", "seconds", 3e-6),
        ("3 µs", "seconds", 3e-6),
        ("1.5 h", "seconds", 5400),
        ("312 TFLOP/s", "flop/s", 312e12),
        ("130 TOP/s", "flop/s", 130e12),
        ("15 Ttokens", "tokens", 15e12),
        ("15T", "tokens", 15e12),
        ("1.2 kW", "watts", 1200),
        ("-3 us", "seconds", -3e-6),
        ("1_000", "bytes", 1000),
        ("1e9", "bytes", 1e9),
        (7, "bytes", 7),
        (2.5, "seconds", 2.5),
    ],
)
def test_values_in_si(text, dimension, si):
    assert parse(text, dimension) == pytest.approx(si, rel=1e-12)


@pytest.mark.parametrize(
    ("value", "dimension", "message"),
    [
        ("1555 GB", "bytes/s", "'1555 GB' is in bytes, expected bytes/s"),
        ("400 Gbit/s", "bytes", "is in bytes/s, expected bytes"),
        ("3 furlongs", "seconds", "unknown unit 'furlongs', expected seconds"),
        ("80 Gb", "bytes", "unknown unit 'Gb'"),
        ("fast", "bytes/s", "'fast' is not a quantity"),
        ("", "bytes", "is not a quantity"),
        ("1 2", "bytes", "is not a quantity"),
        (True, "bytes", "True is not a quantity"),
        (None, "bytes", "None is not a quantity"),
        ([1], "bytes", "is not a quantity"),
        (math.inf, "bytes", "is not finite"),
        (math.nan, "bytes", "is not finite"),
        ("1e999", "bytes", "is not finite"),
    ],
)
def test_what_is_no_quantity(value, dimension, message):
    with pytest.raises(UnitError, match=message):
        parse(value, dimension)


@pytest.mark.parametrize(("dimension", "unit"), [(d, u) for d, units in UNITS.items() for u in units])
def test_every_unit_parses_to_its_factor(dimension, unit):
    assert parse(f"2 {unit}", dimension) == pytest.approx(2 * UNITS[dimension][unit])


@given(st.floats(0, 1e18))
def test_numbers_are_si(number):
    assert parse(number, "bytes") == number
    assert parse(repr(number), "bytes") == number


@given(st.floats(1e-9, 1e7))
def test_durations_read_back_within_their_digits(seconds):
    number, unit = format_seconds(seconds).split()

    assert parse(f"{number} {unit}", "seconds") == pytest.approx(seconds, rel=0.006)


@given(st.integers(0, 2**60))
def test_bytes_read_back_within_their_digits(nbytes):
    assert parse(format_bytes(nbytes), "bytes") == pytest.approx(nbytes, rel=0.051)


def test_other_formats():
    assert format_rate(300e9) == "300.0 GB/s"
    assert format_flop_per_s(312e12) == "312.0 TFLOP/s"
    assert format_count(1_048_576) == "1.0 M"
    assert format_count(512) == "512"
    assert format_seconds(0) == "0 s"
