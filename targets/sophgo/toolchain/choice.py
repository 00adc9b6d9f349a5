"""Which toolchain is used: one small file in the cache, written last."""

from __future__ import annotations

import json
import os
import re
from contextlib import suppress
from pathlib import Path
from typing import Any

from parity.harness.errors import UserError
from parity.harness.folders import cache_folder

from .toolchain import Toolchain

REMEDY = "`parity toolchain install tpu-mlir` installs one, `parity toolchain use PATH` adopts one"


def folder() -> Path:
    """Where everything of the toolchains lies."""
    return cache_folder().absolute() / "toolchains"


def choice_file() -> Path:
    """What `installed` reads."""
    return folder() / "tpu-mlir.json"


def failure_file() -> Path:
    """Why the last install failed; gone after one that did not."""
    return folder() / "tpu-mlir.failed"


def keep_failure(error: UserError) -> None:
    """Keep what was wrong, without what to do about it: the first clause of the error."""
    with suppress(OSError):
        failure_file().write_text(re.split(r"; |\. ", str(error))[0], encoding="utf-8")


def installed() -> Toolchain:
    """The chosen toolchain; UserError with the remedy where there is none."""
    facts = read_choice()
    if facts is None:
        raise UserError(f"toolchain=tpu-mlir: is not installed; {_last_failure()}{REMEDY}")
    toolchain = from_facts(facts)
    for part in (toolchain.package / "bin" / "tpuc-opt", toolchain.python):
        if part is not None and not part.exists():
            raise UserError(f"toolchain={str(toolchain.root)!r}: {part} is gone; {REMEDY}")
    return toolchain


def _last_failure() -> str:
    try:
        return f"the last install failed: {failure_file().read_text(encoding='utf-8')}; "
    except OSError:
        return ""


def why_missing() -> str | None:
    """One sentence, or None when there is a toolchain."""
    try:
        installed()
    except UserError as error:
        return str(error)
    return None


def from_facts(facts: dict[str, Any]) -> Toolchain:
    """What a choice file says."""
    return Toolchain(
        root=Path(facts["root"]),
        package=Path(facts["package"]),
        python=Path(facts["python"]) if facts["python"] else None,
        version=facts["version"],
        adopted=facts["adopted"],
    )


def to_facts(toolchain: Toolchain) -> dict[str, Any]:
    """What a choice file says about it."""
    return {
        "root": str(toolchain.root),
        "package": str(toolchain.package),
        "python": str(toolchain.python) if toolchain.python else None,
        "version": toolchain.version,
        "adopted": toolchain.adopted,
    }


def read_choice() -> dict[str, Any] | None:
    """What `use` or `install` chose; None where nothing was."""
    return read_facts(choice_file())


def write_choice(facts: dict[str, Any]) -> None:
    """Choose a toolchain."""
    write_facts(choice_file(), facts)


def read_facts(path: Path) -> dict[str, Any] | None:
    """A file's contents; None where there is none. UserError for one that was damaged."""
    try:
        facts = json.loads(path.read_text(encoding="utf-8"))
        _check(facts)
    except FileNotFoundError:
        return None
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise UserError(f"{path}: cannot be read ({error}); delete it, then {REMEDY}") from error
    assert isinstance(facts, dict)
    return facts


def _check(facts: Any) -> None:
    from_facts(facts)
    if lacking := [name for name in ("probe", "selftest", "bytes") if name not in facts]:
        raise ValueError(f"it lacks {', '.join(lacking)}")


def write_facts(path: Path, facts: dict[str, Any]) -> None:
    """Beside, to the disk, then renamed: it says all or nothing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    with beside.open("w", encoding="utf-8") as file:
        json.dump(facts, file, indent=2)
        file.flush()
        os.fsync(file.fileno())
    beside.replace(path)
