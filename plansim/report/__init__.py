"""plansim.report."""
