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

#: Words for arithmetic that are no plain format: modes of compilers -> float format or quantization profile.
ARITHMETIC = {
    "int8": "w8a8",
    "uint8": "w8a8",
    "w8a8": "w8a8",
    "w8a16": "w8a16",
    "w4a16": "w4a16",
    "w8f16": "w8a16",
    "w8bf16": "w8a16",
    "w4f16": "w4a16",
    "w4bf16": "w4a16",
    "force_fp16": "float16",
    "force_fp32": "float32",
}
#: Stored formats from the narrowest on: what a device computes in is at most as wide as what it keeps.
NARROWEST = ("int8", "uint8", "bfloat16", "float16")
#: Where dumps say in which format the device computed.
PRECISION = ("precision", "mode", "dtype")


def computed_in(contents: Contents, summary: Summary, asked: str | None) -> tuple[str, str]:
    """The number format that the device computed in, and the doubt about it in words; empty for none.

    What a person says goes before what the dump says, and that before the narrowest format in it. Integers
    count where they have a scale: token ids have none.
    """
    if asked:
        known = {**WORDS, **ARITHMETIC}
        if asked.lower() not in known:
            raise UserError(f"dtype={asked!r}: unknown number format. {did_you_mean(asked, known)}")
        return known[asked.lower()], ""
    stated = contents.facts.get("arithmetic")
    for said in (contents.facts, stated if isinstance(stated, Mapping) else {}):
        for word in (str(said.get(name)).lower() for name in PRECISION):
            if word in ARITHMETIC or word in WORDS:
                return ARITHMETIC.get(word) or WORDS[word], ""
    held = {*summary.dequantized, *(name for name in summary.dtypes if "float" in name)}
    narrow = next((name for name in NARROWEST if name in held), "float32")
    found = ARITHMETIC.get(narrow, narrow)
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


def artefacts_of(facts: Mapping[str, Any]) -> dict[str, str]:
    """SHA-256 of the compiled model of each segment, as far as the dump says it."""
    models = facts.get("models")
    said = models.items() if isinstance(models, Mapping) else ()
    digests = {str(name): model.get("sha256") for name, model in said if isinstance(model, Mapping)}
    return {name: digest for name, digest in digests.items() if isinstance(digest, str)}
