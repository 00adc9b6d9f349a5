"""`parity toolchain install`: an environment of its own in the cache, resumed or made anew after a kill."""

from __future__ import annotations

import os
import shutil
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from parity.harness.errors import UserError
from parity.harness.progress import Progress

from .children import run_logged
from .choice import failure_file, folder, from_facts, read_facts, to_facts, write_choice, write_facts
from .hostlibs import host
from .interpreter import find_python
from .lock import locked
from .packages import COMPILER_BYTES, INSTALLED_BYTES, OTHERS_BYTES, VERSION, requirements, size_of
from .probe import probe
from .toolchain import Toolchain

#: Written last into an environment's folder; one without it was left by a kill.
MARKER = "installed.json"
#: What a Python or a pip of the caller must not pass on to the one that installs.
_DROPPED = ("PYTHON", "PIP_TARGET", "PIP_PREFIX", "PIP_ROOT", "PIP_USER", "VIRTUAL_ENV", "LD_", "CONDA_")
_MEGA = 1_000_000


@dataclass(frozen=True)
class Request:
    """What to install, and from where: `wheels` a folder, `index` a registry's URL, else what pip is told."""

    python: str | None = None
    wheels: Path | None = None
    index: str | None = None
    version: str = VERSION
    force: bool = False


def root_of(version: str) -> Path:
    """Where the environment of a version lies."""
    return folder() / f"tpu-mlir-{version}"


def half_made() -> list[Path]:
    """Environments that a kill left."""
    return [path for path in sorted(folder().glob("tpu-mlir-*/")) if not (path / MARKER).is_file()]


def install(request: Request, progress: Progress) -> Toolchain:
    """Install and choose a version; one that is there already is only chosen.

    Raises UserError: no Python 3.10, no space, a host that is too old, what pip says.
    """
    with locked(progress.say) as lock:
        root = root_of(request.version)
        if (root / MARKER).is_file() and not request.force:
            progress.say(f"{root}: is there already; --force makes it anew")
        else:
            _make_or_say(request, root, _Children(lock, progress))
        facts = read_facts(root / MARKER)
        assert facts is not None
        write_choice(facts)
        return from_facts(facts)


def _make_or_say(request: Request, root: Path, children: _Children) -> None:
    """Make it; the reason of a failure is kept for whoever asks later why there is none."""
    try:
        _make(request, root, children)
    except UserError as error:
        with suppress(OSError):
            failure_file().write_text(str(error), encoding="utf-8")
        raise
    failure_file().unlink(missing_ok=True)


def _make(request: Request, root: Path, children: _Children) -> None:
    if problems := host().problems():
        raise UserError("; ".join(problems))
    python, _ = find_python(request.python)
    wheels = _check_wheels(request)
    _clear(root, children.progress)
    if problem := space_problem(downloads=wheels is None):
        raise UserError(problem)
    _environment(python, root, children)
    if wheels is None:
        wheels = folder() / "wheels"
        _download(request, root, wheels, children)
    _fill(request, root, wheels, children)
    write_facts(root / MARKER, _examined(root, python))
    shutil.rmtree(folder() / "wheels", ignore_errors=True)


def _check_wheels(request: Request) -> Path | None:
    """The folder of wheels, if one was named and holds the compiler."""
    if request.wheels is None:
        return None
    wheels = request.wheels.expanduser().absolute()
    if not wheels.is_dir():
        raise UserError(f"wheels={str(request.wheels)!r}: is not a folder")
    held = sorted(path.name for path in wheels.glob("tpu_mlir-*.whl"))
    if not any(name.startswith(f"tpu_mlir-{request.version}-") for name in held):
        raise UserError(
            f"wheels={str(request.wheels)!r}: holds {', '.join(held) or 'no tpu_mlir wheel'}, "
            f"but version {request.version} is wanted; --version names another"
        )
    return wheels


def _clear(root: Path, progress: Progress) -> None:
    """Remove what a kill left, or what is to be made anew; the marker goes first."""
    for path in {root, *half_made()}:
        if path.exists():
            word = (
                "made anew" if (path / MARKER).is_file() else "was left half-made by an interrupted install"
            )
            progress.say(f"{path}: {word}; removed")
            (path / MARKER).unlink(missing_ok=True)
            shutil.rmtree(path)


def space_problem(*, downloads: bool) -> str | None:
    """One sentence where the cache's disk has no room for an install; what was downloaded already counts."""
    nearest = next(path for path in (folder(), *folder().parents) if path.exists())
    there = size_of(folder() / "wheels")
    needed = INSTALLED_BYTES + (max(COMPILER_BYTES + OTHERS_BYTES - there, 0) if downloads else 0)
    free = shutil.disk_usage(nearest).free
    if free >= needed:
        return None
    return (
        f"cache={str(folder())!r}: {free / 1e9:.2f} GB are free, installing needs {needed / 1e9:.2f} GB; "
        "make room, or set PARITY_CACHE to a folder on another disk"
    )


class _Children:
    """Runs one stage after another as children that hold the lock, with a bar of megabytes."""

    def __init__(self, lock: int, progress: Progress) -> None:
        self._lock, self.progress = lock, progress
        self.log = folder() / "install.log"
        self.log.unlink(missing_ok=True)

    def run(self, title: str, argv: list[str | Path], watched: tuple[Path, ...], expected: int) -> None:
        """UserError with pip's own reason for any status but 0."""
        begin, total = _sizes(watched), max(expected // _MEGA, 1)
        shown = 0
        with self.progress.stage(title, total) as bar:

            def advance(to: int) -> None:
                nonlocal shown
                bar.advance(max(to - shown, 0))
                shown = max(to, shown)

            status = run_logged(
                argv, env=_environment_of_pip(), log=self.log, keep=(self._lock,),
                tick=lambda: advance(min((_sizes(watched) - begin) // _MEGA, total - 1)),
            )  # fmt: skip
            if status:
                raise UserError(
                    f"toolchain=tpu-mlir: {title} failed: {_last_words(self.log)}; log: {self.log}"
                )
            advance(total)


def _sizes(folders: tuple[Path, ...]) -> int:
    return sum(map(size_of, folders))


def _environment_of_pip() -> dict[str, str]:
    """The caller's, since pip's registry and proxies may be told there; temporary files lie in the cache."""
    temporary = folder() / "tmp"
    temporary.mkdir(parents=True, exist_ok=True)
    kept = {name: value for name, value in os.environ.items() if not name.startswith(_DROPPED)}
    return {**kept, "TMPDIR": str(temporary), "PIP_NO_INPUT": "1", "PIP_DISABLE_PIP_VERSION_CHECK": "1"}


def _last_words(log: Path) -> str:
    """What pip called an error, or the last line."""
    lines = [line.strip() for line in log.read_text(encoding="utf-8", errors="replace").splitlines()]
    errors = [line.removeprefix("ERROR: ") for line in lines if line.startswith("ERROR: ")]
    return "; ".join(errors[-2:]) or next((line for line in reversed(lines) if line), "no reason was given")


def _environment(python: Path, root: Path, children: _Children) -> None:
    children.run(f"environment of {python}", [python, "-I", "-m", "venv", root], (root,), 25 * _MEGA)


def _pip(root: Path, word: str) -> list[str | Path]:
    flags = ["--no-deps", "--only-binary=:all:", "--no-cache-dir", "--progress-bar=off"]
    return [root / "bin" / "python", "-I", "-m", "pip", word, *flags]


def _download(request: Request, root: Path, wheels: Path, children: _Children) -> None:
    """Into a folder that outlives a kill, so that what has come is not fetched again.

    One pip for the compiler and one for the rest: pip lets go of its files only when it has all of them.
    """
    wheels.mkdir(parents=True, exist_ok=True)
    compiler, *others = requirements(request.version)
    index = ["--index-url", request.index] if request.index else []
    argv = [*_pip(root, "download"), *index, "-d", wheels]
    watched = (wheels, folder() / "tmp")
    children.run(f"download of {compiler}", [*argv, compiler], watched, COMPILER_BYTES)
    children.run(f"download of {len(others)} packages", [*argv, *others], watched, OTHERS_BYTES)


def _fill(request: Request, root: Path, wheels: Path, children: _Children) -> None:
    argv = [*_pip(root, "install"), "--no-index", "--find-links", wheels, *requirements(request.version)]
    children.run(f"unpacking of tpu_mlir {request.version}", argv, (root,), INSTALLED_BYTES)
    shutil.rmtree(folder() / "tmp", ignore_errors=True)


def _examined(root: Path, python: Path) -> dict[str, object]:
    """The facts of a new environment; UserError if its compiler or bindings do not start."""
    own = root / "bin" / "python"
    package = root / "lib" / "python3.10" / "site-packages" / "tpu_mlir"
    found = probe(Toolchain(root, package, own, "", adopted=False))
    for what, reason in (("tpuc-opt", found.compiler), ("the bindings", found.bindings)):
        if reason:
            raise UserError(f"toolchain={str(root)!r}: was unpacked, but {what} does not start: {reason}")
    toolchain = Toolchain(root, package, own, found.version, adopted=False)
    return {
        **to_facts(toolchain),
        "made_by": str(python),
        "bytes": size_of(root),
        "probe": asdict(found),
        "selftest": None,
    }
