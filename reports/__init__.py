"""How a finished comparison is shown: reports render a Result, or a stored one, never live tensors.

Registry: kind -> import string; a kind costs no import until it is asked for.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import Any

REPORTS: dict[str, str] = {
    "console": "parity.reports.console:print_result",
    "html": "parity.reports.html:write_html",
    "json": "parity.reports.json_report:write_json",
}


def load_report(kind: str) -> Callable[..., Any]:
    """The function behind a report kind; UserError for an unknown one."""
    from parity.harness.errors import UserError, did_you_mean

    if kind not in REPORTS:
        raise UserError(f"report={kind!r}: unknown kind of report. {did_you_mean(kind, REPORTS)}")
    module, _, name = REPORTS[kind].partition(":")
    function: Callable[..., Any] = getattr(import_module(module), name)
    return function
