"""What a run that came from a dump says of itself: number format, what was undone, what it does not show."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from glob import escape
from typing import Any

from parity.harness.errors import UserError, did_you_mean
from parity.harness.target import Unobserved

from .core import Contents
from .formats import WORDS
from .recording import Summary

#: Number formats from the narrowest on: what a device computes in is at most as wide as what it keeps.
NARROWEST = ("int4", "uint4", "int8", "uint8", "float8_e4m3fn", "float8_e5m2", "bfloat16", "float16")
#: Where dumps say in which format the device computed.
PRECISION = ("precision", "mode", "dtype")


def computed_in(contents: Contents, stored: Mapping[str, int], asked: str | None) -> tuple[str, str]:
    """The number format that the device computed in, and the doubt about it in words; empty for none.

    `stored` are the formats of its tensors. What a person says goes before what the dump says, and that
    before the narrowest format in it.
    """
    if asked:
        if asked.lower() not in WORDS:
            raise UserError(f"dtype={asked!r}: unknown number format. {did_you_mean(asked, WORDS)}")
        return WORDS[asked.lower()], ""
    arithmetic = contents.facts.get("arithmetic")
    for said in (contents.facts, arithmetic if isinstance(arithmetic, Mapping) else {}):
        for name in PRECISION:
            word = said.get(name)
            if isinstance(word, str) and word.lower() in WORDS:
                return WORDS[word.lower()], ""
    found = next((name for name in NARROWEST if name in stored), "float32")
    return found, (
        f"the dump does not say in which number format the device computed; {found} was taken, the narrowest "
        "in it (say --dtype)"
    )


def substitutions(summary: Summary) -> list[str]:
    """What was undone."""
    said = [
        f"{count} records of {name} made real by their scales" for name, count in summary.dequantized.items()
    ]
    if summary.layouts_undone:
        said.append(f"{summary.layouts_undone} records had their padding to four dimensions undone")
    if summary.transformed:
        said.append(f"{summary.transformed} records were transformed as the map file declares")
    return said


def absent(
    places: Mapping[str, set[int]], known: Iterable[str], steps: Iterable[int]
) -> Iterator[Unobserved]:
    """Taps that have no record at all, and those that lack some of the case's steps."""
    every = set(steps)
    for tap in known:
        held = places.get(tap, set())
        if not held:
            yield Unobserved(escape(tap), "not in the dump")
        elif lacking := every - held:
            yield Unobserved(escape(tap), "not in the dump at these steps", tuple(sorted(lacking)))


def said_of_case(facts: Mapping[str, Any], name: str) -> str | None:
    """What a dump says of its model or weights; None where it says nothing."""
    provenance = facts.get("provenance")
    for said in (provenance if isinstance(provenance, Mapping) else {}, facts):
        found = said.get(name)
        if isinstance(found, str):
            return found
    return None
