"""Knowledge distillation: a smaller student learns from the outputs of the model as it was."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from plansim.costs.compression.model.base import Effect, ModelMethod, Quality
from plansim.costs.compression.options import Option


class Distill(ModelMethod):
    """A student with a fraction of each dimension; every training step also runs the teacher forward.

    The gain is that of the smaller student. That the teacher helps is not credited in advance: in short runs
    students did no better than without one.
    """

    name: ClassVar[str] = "distill"
    summary: ClassVar[str] = (
        "train a smaller student on the teacher's outputs; costs a teacher forward per step"
    )
    source: ClassVar[str] = (
        "Hinton et al. 2015, arXiv 1503.02531; DistilBERT, Sanh et al. 2019, arXiv 1910.01108"
    )
    trains: ClassVar[bool] = True
    options: ClassVar[tuple[Option, ...]] = (
        Option(
            name="width",
            kind=float,
            default=0.5,
            low=0.0,
            high=1.0,
            open_low=True,
            help="student's width over the teacher's",
        ),
        Option(
            name="temperature",
            kind=float,
            default=2.0,
            low=0.0,
            open_low=True,
            high=100.0,
            help="softens both outputs",
        ),
        Option(
            name="weight", kind=float, default=0.5, low=0.0, high=1.0, help="of the teacher beside labels"
        ),
    )

    def effect(self, options: Mapping[str, Any] | None = None) -> Effect:
        """Return the student's products, and the teacher's forward while training."""
        width = self.resolve(options)["width"]
        return Effect(flop_factor=width**2, weight_factor=width**2, inner=width, outer=width, teacher=True)

    def quality(self, options: Mapping[str, Any] | None = None) -> Quality:
        """Return from DistilBERT's 3 % to small networks a tenth of the size."""
        source = (
            "low: DistilBERT keeps 97 % at 60 % of the size; high: digits, students 7 to 13 times smaller"
        )
        return Quality(low=0.03, high=0.15, source=source)
