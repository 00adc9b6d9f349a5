"""Names of targets -> what they are; a name costs no import until it is used."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib import import_module
from importlib.metadata import entry_points
from pathlib import Path
from typing import TYPE_CHECKING, Any

from parity.harness.errors import UserError, did_you_mean

if TYPE_CHECKING:
    from parity.harness.comparison import Result


def load(path: str) -> Any:
    """The object behind `package.module:name`."""
    module, _, name = path.partition(":")
    return getattr(import_module(module), name)


def merged(group: str, *tables: Mapping[str, str]) -> dict[str, str]:
    """Built-in tables and the entry points of a group in one; a name given twice is refused."""
    out: dict[str, str] = {}
    extra = {point.name: point.value for point in entry_points(group=group)}
    for table in (*tables, extra):
        for name, path in table.items():
            if name in out:
                raise UserError(
                    f"{group}={name!r}: is defined twice, by {out[name]} and {path}; rename one of them"
                )
            out[name] = path
    return out


def targets() -> dict[str, str]:
    """Every way of executing a case."""
    from parity.reference import REFERENCES
    from parity.targets import TARGETS

    return merged("parity.targets", REFERENCES, TARGETS)


def reports() -> dict[str, str]:
    """Every kind of report that is a file."""
    from parity.reports import REPORTS

    return merged("parity.reports", REPORTS)


def report(kind: str) -> Callable[[Result, Path], None]:
    """The function that writes a kind of report; UserError for an unknown one."""
    table = reports()
    if kind not in table:
        raise UserError(f"report={kind!r}: unknown kind of report. {did_you_mean(kind, table)}")
    write: Callable[[Result, Path], None] = load(table[kind])
    return write


def target(name: str, *, own_module: bool = False) -> Any:
    """A target object by name; `own_module` for one that executes a module of the user's."""
    table = targets()
    if name not in table:
        raise UserError(f"target={name!r}: unknown. {did_you_mean(name, table)}")
    if own_module:
        return load(_for_modules(name))()
    return load(table[name])()


def _for_modules(name: str) -> str:
    from parity.reference import MODULE_REFERENCES
    from parity.targets import MODULE_TARGETS

    table = merged("parity.module_targets", MODULE_REFERENCES, MODULE_TARGETS)
    if name not in table:
        able = ", ".join(table)
        raise UserError(f"target={name!r}: cannot execute a module of your own; these can: {able}")
    return table[name]
