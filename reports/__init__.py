"""How a finished comparison is shown: reports render a Result, or a stored one, never live tensors."""

from __future__ import annotations

#: Kind -> import string of `write(result, path)`; a kind costs no import until it is asked for.
REPORTS: dict[str, str] = {
    "html": "parity.reports.html:write_html",
    "json": "parity.reports.json_report:write_json",
}
