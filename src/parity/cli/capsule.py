"""`parity capsule`."""

from __future__ import annotations

import click


@click.command("capsule")
@click.argument("result", metavar="RESULT")
@click.option("--cand", metavar="LABEL", help="The candidate.  [the first that departs]")
@click.option("--tap", metavar="NAME", help="The part that made this tap.  [the first culprit]")
@click.option("--out", metavar="DIR", default="capsule", show_default=True, help="Folder to be made.")
def command(result: str, cand: str | None, tap: str | None, out: str) -> None:
    """Pack the guilty part of a finished run into a folder that runs alone.

    In it lie the segment, graph or module (ONNX, torch program, compiled artefact), the reference's inputs,
    what it made and what it should have made, its weights, the versions, and `run.py`, which computes it
    again and needs nothing of parity: for a vendor's ticket, and for CI until it is mended.

    \b
    parity capsule parity-20260101-120000
    parity capsule out/ --cand onnx --tap layer1.norm2 --out ticket/
    python capsule/run.py

    Exit status: 0, or 2 when there is nothing to pack.
    """
    from parity.capsules import capsule

    from .progress import ConsoleProgress

    folder = capsule(result, out, cand=cand, tap=tap, progress=ConsoleProgress())
    click.echo(f"capsule   {folder}\nrun it    python {folder / 'run.py'}")
