"""One Hypothesis profile for all tests: no time limits (shared machines stall), a bounded number of draws."""

from hypothesis import HealthCheck, Phase, settings

# Shrinking a failing step record takes minutes; --hypothesis-profile=default brings it back.
settings.register_profile(
    "plansim",
    deadline=None,
    max_examples=60,
    phases=(Phase.explicit, Phase.reuse, Phase.generate),
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile("plansim")
