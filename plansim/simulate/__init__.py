"""plansim.simulate."""
