"""Absolute positions in words: runs, and whole pages of a cache where the run fills them."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import groupby
from typing import Any

import numpy as np

#: Rows of a page where a run records no other.
PAGE = 128
MAX_RUNS = 4

Array = np.ndarray[Any, Any]


def page_of(provenance: Mapping[str, Any]) -> int:
    """Rows of a page of a run's cache: its detail `page`, else PAGE."""
    page = provenance.get("details", {}).get("page", PAGE)
    return page if isinstance(page, int) and page > 0 else PAGE


def runs_of(places: Array) -> list[tuple[int, int]]:
    """First and last of each run of consecutive numbers."""
    groups = groupby(enumerate(places.tolist()), key=lambda pair: pair[1] - pair[0])
    runs = [[place for _, place in group] for _, group in groups]
    return [(run[0], run[-1]) for run in runs]


def runs_in_words(places: Array) -> str:
    """3, 16..510: at most MAX_RUNS runs, then how many places more."""
    runs = runs_of(places)
    shown = [str(first) if first == last else f"{first}..{last}" for first, last in runs[:MAX_RUNS]]
    rest = sum(last - first + 1 for first, last in runs[MAX_RUNS:])
    return ", ".join(shown) + (f" and {rest} more" if rest else "")


def places_in_words(places: Array, page: int | None, *, one: str, many: str) -> str:
    """`row 3`, `rows 16..510`, `page 2 (rows 256..383)`: pages are named where every run fills some."""
    word = one if places.size == 1 else many
    said = f"{word} {runs_in_words(places)}"
    pages = _pages(places, page) if page else None
    if pages is None:
        return said
    return f"page{'s' if pages.size > 1 else ''} {runs_in_words(pages)} ({said})"


def _pages(places: Array, page: int) -> Array | None:
    """The pages that the places fill; None when some page is filled in part."""
    if places.size < page or places.size % page:
        return None
    pages = np.unique(places // page)
    return pages if pages.size * page == places.size else None
