"""plansim.planner."""
