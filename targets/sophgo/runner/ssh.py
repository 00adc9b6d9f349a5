"""Packages to a board and dumps back, through nothing but `ssh`, and a shell and `tar` on the board.

Small boards have neither scp's server nor rsync. Files travel as a tar stream that is made and read here;
what comes back is unpacked beside its place, checked, and renamed.
"""

from __future__ import annotations

import shlex
import shutil
import subprocess
import tarfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from parity.harness.errors import CandidateError, UserError

from .program import NAME

#: Where a package and its dump lie on the board, in the home folder of who logs in.
FOLDER = "parity-board"


@dataclass(frozen=True)
class Board:
    """A host as ssh knows it, and our folder on it."""

    host: str
    folder: str = FOLDER

    def __post_init__(self) -> None:
        if not self.host or self.host.startswith("-"):
            raise UserError(
                f"host={self.host!r}: is no host; give what you give to ssh, for example root@board"
            )
        if shutil.which("ssh") is None:
            raise UserError(
                "ssh: is not installed here; copy the package by hand and run its runner.pyz there"
            )

    def push(self, package: Path) -> None:
        """Bring a package; one that is there is replaced as a whole."""
        if not (package / "package.json").is_file():
            raise UserError(
                f"package={str(package)!r}: is no board package; `parity board package` writes one"
            )
        place = self._at("package")
        self._stream(
            f"rm -rf {place} && mkdir -p {place} && tar -xf - -C {place}",
            stdin=lambda pipe: _pack(package, pipe),
        )

    def run(self, *, python: str, lib: str, force: bool) -> None:
        """Step the package there; its words appear on stderr, what the libraries print stays on the board."""
        dump, log = self._at("dump"), self._at("runner.log")
        words = [python, f"{self.folder}/package/{NAME}", "run", f"{self.folder}/package"]
        words += ["--out", f"{self.folder}/dump", *(["--lib", lib] if lib else [])]
        clear = f"rm -rf {dump} && " if force else ""
        self._stream(f"{clear}{shlex.join(words)} > {log}")

    def fetch(self, out: Path) -> Path:
        """Bring the dump into the new folder `out`."""
        if out.exists() and (not out.is_dir() or any(out.iterdir())):
            raise UserError(f"out={str(out)!r}: is not an empty folder; two dumps cannot be told apart")
        beside = out.with_name(f".{out.name}.part")
        shutil.rmtree(beside, ignore_errors=True)
        try:
            beside.mkdir(parents=True)
            self._stream(f"tar -cf - -C {self._at('dump')} .", stdout=lambda pipe: _unpack(pipe, beside))
            if not (beside / "manifest.json").is_file():
                raise CandidateError(f"host={self.host}: {self.folder}/dump holds no dump; run it first")
            if out.exists():
                out.rmdir()
            beside.rename(out)
        finally:
            shutil.rmtree(beside, ignore_errors=True)
        return out

    def _at(self, name: str) -> str:
        return shlex.quote(f"{self.folder}/{name}")

    def _stream(
        self,
        command: str,
        *,
        stdin: Callable[[IO[bytes]], None] | None = None,
        stdout: Callable[[IO[bytes]], None] | None = None,
    ) -> None:
        """One command there; our side of its stdin or stdout is worked on here."""
        child = subprocess.Popen(
            ["ssh", self.host, command],
            stdin=subprocess.PIPE if stdin else subprocess.DEVNULL,
            stdout=subprocess.PIPE if stdout else None,
        )
        try:
            problem = _worked(stdin, child.stdin) or _worked(stdout, child.stdout)
            code = child.wait()
        finally:
            child.kill()
            child.wait()
        self._check(code, problem)

    def _check(self, code: int, problem: Exception | None) -> None:
        if code == 255:
            raise UserError(f"host={self.host}: ssh could not reach it; try `ssh {self.host} true`")
        if code == 130:
            raise KeyboardInterrupt
        if code:
            kind = UserError if code == 2 else CandidateError
            raise kind(f"host={self.host}: ended there with status {code}; the words above say why")
        if problem is not None:
            raise CandidateError(f"host={self.host}: the transfer broke off ({problem})") from problem


def _worked(work: Callable[[IO[bytes]], None] | None, pipe: IO[bytes] | None) -> Exception | None:
    """A broken stream is told by the other side's status first."""
    if work is None or pipe is None:
        return None
    try:
        with pipe:
            work(pipe)
    except (OSError, tarfile.TarError) as error:
        return error
    return None


def _pack(package: Path, pipe: IO[bytes]) -> None:
    with tarfile.open(fileobj=pipe, mode="w|", format=tarfile.USTAR_FORMAT) as archive:
        archive.add(package, arcname=".", filter=_anonymous)


def _anonymous(member: tarfile.TarInfo) -> tarfile.TarInfo:
    """The board's user owns what it unpacks."""
    member.uid = member.gid = 0
    member.uname = member.gname = ""
    return member


def _unpack(pipe: IO[bytes], folder: Path) -> None:
    """Regular files at the top, as a dump has; CandidateError for anything else, before it is written."""
    with tarfile.open(fileobj=pipe, mode="r|") as archive:
        for member in archive:
            path = Path(member.name)
            if path == Path() and member.isdir():
                continue
            source = archive.extractfile(member) if member.isreg() else None
            if source is None or path != Path(path.name) or path.name == "..":
                raise CandidateError(f"the board sent {member.name!r}, which is no file of a dump")
            with (folder / path.name).open("wb") as file:
                shutil.copyfileobj(source, file, 1 << 20)
