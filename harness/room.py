"""Errors of the system that a person can mend: no room, a limit, a place that may not be written to."""

from __future__ import annotations

import errno
import os

from .errors import UserError

_PLACE = "name a place of yours that can be written to (--out, -o; PARITY_CACHE for the cache)"
_ROOM = "make room, or name a place on another disk (--out, -o; PARITY_CACHE for the cache)"
#: Number of the system's error -> what to do.
_REMEDIES = {
    errno.ENOSPC: _ROOM,
    errno.EDQUOT: _ROOM,
    errno.EFBIG: "files of this process may not grow that large: raise `ulimit -f`, or name another disk",
    errno.EROFS: _PLACE,
    errno.EACCES: f"change its permissions, or {_PLACE}",
    errno.EPERM: f"change its permissions, or {_PLACE}",
    errno.EIO: "the disk fails; name a place on another one",
    errno.ENAMETOOLONG: "name a shorter one",
    errno.EMFILE: "raise `ulimit -n`",
    errno.ENFILE: "close other programs",
}
#: What a program that is not Python prints of the first three.
_SAID = tuple(os.strerror(number) for number in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG))


def no_room(error: BaseException, place: str = "a file that is written or read") -> UserError | None:
    """The sentence for an error that the system's state caused; None for every other.

    `place` is what is blamed where the error names no file.
    """
    if not isinstance(error, OSError) or error.errno not in _REMEDIES:
        return None
    what = str(error.filename2 or error.filename or place)
    return UserError(f"{what}: {os.strerror(error.errno)}; {_REMEDIES[error.errno]}")


def said_no_room(text: str) -> str | None:
    """The system's words for a lack of room in what a program printed, and what to do; None without any."""
    found = next((said for said in _SAID if said in text), None)
    return found and f"{found}; {_REMEDIES[errno.EFBIG if found == _SAID[2] else errno.ENOSPC]}"
