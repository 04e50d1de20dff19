"""The figure of what simulating costs, from made-up timings."""

import importlib.util
import sys
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

PATH = Path(__file__).parents[2] / "tools" / "simulator_cost.py"


@pytest.fixture(scope="module")
def tool():
    spec = importlib.util.spec_from_file_location("simulator_cost", PATH)
    made = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(made)
    yield made
    del sys.modules[spec.name]


@pytest.fixture
def found(tool):
    sizes = (8, 16, 32, 64)
    return [
        tool.Growth(name=f"size^{p}", about="a & b", points=tuple((n, 1e-3 * n**p) for n in sizes))
        for p in (0, 1, 2)
    ]


def test_the_power_is_the_slope(found):
    assert [g.power for g in found] == pytest.approx([0.0, 1.0, 2.0], abs=1e-9)


def test_the_drawing_is_one_file_that_follows_light_and_dark(tool, found):
    svg = tool.chart(found)
    root = ET.fromstring(svg)  # noqa: S314  (our own drawing)
    texts = [t.text for t in root.iter("{http://www.w3.org/2000/svg}text")]

    assert {"size^0", "size^1", "size^2", "CPU time, ms"} <= set(texts)
    assert len(list(root.iter("{http://www.w3.org/2000/svg}circle"))) == 12
    assert "prefers-color-scheme:dark" in svg
    assert "href" not in svg


def test_the_table_has_ratios_to_the_reference(tool, found):
    lines = tool.text(found, unit_s=1e-3).splitlines()

    assert "| size^2 | 8 | 64 | 64 | 4.1e+03 | 4.1e+03 | size^2.00 | a & b |" in lines


def test_cases_can_be_made(tool):
    """The smallest of every kind runs, so that the tool does not rot between reports."""
    for work in (tool.step(1, 8), tool.step(4, 8), tool.step(1, 8, 16), tool.uneven(1), tool.events(8)):
        assert work() is not None
    assert tool.flows(4)().end_s > 0
