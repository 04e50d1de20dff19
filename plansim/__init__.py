"""plansim plans parallel training, runs the plan for real, and shows prediction beside measurement."""

__version__ = "0.1.0"
