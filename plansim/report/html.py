"""The report as one HTML file that needs nothing else: no network, no library, light and dark, for print.

Everything from a file passes Jinja's escaping, and a content policy lets the browser run our script alone.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from plansim import __version__
from plansim.errors import MissingExtraError
from plansim.report.answer import Answer, answer_of
from plansim.report.content import Content
from plansim.report.tables import HEADINGS, cells, measured_rows, summary_rows

TEMPLATES = Path(__file__).parent / "templates"
WIDE = {"pareto", "gantt", "accuracy", "sensitivity", "crossover"}
"""Figures across the whole page."""

MOST_REFUSED = 100


def html(content: Content) -> str:
    """Return the report as HTML.

    Raises
    ------
    MissingExtraError
        When jinja2 is not installed.
    """
    try:
        from jinja2 import Environment, FileSystemLoader, StrictUndefined
        from markupsafe import Markup
    except ImportError:
        raise MissingExtraError("an HTML report", "jinja2", "report") from None
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    script = (TEMPLATES / "report.js").read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    text: str = environment.get_template("report.html.j2").render(
        css=Markup((TEMPLATES / "report.css").read_text(encoding="utf-8")),  # noqa: S704  (our own file)
        js=Markup(script),  # noqa: S704
        script_hash=Markup(digest),  # noqa: S704
        **_values(content),
    )
    return text


def _alone(anchors: list[str]) -> set[str]:
    """Return the narrow figures that have no neighbour."""
    found: set[str] = set()
    side: str | None = None
    for anchor in (*anchors, *list(WIDE)[:1]):
        if anchor in WIDE:
            found |= {side} if side else set()
            side = None
        else:
            side = None if side else anchor
    return found


def _values(content: Content) -> Mapping[str, Any]:
    options = content.results.options
    answer: Answer | None = answer_of(content.choice, content.given) if content.choice else None
    best = content.choice.best.key if content.choice else ""
    return {
        "c": content,
        "version": __version__,
        "answer": answer,
        "wide": WIDE,
        "alone": _alone([f.anchor for f in content.figures]),
        "profiles": sorted({o.profile for o in options}),
        "models": sorted({o.model for o in options}),
        "headings": HEADINGS,
        "rows": [
            {
                "o": o,
                "cells": cells(o, content.varying),
                "best": o.key == best,
                "front": o.key in content.on_front,
            }
            for o in content.listed
        ],
        "refused": content.results.refused[:MOST_REFUSED],
        "summaries": [(source, summary_rows(data)) for source, data in content.results.summaries],
        "measured": [measured_rows(source, data) for source, data in content.results.measurements],
    }
