"""Frozen records that predictions, measurements and reports share."""

from plansim.results.measurement import Measurement, RankMeasurement
from plansim.results.prediction import RESULT_SCHEMA, Breakdown, CriticalTerm, Prediction, StageMemory
from plansim.results.span import Span

__all__ = [
    "RESULT_SCHEMA",
    "Breakdown",
    "CriticalTerm",
    "Measurement",
    "Prediction",
    "RankMeasurement",
    "Span",
    "StageMemory",
]
