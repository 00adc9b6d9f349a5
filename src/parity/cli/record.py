"""`parity record`."""

from __future__ import annotations

from typing import Any

import click

from .options import CASE, EXECUTION, given, options
from .show import show_json


@click.command("record")
@click.argument("spec", default="torch")
@click.option(
    "--ref", metavar="TRACE[:RUN]", help="A stored run: its tokens are forced, its values isolate segments."
)
@options(CASE, EXECUTION)
@click.option("--replay", metavar="MODE", help="With --ref: forced, free or isolated.  [forced]")
@click.option("--capture", metavar="LEVEL", help="full, or sketch[:N] numbers instead of a row.  [full]")
@click.option("--max-bytes", metavar="SIZE", help="Refuse to record more, for example 500M or 2G.")
@click.option(
    "--out", metavar="FILE.h5", default="trace.h5", show_default=True, help="Trace file; runs are appended."
)
@click.option("--json", "as_json", is_flag=True, help="Print the run's name and file as JSON.")
def command(spec: str, ref: str | None, out: str, as_json: bool, **values: Any) -> None:
    """Execute one target and record it into a trace file; nothing is compared.

    SPEC is a target with its options, as in `parity run`; label=SPEC names the run.

    \b
    parity record                                      the reference, into trace.h5
    parity record torch:fp64 --out exact.h5
    parity record onnx --ref trace.h5:torch            a candidate, on the reference's case and tokens
    parity record old=segmented --scenario wrap --steps 32
    """
    from parity.stages import record

    from .progress import ConsoleProgress

    name = record(spec, out=out, ref=ref, progress=ConsoleProgress(), **given(values))
    if as_json:
        show_json({"run": name, "trace": out})
    else:
        click.echo(
            f"recorded {name} into {out}; compare it with: parity compare REF.h5 {out} --cand-run {name}"
        )
