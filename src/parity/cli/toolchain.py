"""`parity toolchain`: the compiler and the chip simulators that real chips need."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from .show import show_json, show_table

if TYPE_CHECKING:
    from collections.abc import Iterator

    from parity.targets.sophgo.toolchain import Toolchain

NAME = click.argument("name", type=click.Choice(["tpu-mlir"]), metavar="tpu-mlir")
PATH = click.Path(path_type=Path)
JSON = click.option("--json", "as_json", is_flag=True, help="Print as JSON.")


@click.group("toolchain")
def command() -> None:
    """Install, adopt, check or remove the compiler and the simulators of real chips.

    \b
    parity toolchain install tpu-mlir      its own environment in the cache folder, about 1.3 GB
    parity toolchain status
    parity toolchain use PATH              one that exists: a venv, a docker image's folder, a release
    """


@command.command("install")
@NAME
@click.option("--python", metavar="PATH", help="A Python 3.10.  [found by executing what looks like one]")
@click.option("--wheels", type=PATH, metavar="DIR", help="Folder of wheels; no registry is asked.")
@click.option("--index", metavar="URL", help="Registry to fetch from.  [what pip is configured for]")
@click.option("--version", metavar="X.Y.Z", help="Another version than the one that is tried and tested.")
@click.option(
    "--without-converter", is_flag=True, help="Only what needs no Python 3.10: run what is compiled."
)
@click.option("--force", is_flag=True, help="Make it anew though it is there.")
@click.pass_context
def install(ctx: click.Context, /, name: str, **values: Any) -> None:
    """Install TPU-MLIR into an environment of its own in the cache folder, then test it.

    An install that was interrupted is taken up again: what was downloaded is kept, the rest is made anew.
    Exit status 2 if it cannot be installed, or fails its self-test.

    \b
    parity toolchain install tpu-mlir
    parity toolchain install tpu-mlir --python ~/.pyenv/versions/3.10.13/bin/python
    parity toolchain install tpu-mlir --wheels wheels/
    """
    from parity.targets.sophgo.toolchain.install import Request
    from parity.targets.sophgo.toolchain.install import install as make

    from .progress import ConsoleProgress

    try:
        toolchain = make(Request(**{key: value for key, value in values.items() if value}), ConsoleProgress())
    except KeyboardInterrupt:
        click.echo("\ninterrupted; the same command takes it up again", err=True)
        ctx.exit(130)
    click.echo(f"{name} {toolchain.version}: {toolchain.root}")
    if toolchain.python is None:
        click.echo(
            "no self-test: without a Python 3.10 it converts no ONNX; what was compiled elsewhere runs"
        )
    elif not _passed_before(toolchain):
        _test(ctx, toolchain)


@command.command("use")
@click.argument("path", type=PATH)
@click.option("--python", metavar="PATH", help="The Python 3.10 that loads its bindings.  [found by trying]")
@click.pass_context
def use(ctx: click.Context, /, path: Path, python: str | None) -> None:
    """Use a TPU-MLIR that exists: an environment, a release's or a docker image's folder.

    It is executed and tested, nothing in it is written, and `parity toolchain remove` only forgets it.

    \b
    parity toolchain use ~/tpu-mlir_v1.30.2/
    parity toolchain use ~/venv310 --python ~/venv310/bin/python
    """
    from parity.targets.sophgo.toolchain.adopt import adopt

    from .progress import ConsoleProgress

    toolchain = adopt(path, ConsoleProgress(), python=python)
    click.echo(f"tpu-mlir {toolchain.version}: {toolchain.package}")
    if toolchain.python is not None:
        _test(ctx, toolchain)


@command.command("selftest")
@click.option("--json", "as_json", is_flag=True, help="Print as JSON.")
@click.pass_context
def selftest(ctx: click.Context, /, as_json: bool) -> None:
    """Convert, compile and simulate a tiny network on one chip of each family, and check the result.

    \b
    parity toolchain selftest
    parity toolchain selftest --json
    """
    from parity.targets.sophgo.toolchain import installed

    _test(ctx, installed(), as_json=as_json)


def _passed_before(toolchain: Toolchain) -> bool:
    from parity.targets.sophgo.toolchain.choice import read_choice

    result = (read_choice() or {}).get("selftest")
    return bool(result and result["passed"] and result["version"] == toolchain.version)


def _test(ctx: click.Context, toolchain: Toolchain, *, as_json: bool = False) -> None:
    from parity.targets.sophgo.toolchain.selftest import selftest as run

    from .progress import ConsoleProgress

    result = run(toolchain, ConsoleProgress())
    show_json(result) if as_json else show_table([*_tests(result)])
    ctx.exit(0 if result["passed"] else 2)


def _tests(result: dict[str, Any]) -> Iterator[tuple[str, str]]:
    for chip, one in result["chips"].items():
        good = f"right to {one['worst']:.1e} of the largest value" if one["worst"] is not None else ""
        yield f"{chip} {one['mode']}", f"{one['reason'] or good} ({one['seconds']:.1f} s)"


@command.command("status")
@JSON
@click.pass_context
def status(ctx: click.Context, /, as_json: bool) -> None:
    """Say which toolchain is used, what it can do here, and what an interrupted install left.

    Exit status 2 if none can be used.

    \b
    parity toolchain status
    parity toolchain status --json
    """
    from parity.targets.sophgo.toolchain.status import status as look

    found = look()
    show_json(found) if as_json else show_table([*_rows(found)])
    ctx.exit(0 if found["usable"] else 2)


def _rows(found: dict[str, Any]) -> Iterator[tuple[str, str]]:
    from parity.targets.sophgo.toolchain.advice import advise_toolchain

    facts = found["toolchain"]
    if facts:
        yield "package", f"{facts['package']}{' (adopted)' if facts['adopted'] else ''}"
        chips = [chip for chip, reason in facts["probe"]["chips"].items() if not reason]
        yield "simulators", ", ".join(chips) or "none"
        if facts["bytes"]:
            yield "size", f"{facts['bytes'] / 1e9:.2f} GB"
    yield from ((one.name, one.state) for one in advise_toolchain())


@command.command("remove")
@NAME
@click.option("--yes", is_flag=True, help="Do not ask.")
def remove(name: str, yes: bool) -> None:
    """Remove what `install` made; a toolchain that `use` adopted is only forgotten.

    \b
    parity toolchain remove tpu-mlir
    parity toolchain remove tpu-mlir --yes
    """
    from parity.targets.sophgo.toolchain.remove import removable
    from parity.targets.sophgo.toolchain.remove import remove as delete

    from .progress import ConsoleProgress

    found = removable()
    if not found:
        click.echo(f"{name}: nothing of it is here")
        return
    if not yes:
        click.echo("\n".join(f"{size / 1e6:10.1f} MB  {path}" for path, size in found.items()))
        click.confirm("Remove all of it?", abort=True)
    click.echo(f"{name}: {delete(ConsoleProgress()) / 1e9:.2f} GB removed")
