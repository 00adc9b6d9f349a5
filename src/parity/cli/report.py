"""`parity report`."""

from __future__ import annotations

from pathlib import Path

import click


@click.command("report")
@click.argument("result", metavar="RESULT")
@click.option("--html", metavar="FILE", help="Write the page there.")
@click.option("--json", "json_", metavar="FILE", help="Write the JSON there.")
@click.option("--as", "others", multiple=True, metavar="KIND=FILE", help="Another kind; repeatable.")
@click.option("--verbose", "-v", is_flag=True, help="Every tap in the table, healthy ones too.")
@click.pass_context
def command(
    ctx: click.Context,
    result: str,
    html: str | None,
    json_: str | None,
    others: tuple[str, ...],
    verbose: bool,
) -> None:
    """Render a stored result again: RESULT is a report.json, or the folder of a run.

    The exit status is that of the result.

    \b
    parity report parity-20260101-120000
    parity report out/report.json --html page.html
    parity report out/ --json copy.json --verbose
    """
    from parity.reports.json_report import read_json
    from parity.stages import write_reports

    from .show import show_result

    path = Path(result)
    files = {kind: file for kind, file in (("html", html), ("json", json_)) if file}
    stored = read_json(path / "report.json" if path.is_dir() else path)
    found = write_reports(stored, {**files, **dict(map(_kind_and_file, others))})
    show_result(found, as_json=False, verbose=verbose)
    ctx.exit(found.exit_code)


def _kind_and_file(text: str) -> tuple[str, str]:
    kind, equals, file = text.partition("=")
    if not (kind and equals and file):
        raise click.UsageError(f"as={text!r}: write KIND=FILE, for example html=page.html")
    return kind, file
