"""Everything that is planted, and everything that must not be flagged."""

from __future__ import annotations

from importlib import import_module

from .plant import Harmless, Plant

BUGS = (
    "positions",
    "attention",
    "cache",
    "cutting",
    "weights",
    "formats",
    "files",
    "graphs",
    "dumps",
    "foreign",
)
CHANGES = ("numbers", "layouts", "elsewhere")


def plants() -> list[Plant]:
    """All bugs, families together; names are unique."""
    found = [plant for name in BUGS for plant in import_module(f".bugs.{name}", __package__).PLANTS]
    return _distinct(found)


def changes() -> list[Harmless]:
    """All harmless changes."""
    found = [change for name in CHANGES for change in import_module(f".harmless.{name}", __package__).CHANGES]
    return _distinct(found)


def _distinct(found: list) -> list:
    names = [item.name for item in found]
    twice = {name for name in names if names.count(name) > 1}
    assert not twice, f"in the catalogue twice: {sorted(twice)}"
    return found
