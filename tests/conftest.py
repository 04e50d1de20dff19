"""One Hypothesis profile for all tests: no deadline (shared machines stall), a bounded number of draws."""

from hypothesis import settings

settings.register_profile("plansim", deadline=None, max_examples=60)
settings.load_profile("plansim")
