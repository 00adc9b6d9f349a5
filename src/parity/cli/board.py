"""`parity board`: a package for a board, brought there, run there, its dump fetched."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from .options import given

if TYPE_CHECKING:
    from parity.targets.sophgo.runner.ssh import Board

PATH = click.Path(path_type=Path)
HOST = click.argument("host", metavar="HOST")
PACKAGE = click.argument("package", metavar="PACKAGE", type=PATH)
FOLDER = click.option(
    "--folder", metavar="DIR", default="parity-board", show_default=True, help="Our folder on the board."
)


@click.group("board")
def command() -> None:
    """Run compiled models on a board, or its simulator, and bring back what they computed.

    A package is one folder: models, wiring table, tokens, rotary rows, perhaps a prefilled cache, and
    runner.pyz, which needs nothing on the board but a Python and the vendor's runtime.

    \b
    parity board package --cand cvi --out package/
    parity board push root@board package/
    parity board run root@board
    parity board fetch root@board --out dump/
    parity run --cand dump:dump/
    """


@command.command("package")
@click.option(
    "--cand", metavar="SPEC", default="cvi", show_default=True, help="Chip and build, as in `parity run`."
)
@click.option("--model", metavar="NAME", help="A model row.  [klm-tiny]")
@click.option("--weights", metavar="SPEC", help="Checkpoint path, or random:SEED.  [the trained one]")
@click.option("--scenario", metavar="NAME|FILE", help="A named scenario or a TOML file.  [default]")
@click.option("--prompt", metavar="TEXT", help="Prompt instead of the scenario's.")
@click.option("--steps", type=int, metavar="N", help="Decode steps after the prompt.")
@click.option("--cache", metavar="POLICY", help="Cache policy: full, window, window(N).")
@click.option("--free", is_flag=True, help="The board goes on with its own tokens, not the reference's.")
@click.option("--out", type=PATH, metavar="DIR", default="package", show_default=True, help="A new folder.")
def package(cand: str, out: Path, **values: Any) -> None:
    """Compile a case for a board and write everything that it needs into one folder.

    \b
    parity board package --cand cvi --out package/
    parity board package --cand cvi:int8 --model klm --weights klm.pt --steps 64 --free --out package/
    parity board package --cand bm1684x:f16+tapped --out package/
    """
    from parity.boards import package as write

    from .progress import ConsoleProgress

    click.echo(write(out, cand=cand, progress=ConsoleProgress(), **given(values)))


@command.command("push")
@HOST
@PACKAGE
@FOLDER
def push(host: str, package: Path, folder: str) -> None:
    """Bring a package to a board over ssh; one that is there is replaced.

    \b
    parity board push root@board package/
    """
    _board(host, folder).push(package)
    click.echo(f"{package} is on {host} in {folder}/package")


@command.command("run")
@HOST
@FOLDER
@click.option("--python", metavar="PATH", default="python3", show_default=True, help="Python on the board.")
@click.option("--lib", metavar="DIR", default="", help="Folder of the vendor's libraries, if not found.")
@click.option("--force", is_flag=True, help="Delete the dump of the run before.")
def run(host: str, folder: str, **values: Any) -> None:
    """Step the package on the board; what it dumps stays there until it is fetched.

    \b
    parity board run root@board
    parity board run root@board --lib /mnt/system/lib --force
    """
    _board(host, folder).run(**values)
    click.echo(f"dumped on {host}; `parity board fetch {host} --out dump/` brings it here")


@command.command("fetch")
@HOST
@FOLDER
@click.option("--out", type=PATH, metavar="DIR", default="dump", show_default=True, help="A new folder.")
def fetch(host: str, folder: str, out: Path) -> None:
    """Bring the dump of a board's run here.

    \b
    parity board fetch root@board --out dump/
    parity run --ref torch --cand dump:dump/
    """
    click.echo(_board(host, folder).fetch(out))


@command.command("simulate")
@PACKAGE
@click.option("--out", type=PATH, metavar="DIR", default="dump", show_default=True, help="A new folder.")
def simulate(package: Path, out: Path) -> None:
    """Step a package here, on the simulator of its chip, by the program that the board runs.

    \b
    parity board simulate package/ --out dump/
    """
    from parity.boards import simulate as step

    from .progress import ConsoleProgress

    click.echo(step(package, out, progress=ConsoleProgress()))


@command.command("serve")
@PACKAGE
def serve(package: Path) -> None:
    """Answer the keyboard's protocol on stdin and stdout, on the simulator of the package's chip.

    On a board: `python3 runner.pyz serve PACKAGE`. Lines in: #c (a character was typed), @pred[N], @accept,
    @back, @clear, @debug. Lines out: ## READY ##, and one for every @pred and @debug.

    \b
    printf '#h\\n#e\\n@pred8\\n' | parity board serve package/
    """
    from parity.boards import serve as answer

    answer(package)


def _board(host: str, folder: str) -> Board:
    from parity.targets.sophgo.runner.ssh import Board

    return Board(host, folder)
