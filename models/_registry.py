"""Names of models -> where they are made."""

from __future__ import annotations

from importlib import import_module
from importlib.metadata import entry_points
from typing import cast

from parity.harness.case import Model
from parity.harness.errors import UserError, did_you_mean

MODELS: dict[str, str] = {
    "klm": "parity.models.klm:find",
    "klm-tiny": "parity.models.klm:find",
}
"""Name -> `module:function`; the function takes the name and returns the model."""

ENTRY_POINTS = "parity.models"


def known_models() -> dict[str, str]:
    """Ours and those that installed packages add; a name that is given twice is refused."""
    table = dict(MODELS)
    for point in entry_points(group=ENTRY_POINTS):
        if table.setdefault(point.name, point.value) != point.value:
            raise UserError(
                f"model={point.name!r}: claimed by {point.value} and {table[point.name]}; uninstall one"
            )
    return table


def find_model(name: str) -> Model:
    """The model of this name; UserError with the nearest names."""
    table = known_models()
    if name not in table:
        raise UserError(f"model={name!r}: there is no such model. {did_you_mean(name, table)}")
    module, _, function = table[name].partition(":")
    return cast(Model, getattr(import_module(module), function)(name))
