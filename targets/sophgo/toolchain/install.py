"""`parity toolchain install`: an environment of its own in the cache, resumed or made anew after a kill."""

from __future__ import annotations

import shutil
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

from parity.harness.errors import UserError
from parity.harness.progress import Progress

from .choice import (
    failure_file,
    folder,
    from_facts,
    keep_failure,
    read_facts,
    to_facts,
    write_choice,
    write_facts,
)
from .hostlibs import host
from .interpreter import find_python
from .lock import locked
from .packages import INSTALLED_BYTES, UNPACKED_BYTES, VENV_BYTES, VERSION, requirements, size_of
from .probe import probe
from .stages import Stages
from .toolchain import Toolchain
from .wheels import FLAGS, bytes_to_fetch, fetch, fetched, find, given

#: Written last into an environment's folder; one without it was left by a kill.
MARKER = "installed.json"


@dataclass(frozen=True)
class Request:
    """What to install, and from where: `wheels` a folder, `index` a registry's URL, else what pip is told.

    `without_converter`: no Python 3.10 is looked for; what was compiled elsewhere can be simulated.
    """

    python: str | None = None
    wheels: Path | None = None
    index: str | None = None
    version: str = VERSION
    without_converter: bool = False
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
        facts = read_facts(root / MARKER)
        if facts is None or request.force or not (facts["python"] or request.without_converter):
            facts = _make_or_say(request, root, Stages(lock, progress))
        else:
            progress.say(f"{root}: is there already; --force makes it anew")
        write_choice(facts)
        return from_facts(facts)


def _make_or_say(request: Request, root: Path, stages: Stages) -> dict[str, object]:
    """Make it; the reason of a failure is kept for whoever asks later why there is none.

    Half an environment is removed, downloads stay.
    """
    try:
        facts = _make(request, root, stages)
    except BaseException as error:
        if not (root / MARKER).is_file():
            shutil.rmtree(root, ignore_errors=True)
        if isinstance(error, UserError):
            keep_failure(error)
        raise
    failure_file().unlink(missing_ok=True)
    return facts


def _make(request: Request, root: Path, stages: Stages) -> dict[str, object]:
    if problems := host().problems():
        raise UserError("; ".join(problems))
    python = None if request.without_converter else find_python(request.python)[0]
    wheels = given(request.wheels, request.version) if request.wheels else None
    _clear(root, stages.progress)
    if problem := space_problem(downloads=wheels is None):
        raise UserError(problem)
    own = _environment(python, root, stages) if python else None
    wanted = requirements(request.version)
    wheels = wheels or fetch(own, wanted if own else wanted[:1], request.index, stages)
    _fill(own, root, wheels, wanted, stages)
    facts = {**_examined(root, own), "made_by": str(python) if python else None}
    write_facts(root / MARKER, facts)
    for left in (fetched(), folder() / "tmp"):
        shutil.rmtree(left, ignore_errors=True)
    return facts


def _clear(root: Path, progress: Progress) -> None:
    """Remove what a kill left, or what is to be made anew; the marker goes first."""
    for path in {root, *half_made()}:
        if path.exists():
            whole = (path / MARKER).is_file()
            reason = "is made anew" if whole else "was left half-made by an interrupted install; removed"
            progress.say(f"{path}: {reason}")
            (path / MARKER).unlink(missing_ok=True)
            shutil.rmtree(path)


def space_problem(*, downloads: bool) -> str | None:
    """One sentence where the cache's disk has no room for an install; what was downloaded already counts."""
    nearest = next(path for path in (folder(), *folder().parents) if path.exists())
    needed = INSTALLED_BYTES + (bytes_to_fetch() if downloads else 0)
    free = shutil.disk_usage(nearest).free
    if free >= needed:
        return None
    return (
        f"cache={str(folder())!r}: {free / 1e9:.2f} GB are free, installing needs {needed / 1e9:.2f} GB; "
        "make room, or set PARITY_CACHE to a folder on another disk"
    )


def _environment(python: Path, root: Path, stages: Stages) -> Path:
    argv = [str(python), "-I", "-m", "venv", str(root)]
    stages.run(f"environment of {python}", argv, watched=(root,), expected=VENV_BYTES)
    return root / "bin" / "python"


def _site(root: Path) -> Path:
    return root / "lib" / "python3.10" / "site-packages"


def _fill(own: Path | None, root: Path, wheels: Path, wanted: list[str], stages: Stages) -> None:
    """By pip into the environment; without one the compiler's wheel is unpacked as the archive that it is."""
    compiler = find(wheels, wanted[0])
    assert compiler is not None
    if own:
        source = ("--no-index", "--find-links", str(wheels))
        argv = [str(own), "-I", "-m", "pip", "install", *FLAGS, *source, *wanted]
        stages.run(f"unpacking of {wanted[0]}", argv, watched=(root,), expected=INSTALLED_BYTES)
        return
    argv = [sys.executable, "-I", "-m", "zipfile", "-e", str(compiler), str(_site(root))]
    stages.run(f"unpacking of {wanted[0]}", argv, watched=(root,), expected=UNPACKED_BYTES)
    for path in (_site(root) / "tpu_mlir").glob("**/bin/*"):
        path.chmod(path.stat().st_mode | 0o111)


def _examined(root: Path, own: Path | None) -> dict[str, object]:
    """The facts of a new environment; UserError if its compiler or bindings do not start."""
    toolchain = Toolchain(root, _site(root) / "tpu_mlir", own, "", adopted=False)
    found = probe(toolchain)
    for what, reason in (("tpuc-opt", found.compiler), ("the bindings", found.bindings if own else None)):
        if reason:
            raise UserError(f"toolchain={str(root)!r}: was unpacked, but {what} does not start: {reason}")
    facts = to_facts(Toolchain(root, toolchain.package, own, found.version, adopted=False))
    return {**facts, "bytes": size_of(root), "probe": asdict(found), "selftest": None}
