"""plansim.validate."""
