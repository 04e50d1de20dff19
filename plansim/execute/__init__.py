"""plansim.execute."""
