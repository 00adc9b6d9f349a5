"""One thing that is known to go wrong with a graph on a chip."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Finding:
    """One form. `op` names operator and value; severity is `abort`, `wrong` (computes garbage) or `note`."""

    op: str
    tap: str | None
    what: str
    rewrite: str
    severity: str
    value: str = ""

    def __str__(self) -> str:
        where = f"{self.tap} ({self.op})" if self.tap else self.op
        return f"{self.severity}: {where}: {self.what}; {self.rewrite}"
