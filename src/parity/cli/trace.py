"""`parity trace`: look into trace files."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import click

from .options import trace_and_run
from .show import show_json, show_table

if TYPE_CHECKING:
    from parity.harness.trace.tools import Description, RunLine, TapLine

JSON = click.option("--json", "as_json", is_flag=True, help="Print as JSON.")
FILE = "FILE.h5[:RUN]"


@click.group("trace")
def command() -> None:
    """Look into trace files: runs, taps, values.

    \b
    parity trace ls trace.h5                        its runs
    parity trace ls trace.h5:torch                  the taps of one
    parity trace show trace.h5:torch layer0.q --step 5
    parity trace diff before.h5:torch after.h5:torch
    """


@command.command("ls")
@click.argument("file", metavar=FILE)
@JSON
def ls(file: str, as_json: bool) -> None:
    """List the runs of a trace, or the taps of one run in execution order.

    \b
    parity trace ls trace.h5
    parity trace ls trace.h5:onnx --json
    """
    from parity.harness.trace.tools import list_runs, list_taps

    path, run = trace_and_run(file)
    lines = list_runs(path) if run is None else list_taps(path, run)
    if as_json:
        show_json([asdict(line) for line in lines])
    elif lines:
        show_table([_run_row(line) if run is None else _tap_row(line) for line in lines])  # type: ignore[arg-type]
    else:
        click.echo(f"{path}: holds nothing yet")


def _run_row(line: RunLine) -> tuple[str, ...]:
    return (
        line.name,
        line.target,
        line.created[:19],
        "complete" if line.complete else "INCOMPLETE",
        f"{line.taps} taps",
        f"{line.steps} steps",
        f"{line.records} records",
        f"{line.bytes / 1e6:.1f} MB",
    )


def _tap_row(line: TapLine) -> tuple[str, ...]:
    shapes = " ".join(str(list(shape)) for shape in line.shapes[:3])
    more = " ..." if len(line.shapes) > 3 else ""
    dtypes, axes = " ".join(line.dtypes), " | ".join(filter(None, line.axes))
    return line.tap, f"{line.records} records", f"{len(line.steps)} steps", dtypes, shapes + more, axes


@command.command("show")
@click.argument("file", metavar=FILE)
@click.argument("tap")
@click.option("--step", type=int, metavar="N", help="Only this step.")
@click.option("--slice", "where", metavar="INDEX", help="Print the values at a place, for example 0,:,3:5.")
@JSON
def show(file: str, tap: str, step: int | None, where: str | None, as_json: bool) -> None:
    """Statistics of a tap's records, or the values of a slice of one.

    \b
    parity trace show trace.h5:torch logits
    parity trace show trace.h5:torch layer0.q --step 5 --slice 0,1,0,:8
    """
    from parity.harness.trace.tools import describe_tap, slice_values

    path, run = _named(file)
    if where is not None:
        values = slice_values(path, run, tap, where, step)
        show_json(values.tolist()) if as_json else click.echo(str(values))
        return
    found = describe_tap(path, run, tap, step)
    if as_json:
        show_json([_description(item) for item in found])
    else:
        show_table([_described(item) for item in found])


def _described(item: Description) -> tuple[str, ...]:
    numbers = ("min", "max", "mean", "std")
    return (
        f"step {item.step}" + (f" call {item.call}" if item.call else ""),
        item.dtype,
        str(list(item.shape)),
        item.axes,
        *(f"{name} {_number(getattr(item, name))}" for name in numbers),
        f"{item.nonfinite} not finite" if item.nonfinite else "",
    )


def _description(item: Description) -> dict[str, Any]:
    positions = None if item.positions is None else item.positions.tolist()
    return {**asdict(item), "positions": positions, "meta": dict(item.meta)}


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.6g}"


@command.command("diff")
@click.argument("first", metavar=FILE)
@click.argument("second", metavar=FILE)
@JSON
@click.pass_context
def diff(ctx: click.Context, /, first: str, second: str, as_json: bool) -> None:
    """What two runs do not have alike: taps, steps, shapes, dtypes; `parity compare` judges their values.

    Exit status: 0 alike, 1 not.

    \b
    parity trace diff before.h5:torch after.h5:torch
    """
    from parity.harness.trace.tools import diff_runs

    found = diff_runs(*_named(first), *_named(second))
    if as_json:
        show_json([asdict(item) for item in found])
    elif found:
        show_table(
            [
                (
                    item.tap,
                    "every step" if item.step is None else f"step {item.step}",
                    item.what,
                    item.first,
                    item.second,
                )
                for item in found
            ]
        )
    else:
        click.echo("same taps, steps, shapes and dtypes")
    ctx.exit(1 if found else 0)


@command.command("rename")
@click.argument("file", metavar="FILE.h5")
@click.argument("out", metavar="OUT.h5")
@click.argument("names", metavar="OLD=NEW...", nargs=-1, required=True)
def rename(file: str, out: str, names: tuple[str, ...]) -> None:
    """Copy a trace into a new file with taps renamed.

    \b
    parity trace rename board.h5 renamed.h5 seg0.q=layer0.q tail_logits=logits
    """
    from parity.harness.trace.tools import rename as rename_taps

    count = rename_taps(file, out, dict(_pairs(names)))
    click.echo(f"{out}: {count} records renamed")


def _pairs(names: tuple[str, ...]) -> Iterator[tuple[str, str]]:
    seen: set[str] = set()
    for name in names:
        old, _, new = name.partition("=")
        if not old or not new or old in seen:
            raise click.UsageError(f"name={name!r}: should be OLD=NEW, each OLD once")
        seen.add(old)
        yield old, new


@command.command("export")
@click.argument("file", metavar=FILE)
@click.argument("out", metavar="OUT.npz")
@click.option("--taps", metavar="GLOB", default="*", show_default=True, help="Only these taps.")
def export(file: str, out: str, taps: str) -> None:
    """Write the records of a run into an .npz file.

    \b
    parity trace export trace.h5:torch logits.npz --taps logits
    """
    from parity.harness.trace.tools import export_npz

    names = export_npz(*_named(file), out, taps)
    click.echo(f"{out}: {len(names)} arrays")


@command.command("repair")
@click.argument("file", metavar="FILE.h5")
@click.pass_context
def repair(ctx: click.Context, /, file: str) -> None:
    """Make a file whose writer was killed whole again, and verify every record.

    Exit status: 0 when every record verifies, else 2.

    \b
    parity trace repair trace.h5
    """
    from parity.harness.trace import repair as repair_trace

    done = repair_trace(file)
    state = "was left open and is mended" if done.was_open else "was closed properly"
    click.echo(f"{done.path}: {state}; {done.records} records, {len(done.failures)} of them damaged")
    if done.incomplete:
        click.echo(f"incomplete: {', '.join(done.incomplete)}")
    click.echo("".join(f"{failure}\n" for failure in done.failures), nl=False)
    ctx.exit(2 if done.failures else 0)


def _named(file: str) -> tuple[str, str]:
    """File and run; without a run, the only one of the file that does not belong to another."""
    from parity.harness.errors import UserError
    from parity.harness.trace import Trace

    path, run = trace_and_run(file)
    if run is not None:
        return path, run
    with Trace(path) as trace:
        names = list(dict.fromkeys(item.name for item in trace.runs if "@" not in item.name))
    if len(names) != 1:
        raise UserError(f"run: {path} holds {', '.join(names) or 'none'}; say which, as {path}:RUN")
    return path, names[0]
