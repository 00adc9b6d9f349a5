"""`parity eval`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from .options import EXECUTION, given, options
from .show import show_json, show_table

if TYPE_CHECKING:
    from parity.evaluating import Evaluations

#: Flips that are listed.
LISTED = 5


@click.command("eval")
@click.option("--ref", metavar="SPEC", help="The side that is trusted.  [torch]")
@click.option("--cand", multiple=True, metavar="SPEC", help="A side that is not; repeatable.")
@click.option("--model", metavar="NAME", help="A model row.  [klm-tiny]")
@click.option("--weights", metavar="SPEC", help="Checkpoint path, or random:SEED.  [the trained one]")
@click.option("--text", metavar="FILE", help="The text.  [what training holds out]")
@click.option("--scenario", metavar="NAME|FILE", help="Take a scenario's prompt for the text.")
@click.option("--prompt", metavar="TEXT", help="Take this for the text.")
@click.option("--cache", metavar="POLICY", help="Cache policy: full, window, window(N).")
@click.option("--tokens", type=int, metavar="N", help="Tokens that are scored.  [1000; few on a slow chip]")
@click.option("--length", type=int, metavar="N", help="Of these in one window.  [250]")
@click.option("--max-kl", type=float, metavar="NATS", help="Exit with 1 above this KL.")
@click.option("--max-flips", type=float, metavar="N", help="Exit with 1 above so many flips per 1000 tokens.")
@options(EXECUTION)
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
@click.pass_context
def command(ctx: click.Context, /, as_json: bool, **values: Any) -> None:
    """Score the reference and candidates over a text: accuracy, perplexity, KL, flips of the best token.

    Every side is fed the text itself, in windows with a full context before them. A flip between two tokens
    that both sides find equally likely (odds below 1.05) is a tie and told apart.

    \b
    parity eval --cand torch:bf16 --cand onnx
    parity eval --cand cvi:int8 --tokens 100
    parity eval --cand segmented:fp16 --text book.txt --max-kl 1e-3 --json

    Exit status: 0, 1 beyond a limit or not finite, 4 a candidate failed to run.
    """
    from parity.evaluating import evaluate

    from .progress import ConsoleProgress

    result = evaluate(progress=ConsoleProgress(), **given(values))
    show_json(result.to_json()) if as_json else _print(result)
    ctx.exit(result.exit_code)


def _print(result: Evaluations) -> None:
    head = ("", "accuracy", "perplexity", "KL", "worst", "flips per 1000", "ties")
    ran = [(one.label, one.found) for one in result.candidates if one.found is not None]
    rows: list[tuple[str, ...]] = [head]
    if ran:
        trusted = ran[0][1].reference
        rows.append(
            (result.reference, f"{trusted.accuracy:.2%}", f"{trusted.perplexity:.4f}", "", "", "", "")
        )
    for label, found in ran:
        low, high = found.interval
        rows.append(
            (
                label,
                f"{found.own.accuracy:.2%}",
                f"{found.own.perplexity:.4f}",
                f"{found.kl_mean:.2e}",
                f"{found.kl_max:.2e}",
                f"{found.flips_per_1000:.1f} ({low:.1f} .. {high:.1f})",
                f"{found.ties} of {len(found.flips)}",
            )
        )
    show_table(rows)
    for label, found in ran:
        for flip in sorted(found.flips, key=lambda flip: -flip.expected_margin)[:LISTED]:
            margins = f"{flip.expected_margin:.3g} and {flip.actual_margin:.3g} nats"
            kind = "tie" if flip.tie else "flip"
            click.echo(
                f"{kind}  {label} at token {flip.place}: {flip.actual} for {flip.expected}; margins {margins}"
            )
    for one in result.candidates:
        for line in (one.failure, *one.exceeded):
            if line:
                click.echo(f"{one.label}: {line}")
    click.echo(
        f"{result.tokens} tokens of {result.text} in {result.windows} windows; flips with 95 % confidence"
    )
