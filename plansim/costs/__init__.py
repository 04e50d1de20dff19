"""plansim.costs."""
