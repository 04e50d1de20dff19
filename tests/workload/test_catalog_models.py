"""Built-in models have the parameters that were published for them."""

from __future__ import annotations

import pytest

from plansim.files import read_yaml
from plansim.workload.read import BUILT_IN, built_in_models, load_model
from plansim.workload.totals import active_parameter_count, parameter_count

PUBLISHED = {
    name: read_yaml(BUILT_IN / f"{name}.yaml").get("published_parameters") for name in built_in_models()
}


@pytest.mark.parametrize("name", [n for n, p in PUBLISHED.items() if p])
def test_parameters_as_published(name):
    """Counts taken from weights hold to 0.01 %; figures printed with two or three digits to 2 %."""
    published = float(PUBLISHED[name])
    printed = published == float(f"{published:.2e}")

    assert parameter_count(load_model(name)) == pytest.approx(published, rel=0.02 if printed else 1e-4)


@pytest.mark.parametrize(
    ("name", "active"),
    [
        ("mixtral-8x7b", 12.9e9),  # arXiv 2401.04088: 13B active, 12.9 counted
        ("mixtral-8x22b", 39e9),  # Mistral, "Cheaper, better, faster, stronger" (2024): 39B active
        ("qwen3-30b-a3b", 3.3e9),  # arXiv 2505.09388, table 2
        ("qwen3-235b-a22b", 22e9),  # arXiv 2505.09388, table 2
        ("deepseek-v2", 21e9),  # arXiv 2405.04434, abstract
        ("deepseek-v3", 37e9),  # arXiv 2412.19437, abstract
    ],
)
def test_active_parameters_as_published(name, active):
    assert active_parameter_count(load_model(name)) == pytest.approx(active, rel=0.02)


@pytest.mark.parametrize("name", built_in_models())
def test_every_built_in_model_names_itself_and_its_source(name):
    data = read_yaml(BUILT_IN / f"{name}.yaml")

    assert data["name"] == name
    assert data["sources"]["shape"]
    assert not data.get("published_parameters") or data["sources"]["parameters"]
