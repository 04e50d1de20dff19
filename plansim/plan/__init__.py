"""plansim.plan."""
