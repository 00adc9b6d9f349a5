"""`python -m worker convert|interpret|calibrate PACKAGE ...`."""

from __future__ import annotations

import sys

from . import package


def main() -> None:
    """Make the toolchain's modules importable, then do what was asked for."""
    what, root, *rest = sys.argv[1:]
    package.install(root)
    if what == "convert":
        from .convert import convert as work
    elif what == "interpret":
        from .interpret import interpret as work
    else:
        from .calibrate import calibrate as work
    work(rest)


main()
