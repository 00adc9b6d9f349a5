"""The command line."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from .chip import Chip
from .frames import answer_frames


def main(arguments: Sequence[str]) -> int:
    """Run a sub-command; returns the exit status."""
    chip = Chip(arguments[1])
    answer_frames(chip, int(arguments[2]), int(arguments[3]))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
