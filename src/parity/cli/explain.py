"""`parity explain`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from parity.explaining import Explained
    from parity.harness.explaining import Explanation


@click.command("explain")
@click.argument("sources", metavar="RESULT|TRACE.h5[:RUN]...", nargs=-1, required=True)
@click.option("--cand", metavar="LABEL", help="One candidate.  [all]")
@click.option("--tap", metavar="GLOB", default="*", help="Only these culprits.  [all]")
@click.option("--json", "as_json", is_flag=True, help="Print causes and what was tried as JSON.")
def command(sources: tuple[str, ...], cand: str | None, tap: str, as_json: bool) -> None:
    """Say which known mistake reproduces what a candidate did.

    For every culprit a catalogue of mistakes is computed on the reference's inputs, and each is held against
    what the candidate made; then layouts are tried. RESULT is the folder of a run or its report.json, the
    trace beside it; or give a trace with several runs, or two traces, the reference first.

    \b
    parity explain parity-20260101-120000
    parity explain out/ --cand onnx --tap 'layer0.*'
    parity explain out/trace.h5:torch board.h5:cvi --json

    Exit status: 0, or 2 when there is nothing to look at.
    """
    from parity.explaining import explain

    from .progress import ConsoleProgress
    from .show import show_json

    found = explain(*sources, cand=cand, tap=tap, progress=ConsoleProgress())
    if as_json:
        show_json([one.to_json() for one in found])
        return
    for one in found:
        _show(one)


def _show(one: Explained) -> None:
    click.echo(f"{one.label}: {one.verdict}")
    for note in one.notes:
        click.echo(f"  {note}")
    for found in one.explanations:
        _show_culprit(found)


def _show_culprit(found: Explanation) -> None:
    from parity.explaining import SHOWN
    from parity.harness.explaining import told

    where = found.culprit
    click.echo(f"\n{where.tap}, step {where.step}: {where.evidence}")
    for note in found.notes:
        click.echo(f"  {note}")
    if found.cause is not None:
        click.echo(f"  {found.cause.evidence}")
    elif found.tried and found.error is not None:
        click.echo(f"  no known mistake explains it (relative error {told(found.error)}); the nearest leave")
        for item in found.tried[:SHOWN]:
            click.echo(f"    {told(item.residual):>8}  {item.words}")
