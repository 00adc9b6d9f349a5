"""The command line: parses, calls, prints. Commands are loaded when they are named."""

from __future__ import annotations

import keyword
import os
import sys
from importlib import import_module

import click

COMMANDS = {
    "run": "run a reference and candidates, compare, judge, report",
    "record": "record one target into a trace file",
    "compare": "hold two stored runs against each other",
    "judge": "judge stored results with other tolerances, say the least that would pass",
    "report": "render a stored result again",
    "explain": "say which known mistake reproduces what a candidate did",
    "bisect": "find the smallest set of parts that makes a candidate depart",
    "capsule": "pack the guilty part into a folder that runs alone",
    "weights": "hold weights against the checkpoint by content, before anything runs",
    "seams": "execute the same tokens in different ways, name the seam that departs",
    "invariants": "check what must hold of a target without any reference",
    "eval": "score reference and candidates over a text, side by side",
    "budget": "share the error in the logits out over segments, plan mixed precision",
    "audit": "say what a tolerance policy would miss, and where it would cry wolf",
    "power": "say how small an error a run's tolerances would have caught",
    "calibrate": "measure a case's noise floors into a file that is reviewed and committed",
    "baseline": "keep a result, say what got worse since",
    "selftest": "plant known bugs, make harmless changes, score what is said of them",
    "import": "read what a device wrote into a trace file",
    "trace": "look into trace files",
    "targets": "list the ways of executing a case",
    "models": "list the models",
    "scenarios": "list the scenarios",
    "train": "train a reference checkpoint",
    "prefill": "fill a KV cache on the host and write it as files",
    "export": "write ONNX segments in the original folder layout",
    "compile": "compile segments or ONNX files for a chip",
    "board": "run compiled models on a board, bring back what they computed",
    "toolchain": "install the compiler and the simulators of real chips",
    "doctor": "say what is installed and what each target needs",
}


class _Lazy(click.Group):
    """Help costs no import: a command's module is loaded when the command is named."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        command = getattr(import_module(f"parity.cli.{_module(cmd_name)}"), "command")  # noqa: B009
        assert isinstance(command, click.Command)
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args and args[0] not in COMMANDS and not args[0].startswith("-"):
            from parity.harness.errors import did_you_mean

            raise click.UsageError(f"command {args[0]!r}: unknown. {did_you_mean(args[0], COMMANDS)}", ctx)
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))


def _module(name: str) -> str:
    """A command whose name is a word of Python's lives in a module with an underscore behind it."""
    return name + "_" * keyword.iskeyword(name)


@click.group(cls=_Lazy, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="parity")
def cli() -> None:
    """Proves that a ported neural network still computes what the original computes.

    \b
    parity run                                     the tiny keyboard model, three ports, one report
    parity run --cand segmented --cand prefilled   several candidates, one report
    parity run --model mypkg.net:build --inputs inputs.npz --cand onnx
    parity compare before.h5 after.h5              two stored runs, nothing is executed

    Exit status: 0 parity, 1 divergence, 2 usage, environment or data error, 3 inconclusive, 4 a candidate
    failed to run, 5 worse than a stored baseline, 130 interrupted, 70 a defect of parity.
    """


def main() -> None:
    """Entry point: every error a person can cause is one paragraph and an exit status.

    Threads of torch that spin while they wait make a small step ten times slower as soon as anything else
    wants the processor; this must be set before torch is loaded.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    sys.exit(_run(sys.argv[1:]))


def _run(args: list[str]) -> int:
    from parity.harness.errors import ParityError

    try:
        code = cli.main(args=args, prog_name="parity", standalone_mode=False)
        return code if isinstance(code, int) else 0
    except click.exceptions.Exit as exit_:
        return exit_.exit_code
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except (KeyboardInterrupt, click.Abort):
        click.echo("\ninterrupted; a trace that was being recorded is kept and marked incomplete", err=True)
        return 130
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except ParityError as error:
        click.echo(f"parity: {error}", err=True)
        return error.exit_code
    except Exception as error:
        if os.environ.get("PARITY_DEBUG"):
            raise
        return _unforeseen(error)


def _unforeseen(error: Exception) -> int:
    """A full disk or a read-only place is the user's to mend; anything else nobody should ever see."""
    import traceback

    from parity.harness.room import no_room

    if (said := no_room(error)) is not None:
        click.echo(f"parity: {said}", err=True)
        return said.exit_code

    last = traceback.extract_tb(error.__traceback__)[-1]
    place = f"{os.path.basename(last.filename)}:{last.lineno}"
    click.echo(f"parity: internal error: {type(error).__name__}: {error} ({place})", err=True)
    click.echo("parity: this is a defect of parity; PARITY_DEBUG=1 shows the whole traceback", err=True)
    return 70
