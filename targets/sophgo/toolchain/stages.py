"""The stages of an install: children that hold the lock, each with a bar of megabytes and one log."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

from parity.harness.errors import UserError
from parity.harness.progress import Progress

from .children import run_logged
from .choice import folder
from .packages import size_of

#: What a Python or a pip of the caller must not pass on to the one that installs.
_DROPPED = ("PYTHON", "PIP_TARGET", "PIP_PREFIX", "PIP_ROOT", "PIP_USER", "VIRTUAL_ENV", "LD_", "CONDA_")
_MEGA = 1_000_000
_BROKEN = re.compile(r"(?<=\] )[^'\[\]()]+|timed out|certificate verify failed")


class Stages:
    """Runs one after another; `progress` draws, `log` keeps what the children say."""

    def __init__(self, lock: int, progress: Progress) -> None:
        self._lock, self.progress = lock, progress
        self.log = folder() / "install.log"
        self.log.unlink(missing_ok=True)
        shutil.rmtree(_temporary(), ignore_errors=True)

    def run(
        self,
        title: str,
        argv: Sequence[str | Path],
        *,
        watched: tuple[Path, ...],
        expected: int,
        extra: Mapping[str, str] | None = None,
    ) -> None:
        """Run `argv` while the bytes in the folders `watched` grow by `expected`.

        UserError with pip's own reason for any status but 0.
        """
        begin, total, shown = _sizes(watched), max(expected // _MEGA, 1), 0
        with self.progress.stage(title, total) as bar:

            def advance(to: int) -> None:
                nonlocal shown
                bar.advance(max(to - shown, 0))
                shown = max(to, shown)

            status = run_logged(
                argv, env={**_environment(), **(extra or {})}, log=self.log, keep=(self._lock,),
                tick=lambda: advance(min((_sizes(watched) - begin) // _MEGA, total - 1)),
            )  # fmt: skip
            if status:
                raise UserError(
                    f"toolchain=tpu-mlir: {title} failed: {last_words(self.log)}; log: {self.log}"
                )
            advance(total)


def _temporary() -> Path:
    return folder() / "tmp"


def _sizes(folders: tuple[Path, ...]) -> int:
    return sum(map(size_of, (*folders, _temporary())))


def _environment() -> dict[str, str]:
    """The caller's, since pip's registry and proxies may be told there; temporary files lie in the cache."""
    _temporary().mkdir(parents=True, exist_ok=True)
    kept = {name: value for name, value in os.environ.items() if not name.startswith(_DROPPED)}
    return {**kept, "TMPDIR": str(_temporary()), "PIP_NO_INPUT": "1", "PIP_DISABLE_PIP_VERSION_CHECK": "1"}


def last_words(log: Path) -> str:
    """What pip called an error, or the last line.

    A registry that does not answer is for pip one that has nothing; why it did not is in a warning before.
    """
    lines = [line.strip() for line in log.read_text(encoding="utf-8", errors="replace").splitlines()]
    errors = [line.removeprefix("ERROR: ") for line in lines if line.startswith("ERROR: ")]
    broken = [_BROKEN.search(line) for line in lines if "connection broken by" in line]
    reasons = [f"the registry does not answer ({found[0]})" for found in broken if found][-1:]
    said = "; ".join([*reasons, *errors[-2:]])
    return said or next((line for line in reversed(lines) if line), "no reason was given")
