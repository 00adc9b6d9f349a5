"""The command line."""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
from collections.abc import Mapping, Sequence
from typing import IO

from .chip import Chip
from .files import Package
from .frames import answer_frames
from .live import live_models, load_object
from .loop import Loop
from .native import end_with, unbuffer_stdout
from .numbers import ROUNDINGS
from .run import run, to_stderr
from .serve import Keyboard, serve
from .tensors import Failure, Model


def main(arguments: Sequence[str]) -> int:
    """Run a sub-command; returns the exit status: 2 for what a person can mend, 130 if interrupted."""
    options = _parser().parse_args(arguments)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        _COMMANDS[options.command](options)
    except Failure as error:
        print(f"runner: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        print(f"runner: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("runner: interrupted; what was dumped so far is kept and marked incomplete", file=sys.stderr)
        return 130
    return 0


def _run(options: argparse.Namespace) -> None:
    unbuffer_stdout()
    if options.parent is not None:
        end_with(options.parent)
    package = Package(options.package)
    chip = Chip(package.facts["chip"], options.lib)
    try:
        run(package, _load(package, chip, options), options.out, rounding=options.rounding, say=to_stderr)
    finally:
        chip.close()
    to_stderr(f"dump: {options.out}")


def _serve(options: argparse.Namespace) -> None:
    answers = _own_stdout()
    package = Package(options.package)
    chip = Chip(package.facts["chip"], options.lib)
    try:
        loop = Loop(package, _load(package, chip, options), options.rounding)
        serve(Keyboard(loop, package.facts["vocab_size"]), sys.stdin, answers)
    finally:
        chip.close()


def _own_stdout() -> IO[str]:
    """stdout for answers alone: what the C libraries print goes to stderr."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    return answers


def _load(package: Package, chip: Chip, options: argparse.Namespace) -> Mapping[str, Model]:
    if options.object:
        return live_models(load_object(options.object), package.wiring, package.facts["sizes"])
    package.check_models()
    for name, facts in package.models.items():
        chip.load(name, package.path(facts["file"]), facts["net"] or name, package.facts["all_tensors"])
    return chip.models


def _info(options: argparse.Namespace) -> None:
    answers, chip = _own_stdout(), Chip(folder=options.lib)
    found = {}
    for path in options.models:
        model = chip.load(path, path)
        sides = {"inputs": model.inputs, "outputs": model.outputs}
        found[path] = {side: [slot.facts() for slot in slots] for side, slots in sides.items()}
    print(json.dumps(found, indent=1), file=answers, flush=True)
    chip.close()


def _frames(options: argparse.Namespace) -> None:
    answer_frames(Chip(options.chip, options.lib), options.source, options.sink)


_COMMANDS = {"run": _run, "serve": _serve, "info": _info, "frames": _frames}


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="runner.pyz", description="Runs compiled models through the vendor's own runtime."
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    run_, serve_, info, frames = (
        commands.add_parser(name, help=text)
        for name, text in (
            ("run", "step a package's tokens, write a dump folder"),
            ("serve", "the keyboard demo's protocol on stdin and stdout"),
            ("info", "the tensors of models, as JSON"),
            ("frames", "models driven through two pipes"),
        )
    )
    for command in (run_, serve_):
        command.add_argument("package", help="folder that `parity board push` wrote")
        command.add_argument("--rounding", choices=ROUNDINGS, default="nearest", help="float32 to bfloat16")
        command.add_argument(
            "--object", metavar="MODULE:CLASS[:ARG]", help="the original device module, instead of a runtime"
        )
    run_.add_argument("--out", default="dump", help="folder of the dump, new or empty (dump)")
    run_.add_argument("--parent", type=int, metavar="FD", help="a pipe whose other end, closed, ends the run")
    info.add_argument("models", nargs="+", help=".cvimodel or .bmodel files")
    frames.add_argument("chip", help="models built for another one are refused")
    frames.add_argument("source", type=int, help="file descriptor that requests come from")
    frames.add_argument("sink", type=int, help="file descriptor that answers go to")
    for command in (run_, serve_, info, frames):
        command.add_argument("--lib", default="", help="folder of the vendor's libraries, if not found")
    return parser
