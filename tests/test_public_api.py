"""The names a version promises; a change here is a change users notice."""

from __future__ import annotations

import plansim
from plansim.cli.main import COMMANDS


def test_the_version_is_a_version():
    major, minor, patch = plansim.__version__.split(".")

    assert all(part.isdigit() for part in (major, minor, patch))


def test_the_public_names_exist():
    for name in getattr(plansim, "__all__", []):
        assert getattr(plansim, name) is not None


def test_every_command_can_be_imported():
    import importlib

    for place in COMMANDS.values():
        module, _, attribute = place.partition(":")
        assert callable(getattr(importlib.import_module(module), attribute))
