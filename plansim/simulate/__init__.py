"""Order, waiting and contention: durations from `costs` become times."""

from plansim.simulate.result import RankUse, StepResult
from plansim.simulate.step import simulate_step

__all__ = ["RankUse", "StepResult", "simulate_step"]
