"""`parity targets`."""

from __future__ import annotations

from dataclasses import asdict

import click

from .show import show_json, show_table


@click.command("targets")
@click.option("--json", "as_json", is_flag=True, help="Print as JSON.")
def command(as_json: bool) -> None:
    """List the ways of executing a case, and whether each can run here.

    \b
    parity targets
    parity targets --json
    """
    from parity.doctor import targets

    found = targets()
    if as_json:
        show_json([asdict(item) for item in found])
        return
    show_table(
        [
            (item.name, f"{item.summary}{f' - not here: {item.missing}' if item.missing else ''}")
            for item in found
        ]
    )
