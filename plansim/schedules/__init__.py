"""plansim.schedules."""
