"""The wheels of an install: from a folder that was named, or fetched by pip into one that outlives a kill."""

from __future__ import annotations

import os
import re
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from parity.harness.errors import UserError

from .choice import folder
from .packages import COMPILER_BYTES, OTHERS_BYTES, VERSION, size_of
from .stages import Stages

#: Of any pip: wheels alone, what is asked for alone, nothing in the user's own pip cache.
FLAGS = ("--no-deps", "--only-binary=:all:", "--no-cache-dir", "--progress-bar=off")
#: For this Python's pip, where there is no 3.10 whose pip could be asked.
_FOR_310 = ("--python-version=3.10", "--implementation=cp")


def fetched() -> Path:
    """Where wheels wait; removed when an install ends well."""
    return folder() / "wheels"


def bytes_to_fetch() -> int:
    """What of the usual set is not there yet."""
    return max(COMPILER_BYTES + OTHERS_BYTES - size_of(fetched()), 0)


def given(wheels: Path, version: str) -> Path:
    """A folder that was named. UserError if it does not hold the compiler."""
    path = wheels.expanduser().absolute()
    if not path.is_dir():
        raise UserError(f"wheels={str(wheels)!r}: is not a folder")
    held = sorted(one.name for one in path.glob("tpu_mlir-*.whl"))
    if find(path, f"tpu_mlir=={version}") is None:
        raise UserError(
            f"wheels={str(wheels)!r}: holds {', '.join(held) or 'no tpu_mlir wheel'}, "
            f"but version {version} is wanted{'; --version names another' if version == VERSION else ''}"
        )
    return path


def find(wheels: Path, requirement: str) -> Path | None:
    """The wheel of `name==version` in a folder."""
    name, _, version = requirement.partition("==")
    stem = f"{re.sub(r'[-_.]+', '_', name)}-{version}-"
    return next((path for path in sorted(wheels.glob("*.whl")) if path.name.startswith(stem)), None)


def fetch(python: Path | None, requirements: Sequence[str], index: str | None, stages: Stages) -> Path:
    """Fetch what is not there yet, by the pip of `python`, or by this Python's where there is no 3.10.

    The compiler, four fifths of the bytes, has a pip of its own: one lets go of its files only when it has
    all of them. `index` is handed over in the environment: it may hold a password.
    """
    compiler, *others = requirements
    for wanted, expected in (([compiler], COMPILER_BYTES), (others, OTHERS_BYTES)):
        absent = [requirement for requirement in wanted if find(fetched(), requirement) is None]
        if absent:
            _fetch(python, absent, index, expected, stages)
    return fetched()


def _fetch(
    python: Path | None, requirements: list[str], index: str | None, expected: int, stages: Stages
) -> None:
    """Beside, then renamed: what lies among the wheels is whole."""
    beside = fetched() / "incomplete"
    shutil.rmtree(beside, ignore_errors=True)
    beside.mkdir(parents=True)
    what = requirements[0] if len(requirements) == 1 else f"{len(requirements)} packages"
    argv = [python or sys.executable, "-I", "-m", "pip", "download", *FLAGS, *(() if python else _FOR_310)]
    stages.run(
        f"download of {what}", [*argv, "-d", beside, *requirements], watched=(beside,), expected=expected,
        extra={"PIP_INDEX_URL": index} if index else None,
    )  # fmt: skip
    for path in beside.iterdir():
        os.replace(path, fetched() / path.name)
    beside.rmdir()
