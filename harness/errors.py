"""What can go wrong, and the exit status that says so (DESIGN section 8)."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class ParityError(Exception):
    """Base of every error that a person should read as one paragraph, without a traceback."""

    exit_code = 70


class UserError(ParityError):
    """Usage, environment or data: `name=value`, what is wrong, what to do."""

    exit_code = 2


class InconclusiveError(ParityError):
    """Nothing, or too little, could be compared; never a pass."""

    exit_code = 3


class CandidateError(ParityError):
    """A candidate failed to run."""

    exit_code = 4


def did_you_mean(word: str, options: Iterable[str], *, limit: int = 3) -> str:
    """The tail of an error message: the nearest known names, or all of them when there are few."""
    known = list(options)
    near = difflib.get_close_matches(word, known, n=limit, cutoff=0.5)
    if near:
        return f"Did you mean {' or '.join(repr(name) for name in near)}?"
    if not known:
        return "There are none."
    shown = ", ".join(known[:12]) + (" ..." if len(known) > 12 else "")
    return f"Known: {shown}."
