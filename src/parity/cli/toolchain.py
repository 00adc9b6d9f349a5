"""`parity toolchain`: the compiler and the chip simulators that real chips need."""

from __future__ import annotations

from pathlib import Path

import click

NAME = click.argument("name", type=click.Choice(["tpu-mlir"]), metavar="tpu-mlir")


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
@click.option(
    "--wheels", type=click.Path(path_type=Path), metavar="DIR", help="Folder of wheels; no registry is asked."
)
@click.option("--index", metavar="URL", help="Registry to fetch from.  [what pip is configured for]")
@click.option("--version", metavar="X.Y.Z", help="Another version than the one that is tried and tested.")
@click.option("--force", is_flag=True, help="Make it anew though it is there.")
def install(
    name: str, python: str | None, wheels: Path | None, index: str | None, version: str | None, force: bool
) -> None:
    """Install TPU-MLIR into an environment of its own in the cache folder.

    An install that was interrupted is taken up again: what was downloaded is kept, the rest is made anew.

    \b
    parity toolchain install tpu-mlir
    parity toolchain install tpu-mlir --python ~/.pyenv/versions/3.10.13/bin/python
    parity toolchain install tpu-mlir --wheels wheels/
    """
    from parity.targets.sophgo.toolchain.install import Request
    from parity.targets.sophgo.toolchain.install import install as make
    from parity.targets.sophgo.toolchain.packages import VERSION

    from .progress import ConsoleProgress

    toolchain = make(Request(python, wheels, index, version or VERSION, force), ConsoleProgress())
    click.echo(f"{name} {toolchain.version}: {toolchain.root}")
