"""`parity seams`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from .options import CASE, EXECUTION, given, options

if TYPE_CHECKING:
    from parity.harness.seams.report import SeamReport, WayResult


@click.command("seams")
@click.option("--ref", metavar="SPEC", help="The target whose plain prefill is trusted.  [torch]")
@click.option(
    "--cand",
    multiple=True,
    metavar="SPEC",
    help="A target to be tried; repeatable.  [segmented, segmented:grow, onnx]",
)
@options(CASE, EXECUTION)
@click.option("--tol", metavar="PROFILE|FILE", help="auto, fp32, fp16, bf16 ... or a TOML file.  [auto]")
@click.option("--ways", metavar="GLOB", help="Only these ways, for example 'chunks*' or 'padded*'.  [all]")
@click.option("--json", "as_json", is_flag=True, help="Print every way as JSON.")
@click.option("--verbose", "-v", is_flag=True, help="Every way in the table, healthy ones too.")
@click.pass_context
def command(
    ctx: click.Context, /, cand: tuple[str, ...], as_json: bool, verbose: bool, **values: Any
) -> None:
    """Execute the same tokens in different ways and name the seam at which one departs.

    One plain prefill of the reference is the yardstick. Every candidate runs the prompt at once, in chunks of
    2^k and of the window (each also one shorter and one longer), token by token, from a restored and from a
    prefilled cache, past the window, and padded on either side of a batch. Keys, values, caches and all other
    taps are held by absolute position. A way that a target cannot do is skipped, with the reason.

    \b
    parity seams
    parity seams --cand segmented:grow --prompt "The return value is "
    parity seams --cand onnx --ways 'chunks*' --json

    Exit status: 0 no seam, 1 divergence, 2 usage or data error, 3 inconclusive, 4 a candidate failed to run.
    """
    from parity.seaming import seams

    from .progress import ConsoleProgress
    from .show import show_json

    result = seams(cand=cand or None, progress=ConsoleProgress(), **{"ref": "torch", **given(values)})
    if as_json:
        show_json(result.to_json())
    else:
        for report in result.reports:
            _show(report, verbose=verbose)
    ctx.exit(result.exit_code)


def _show(report: SeamReport, *, verbose: bool) -> None:
    """The verdict, then the ways that depart or were skipped."""
    from .show import show_table

    click.echo(f"{report.verdict.upper():<14}{report.label}: {report.sentence}")
    shown = [way for way in report.ways if verbose or way.status != "pass"]
    if shown:
        show_table([_line(way) for way in shown])


def _line(way: WayResult) -> tuple[str, ...]:
    from parity.reports.words import multiple

    told = f"{way.seam}: {way.place}" if way.status == "fail" else way.reason
    return "  " + way.name, way.status, multiple(way.ratio), told
