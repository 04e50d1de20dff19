import pytest
from small_planner import small_planner

from plansim.capacity.size import catalogue, parse_target, size_clusters
from plansim.cli.size import prices_of
from plansim.errors import InfeasibleError, InputError
from plansim.plan.model import Job

JOB = Job(global_batch=512, seq_len=2048, target_tokens=2e11)
PROFILES = ["a100x8", "h100x8"]


def sized(target, **more):
    given = {"profiles": PROFILES, "max_devices": 128, "planner": small_planner} | more
    return size_clusters("llama-3.2-1b", JOB, parse_target(target), **given)


@pytest.mark.parametrize(
    ("text", "kind", "value"),
    [
        ("30 days", "seconds", 30 * 86400),
        ("1 week", "seconds", 7 * 86400),
        ("36 h", "seconds", 36 * 3600),
        ("2000 tokens/s", "tokens_per_s", 2000),
        ("1.5 Mtokens/s", "tokens_per_s", 1.5e6),
        ("$1M", "usd", 1e6),
        ("$250,000", "usd", 250_000),
        ("2 M USD", "usd", 2e6),
    ],
)
def test_targets_in_words(text, kind, value):
    target = parse_target(text)

    assert (target.kind, target.value) == (kind, pytest.approx(value))


@pytest.mark.parametrize("text", ["", "soon", "30", "30 parsecs", "$", "-3 days", "0 days", "$0", "tokens/s"])
def test_wrong_targets_are_refused(text):
    with pytest.raises(InputError, match="target"):
        parse_target(text)


def test_the_best_are_what_they_say():
    found = sized("10 days")
    meeting = [r for r in found.tried if found.target.met(r)]

    assert meeting
    assert all(r["reality"]["wall_s"] <= 10 * 86400 for r in found.best.values())
    assert found.best["smallest"]["cluster"]["devices"] == min(r["cluster"]["devices"] for r in meeting)
    assert found.best["cheapest"]["reality"]["usd"] == min(r["reality"]["usd"] for r in meeting)
    assert found.best["fastest"]["reality"]["wall_s"] == min(r["reality"]["wall_s"] for r in meeting)


def test_sizes_between_doublings_are_tried():
    tried = {r["scenario"]["devices"] for r in sized("5 days").tried}

    assert tried - {8, 16, 32, 64, 128}


def test_safe_asks_it_of_the_slow_end():
    usual = sized("6 days").best["smallest"]["cluster"]["devices"]
    safe = sized("6 days", safe=True).best["smallest"]

    assert safe["cluster"]["devices"] >= usual
    assert safe["reality"]["wall_high_s"] <= 6 * 86400


def test_what_is_short_is_said():
    with pytest.raises(
        InfeasibleError, match=r"(?s)a100x8 x 128: takes .* h, 10\.0 min asked for \(.* x\).*--max-devices"
    ):
        sized("10 min")
    with pytest.raises(InfeasibleError, match=r"costs \$.*, \$1 to spend"):
        sized("$1")


def test_answers_carry_a_simulated_goodput():
    run = sized("10 days").best["fastest"]["reality"]
    simulated = run["simulated"]

    assert simulated["campaigns"] == 64
    assert simulated["low"] <= simulated["goodput"] <= simulated["high"]
    assert simulated["without_spares"] <= simulated["goodput"]


def test_a_price_of_ones_own_replaces_the_profiles_and_its_range():
    run = sized("10 days", profiles=["h100x8"], prices={"h100x8": 1.0}).best["smallest"]["reality"]

    assert (run["usd_per_device_hour_low"], run["usd_per_device_hour_high"]) == (1.0, 1.0)
    with pytest.raises(InputError, match=r"did you mean 'h100x8'"):
        sized("10 days", profiles=["h100x8"], prices={"h100": 1.0})


def test_a_price_lets_a_profile_without_one_take_part():
    assert "gb200-nvl72" not in catalogue()[0]
    assert "gb200-nvl72" in catalogue(None, {"gb200-nvl72": 9.0})[0]


def test_a_budget_needs_a_price():
    with pytest.raises(InputError, match=r"gb200-nvl72 has no price .* --price"):
        sized("$1M", profiles=["gb200-nvl72"])


def test_no_cluster_to_try_says_why():
    with pytest.raises(InputError, match=r"--max-devices 4 .* smallest node has 8"):
        sized("10 days", max_devices=4)


@pytest.mark.parametrize("text", ["cheap", "h100x8=", "h100x8=-1", "inf", "nan"])
def test_wrong_prices_are_refused(text):
    with pytest.raises(InputError, match="--price"):
        prices_of([text])


def test_the_catalogue_has_one_profile_a_device_and_says_what_it_leaves_out():
    names, skipped = catalogue()

    assert "h100x8" in names
    assert "local-cpu" not in names
    assert len([n for n in names if n.startswith("tpu-v5p")]) == 1
    assert any("mixed" in text for text in skipped)
