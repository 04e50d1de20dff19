"""Pipeline schedules as data: ordered actions per rank, shared by the simulator and the real run."""

from plansim.schedules.base import Action, Program, RuleSchedule, Schedule, validate_program
from plansim.schedules.dualpipe import DUALPIPE_V
from plansim.schedules.find import find_in
from plansim.schedules.in_flight import peak_in_flight
from plansim.schedules.interleaved import INTERLEAVED
from plansim.schedules.one_forward_one_backward import GPIPE, ONE_F_ONE_B
from plansim.schedules.table import TableSchedule, read_table
from plansim.schedules.zero_bubble import ZB_H1, ZB_H2, ZB_V

SCHEDULES: dict[str, RuleSchedule] = {
    "gpipe": GPIPE,
    "1f1b": ONE_F_ONE_B,
    "interleaved": INTERLEAVED,
    "zb-h1": ZB_H1,
    "zb-h2": ZB_H2,
    "zbv": ZB_V,
    "dualpipev": DUALPIPE_V,
}


def find_schedule(name: str) -> Schedule:
    """Return the schedule called `name`: a key of `SCHEDULES`, an alias, or the path of a ``.csv`` table."""
    return find_in(SCHEDULES, name)


__all__ = [
    "SCHEDULES",
    "Action",
    "Program",
    "Schedule",
    "TableSchedule",
    "find_schedule",
    "peak_in_flight",
    "read_table",
    "validate_program",
]
