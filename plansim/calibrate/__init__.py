"""plansim.calibrate."""
