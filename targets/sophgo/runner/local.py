"""A package on the simulator of its chip, by the very program that is in it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from parity.harness.errors import CandidateError, UserError

from ..toolchain import Toolchain
from . import chatter
from .program import NAME


def simulate(package: Path, out: Path, toolchain: Toolchain, *, log: Path) -> Path:
    """Step a package here, dump into the new folder `out`; what the libraries print goes to the log."""
    watched, ours = os.pipe()
    try:
        arguments = ["run", str(package), "--out", str(out), "--parent", str(watched)]
        _check(package, _start(package, toolchain, log, arguments, pass_fds=(watched,)), log)
    finally:
        os.close(watched)
        os.close(ours)
    return out


def serve(package: Path, toolchain: Toolchain, *, log: Path) -> None:
    """The keyboard's protocol on this process's stdin and stdout."""
    _check(package, _start(package, toolchain, log, ["serve", str(package)], stdout=None), log)


def _start(
    package: Path, toolchain: Toolchain, log: Path, arguments: list[str], **streams: Any
) -> subprocess.CompletedProcess[bytes]:
    """Runs to the end, or ends with this process."""
    chip = _chip(package)
    workdir = log.parent / f"{log.stem}-work"
    environment = toolchain.environment(chip, workdir)
    with log.open("wb") as file:
        return subprocess.run(
            [sys.executable, "-I", "-S", str(package.absolute() / NAME), *arguments],
            **{"stdout": file, "stderr": file, **streams}, env=environment, check=False,
        )  # fmt: skip


def _chip(package: Path) -> str:
    try:
        facts = json.loads((package / "package.json").read_text())
        return str(facts["chip"])
    except (OSError, ValueError, KeyError) as error:
        raise UserError(
            f"package={str(package)!r}: is no board package; `parity board package` writes one"
        ) from error


def _check(package: Path, done: subprocess.CompletedProcess[bytes], log: Path) -> None:
    if done.returncode == 130:
        raise KeyboardInterrupt
    if done.returncode == 2:
        raise UserError(f"{chatter.last(log, 'runner: ')}; log: {log}")
    if done.returncode:
        raise CandidateError(
            f"package={str(package)!r}: {chatter.ending(done.returncode)}{chatter.reason(log, 0)}; log: {log}"
        )
