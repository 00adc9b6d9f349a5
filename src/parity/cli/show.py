"""What every command that ends with a result prints: a table for people, JSON for scripts."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from parity.harness.comparison import Result


def show_result(result: Result, *, as_json: bool, verbose: bool = False) -> None:
    """Print a result to standard output; progress went to standard error, so a pipe gets this alone."""
    if as_json:
        from parity.reports.json_report import dumps

        click.echo(dumps(result.to_json()))
        return
    from rich.console import Console

    from parity.reports.console import print_result

    print_result(result, Console(), verbose=verbose)


def show_json(data: Any) -> None:
    """Plain data as indented JSON."""
    click.echo(json.dumps(data, indent=2, ensure_ascii=False, default=str))


def show_table(rows: list[tuple[str, ...]]) -> None:
    """Columns of text, two spaces apart; the last one is as long as it likes."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        cells = [cell.ljust(width) for cell, width in zip(row, widths, strict=True)]
        click.echo("  ".join(cells).rstrip())
