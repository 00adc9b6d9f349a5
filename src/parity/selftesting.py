"""`parity.selftest`: what this checkout's planted bugs and harmless changes say of it."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from parity.harness.errors import UserError
from parity.harness.progress import Progress, Silent


def selftest(
    names: str = "*",
    *,
    cand: Sequence[str] = (),
    full: bool = False,
    seed: int = 0,
    progress: Progress | None = None,
) -> Any:
    """Plant the bugs and make the harmless changes that a glob names; the score of what was said of them.

    `cand` keeps to these targets, `full` takes every target that a patch applies to, `seed` draws the few
    further ones of a plain run. The result has `.bugs`, `.harmless`, `.missed_aims()` and `.to_json()`.
    Raises UserError without the source checkout, or where nothing is chosen.
    """
    folder = _tests()
    before = list(sys.path)
    sys.path.insert(0, str(folder))
    try:
        session = import_module("mutations.session")
        with tempfile.TemporaryDirectory(prefix="parity-selftest-") as work:
            score = session.run(
                Path(work),
                names=names,
                cands=tuple(cand),
                full=full,
                seed=seed,
                progress=progress or Silent(),
            )
    finally:
        sys.path[:] = before
    if not (score.bugs or score.harmless):
        raise UserError(f"selftest: nothing of the catalogue is named {names!r}" + _on(cand))
    return score


def lines(score: Any) -> list[str]:
    """The score as text: the table, what was missed, what was flagged, what nobody can detect."""
    found: list[str] = import_module("mutations.table").lines(score)
    return found


def _tests() -> Path:
    """The folder of the catalogue, beside the sources."""
    folder = Path(__file__).resolve().parents[2] / "tests"
    if not (folder / "mutations" / "session.py").is_file():
        raise UserError(
            "selftest: the planted bugs lie in tests/mutations of the source checkout, which an installed "
            "package does not have; run it from a checkout that is installed with pip install -e"
        )
    return folder


def _on(cand: Sequence[str]) -> str:
    return f" on {', '.join(cand)}" if cand else ""
