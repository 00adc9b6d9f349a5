"""`parity bisect`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from .options import CASE, EXECUTION, given, options
from .show import show_json

if TYPE_CHECKING:
    from parity.bisecting import Bisection


@click.command("bisect")
@click.option("--ref", metavar="SPEC", help="The side that is trusted.  [torch]")
@click.option("--cand", metavar="SPEC", help="The side that is not: segments, or module:PKG:FACTORY.")
@options(CASE, EXECUTION)
@click.option("--taps", multiple=True, metavar="GLOB", help="Judge these only.  [all that segments hand on]")
@click.option("--tol", metavar="PROFILE|FILE", help="auto, fp32, fp16, bf16 ... or a TOML file.  [auto]")
@click.option("--share-weights", is_flag=True, help="Load the reference's weights into a module candidate.")
@click.option(
    "--check", metavar="COMMAND", help="A command that says good (0), bad (1..127) or neither (125)."
)
@click.option("--items", metavar="A,B,C|FILE", help="The parts that the command can take from the candidate.")
@click.option("--out", metavar="DIR", help="Where the trace and the log of trials go.  [a dated folder]")
@click.option("--resume", is_flag=True, help="Go on with the search in --out.")
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
@click.pass_context
def command(ctx: click.Context, /, as_json: bool, **values: Any) -> None:
    """Find the smallest set of segments or submodules that makes a candidate depart, and prove it.

    Some parts are taken from the candidate, all others from the reference; each culprit costs about
    2 log2(parts) runs. The proof: with exactly these from the reference the run passes, and each fails alone.

    \b
    parity bisect --cand onnx:exported/
    parity bisect --cand cvi:int8 --steps 4 --out search/
    parity bisect --cand cvi:int8 --steps 4 --out search/ --resume
    parity bisect --model mypkg.net:build --inputs inputs.npz --cand module:mypkg.port:build
    parity bisect --items q,k,v,o --check './build_with.sh {items} && ./compare.sh'

    A command finds its parts in place of {items} and in PARITY_ITEMS, separated by spaces; 125 means that it
    cannot tell.

    Exit status: 0 no divergence, 1 culprits found, 3 nothing could be concluded.
    """
    from parity.bisecting import bisect

    from .progress import ConsoleProgress

    result = bisect(progress=ConsoleProgress(), **given(values))
    show_json(result.to_json()) if as_json else _print(result)
    ctx.exit(result.exit_code)


def _print(result: Bisection) -> None:
    for line in result.lines():
        click.echo(line)
    click.echo(f"{result.sentence}")
    for note in result.notes:
        click.echo(f"note: {note}")
    click.echo(
        f"{len(result.trials)} trials over {len(result.items)} parts ({result.method}); log: {result.path}"
    )
