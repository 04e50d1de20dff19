"""Measure a machine: `calibrate` makes its profile, `measure_blocks` times a model's blocks on one rank."""

from plansim.calibrate.blocks import BlockSample, measure_blocks
from plansim.calibrate.machine import calibrate, write_profile

__all__ = ["BlockSample", "calibrate", "measure_blocks", "write_profile"]
