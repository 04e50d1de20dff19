"""What filters go by: the attributes that table rows and chart points share."""

from __future__ import annotations

from plansim.report.option import Option
from plansim.report.svg import esc


def facets(option: Option) -> str:
    """Return the attributes of an option, escaped."""
    return f' data-profile="{esc(option.profile)}" data-model="{esc(option.model)}"'
