"""`parity calibrate`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from .options import CASE, given, options

if TYPE_CHECKING:
    from parity.floors import Measured


@click.command("calibrate")
@options(CASE)
@click.option("--dtype", metavar="NAME", help="Number format of the candidates: fp32, bf16, fp16.  [fp32]")
@click.option("--out", "-o", required=True, metavar="FILE.toml", help="Where the noise floors go.")
@click.option("--json", "as_json", is_flag=True, help="Print the levels as JSON instead of a table.")
def command(out: str, as_json: bool, **values: Any) -> None:
    """Measure the noise floors of a case and write them to a file that is reviewed and committed.

    Trusted runs of the case are held against each other: in fp64, in the candidates' number format, in
    another order of summation, with inputs moved by one epsilon, with other threads and another batch order.
    Per tap the file holds the level, the cause that is largest, and the number of rows it was seen in. All
    rows of a tap are judged by that level; without a file each row is also held to its own noise.

    \b
    parity calibrate -o floors.toml
    parity calibrate --scenario wrap --dtype bf16 -o floors-bf16.toml
    parity calibrate --model mypkg.net:build --inputs inputs.npz -o floors.toml
    parity run --cand onnx --tol floors.toml

    Exit status: 0, or 2 when nothing can be measured.
    """
    from parity.calibrating import calibrate

    from .progress import ConsoleProgress

    measured = calibrate(out, progress=ConsoleProgress(), **given(values))
    if as_json:
        from .show import show_json

        show_json({tap: noise.to_json() for tap, noise in measured.levels.items()})
        return
    _show(measured)
    click.echo(f"{len(measured.levels)} taps in {out}; run with --tol {out}")


def _show(measured: Measured) -> None:
    from parity.gate import spread_findings

    from .show import show_table

    rows = [("tap", "rms", "peak", "cause", "rows")]
    for tap, noise in measured.levels.items():
        floor = noise.floor
        rows.append((tap, f"{floor.rms:.2g}", f"{floor.peak:.2g}", noise.cause, f"{noise.rows:,}"))
    show_table(list(rows))
    for finding in spread_findings(measured.spread):
        click.echo(f"{finding.level}: {finding.text}")
