"""A package on the simulator of its chip, by the very program that is in it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from parity.harness.errors import CandidateError, UserError
from parity.harness.progress import Progress

from ..toolchain import Toolchain
from . import chatter
from .program import NAME

#: What `serve` begins with when it says why it cannot answer a line.
_SENTENCE = b"serve: "


def simulate(package: Path, out: Path, toolchain: Toolchain, *, log: Path, progress: Progress) -> Path:
    """Step a package here, dump into the new folder `out`; what the libraries print goes to the log.

    The child ends with this process, however that ends.
    """
    facts = _facts(package)
    watched, ours = os.pipe()
    arguments = ["run", str(package), "--out", str(out), "--parent", str(watched)]
    try:
        with log.open("wb") as file, progress.stage("simulating", len(facts["steps"])) as bar:
            child = _child(
                package, toolchain, log, arguments, file, pass_fds=(watched,), stderr=subprocess.PIPE
            )
            with child:
                assert child.stderr is not None
                for line in child.stderr:
                    file.write(line)
                    file.flush()
                    if line.startswith(b"step "):
                        bar.advance()
    finally:
        os.close(watched)
        os.close(ours)
    _check(package, child.returncode, log)
    return out


def serve(package: Path, toolchain: Toolchain, *, log: Path) -> None:
    """The keyboard's protocol on this process's stdin and stdout; the child ends when stdin does.

    What it says of a line that it cannot answer goes to stderr at once, what the libraries print to the log.
    """
    with log.open("wb") as file:
        child = _child(package, toolchain, log, ["serve", str(package)], None, stderr=subprocess.PIPE)
        with child:
            assert child.stderr is not None
            for line in child.stderr:
                file.write(line)
                file.flush()
                _pass_on(line)
    _check(package, child.returncode, log)


def _pass_on(line: bytes) -> None:
    """A sentence of the program's own, also where a library left a line unfinished before it."""
    at = line.find(_SENTENCE)
    if at >= 0:
        print(line[at:].decode("utf-8", "replace").rstrip(), file=sys.stderr, flush=True)


def _child(
    package: Path, toolchain: Toolchain, log: Path, arguments: list[str], stdout: Any, **streams: Any
) -> subprocess.Popen[bytes]:
    environment = toolchain.environment(_facts(package)["chip"], log.parent / f"{log.stem}-work")
    return subprocess.Popen(
        [sys.executable, "-I", "-S", str(package.absolute() / NAME), *arguments],
        stdout=stdout, env=environment, **streams,
    )  # fmt: skip


def _facts(package: Path) -> dict[str, Any]:
    try:
        facts: dict[str, Any] = json.loads((package / "package.json").read_text())
        return {"chip": str(facts["chip"]), "steps": list(facts["steps"])}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"package={str(package)!r}: is no board package; `parity board package` writes one"
        ) from error


def _check(package: Path, code: int, log: Path) -> None:
    if code == 130:
        raise KeyboardInterrupt
    if code == 2:
        raise UserError(f"{chatter.last(log, 'runner: ')}; log: {log}")
    if code:
        raise CandidateError(
            f"package={str(package)!r}: {chatter.ending(code)}{chatter.reason(log, 0)}; log: {log}"
        )
