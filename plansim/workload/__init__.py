"""plansim.workload."""
