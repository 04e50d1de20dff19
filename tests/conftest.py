"""One Hypothesis profile for all tests: no deadline (shared machines stall), a bounded number of draws."""

from hypothesis import Phase, settings

# Shrinking a failing step record takes minutes; --hypothesis-profile=default brings it back.
settings.register_profile(
    "plansim", deadline=None, max_examples=60, phases=(Phase.explicit, Phase.reuse, Phase.generate)
)
settings.load_profile("plansim")
