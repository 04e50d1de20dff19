"""A model given as Python code: named here, built and traced by `plansim.execute`, which may import torch."""

from __future__ import annotations

import re
from dataclasses import dataclass

_FACTORY = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*")


@dataclass(frozen=True, slots=True, kw_only=True)
class ModuleModel:
    """A factory ``package.module:function`` that returns an ``nn.Module``; unknown until it is built."""

    factory: str

    @property
    def name(self) -> str:
        """The name plans and reports use: the factory itself."""
        return self.factory

    @property
    def module(self) -> str:
        """The module to import."""
        return self.factory.partition(":")[0]

    @property
    def function(self) -> str:
        """The callable inside it."""
        return self.factory.partition(":")[2]


def is_factory(name: str) -> bool:
    """Return whether `name` is written ``package.module:function``.

    Examples
    --------
    >>> is_factory("my_models.zoo:resnet"), is_factory("gpt2-small"), is_factory("C:/models/a.yaml")
    (True, False, False)
    """
    return bool(_FACTORY.fullmatch(name))
