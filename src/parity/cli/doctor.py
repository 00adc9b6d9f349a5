"""`parity doctor`."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from typing import TYPE_CHECKING

import click

from .show import show_json, show_table

if TYPE_CHECKING:
    from parity.doctor import Examination


@click.command("doctor")
@click.option("--json", "as_json", is_flag=True, help="Print as JSON.")
@click.pass_context
def command(ctx: click.Context, /, as_json: bool) -> None:
    """Say what is installed, what each target needs, and what changes arithmetic on this machine.

    Exit status 0 unless something that every run needs is missing or broken, then 2.

    \b
    parity doctor
    parity doctor --json
    """
    from parity.doctor import examine

    found = examine()
    if as_json:
        show_json(asdict(found))
    else:
        show_table(
            [
                ("python", found.python),
                *_libraries(found),
                *_machine(found),
                *_targets(found),
                *_toolchain(found),
            ]
        )
        click.echo("\n".join(f"PROBLEM  {problem}" for problem in found.problems) or _fine(found))
    ctx.exit(2 if found.problems else 0)


def _libraries(found: Examination) -> Iterator[tuple[str, str]]:
    for package in found.packages:
        if package.version or package.required:
            yield package.name, f"{package.version or 'NOT INSTALLED'} {package.broken}".strip()
        else:
            yield package.name, f"not installed; only for {package.purpose}"


def _machine(found: Examination) -> Iterator[tuple[str, str]]:
    machine, storage = found.machine, found.storage
    threads = ", ".join(f"{name} {count}" for name, count in machine["threads"].items())
    yield "system", machine["system"]
    yield "processor", f"{machine['processor']}, {machine['cores']} cores; threads: {threads}"
    yield "cuda", machine["cuda"] or "none"
    if machine["flags"] is None:
        yield "arithmetic", "processor flags cannot be read here"
    yield from (machine["flags"] or {}).items()
    for library, state in found.arithmetic.items():
        yield f"{library} float32", state
    yield "cache", f"{storage['cache']}, {_size(storage['cache_bytes'])}, {_size(storage['cache_free'])} free"
    yield "disk here", f"{_size(storage['here_free'])} free"


def _targets(found: Examination) -> Iterator[tuple[str, str]]:
    for target in found.targets:
        yield (
            f"target {target.name}",
            f"cannot run here: {target.missing}" if target.missing else "can run here",
        )


def _fine(found: Examination) -> str:
    chips = any(piece.missing for piece in found.toolchain)
    return "nothing that every run needs is missing" if chips else "nothing is missing"


def _toolchain(found: Examination) -> Iterator[tuple[str, str]]:
    for piece in found.toolchain:
        yield piece.name, f"{'MISSING: ' if piece.missing else ''}{piece.state}"


def _size(count: int) -> str:
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.1f} MB"
