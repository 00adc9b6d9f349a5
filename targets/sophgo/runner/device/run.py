"""Steps a package's tokens and dumps what the segments show."""

from __future__ import annotations

import os
import platform
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any

from .dump import Dump
from .files import Package, digest
from .loop import Loop
from .numbers import largest
from .tensors import Failure, Model


def run(
    package: Package,
    models: Mapping[str, Model],
    out: str,
    *,
    rounding: str = "nearest",
    say: Callable[[str], None] = print,
) -> None:
    """Every step of the package, forced where it has tokens, else on the model's own; see `Dump`."""
    loop = Loop(package, models, rounding)
    dump = Dump(out, facts(package, rounding))
    logits, prefilled = b"", False
    for step in package.steps:
        begin = time.monotonic()
        dump.begin(step["index"])
        if step["kind"] == "prefill":
            prefilled = loop.reset()
        tokens = step["tokens"] or [[_next(logits, step)]]
        if not (step["kind"] == "prefill" and prefilled):
            logits = _feed(loop, tokens[0], step["positions"][0], dump)
        dump.end(tokens, step["positions"])
        say(f"step {step['index']}: {time.monotonic() - begin:.2f} s")
    dump.complete()


def facts(package: Package, rounding: str) -> dict[str, Any]:
    """What a dump says of its origin."""
    names = ("chip", "scenario", "provenance")
    return {
        **{name: package.facts.get(name) for name in names},
        "runtime": {"python": platform.python_version(), "machine": platform.machine(), **libraries()},
        "models": {name: _pick(model, "file", "sha256") for name, model in package.models.items()},
        "arithmetic": {**package.facts.get("arithmetic", {}), "float32_to_bfloat16": rounding},
    }


def libraries() -> dict[str, str]:
    """The vendor's libraries in this process, with their digests: they carry no version."""
    try:
        with open("/proc/self/maps", encoding="utf-8") as maps:
            files = {line.split(None, 5)[5].strip() for line in maps if ".so" in line}
    except OSError:
        return {}
    vendor = ("libcviruntime", "libcvikernel", "libcvicmodel", "libbmrt", "libbmlib", "libcmodel")
    chosen = [path for path in sorted(files) if os.path.basename(path).startswith(vendor)]
    return {os.path.basename(path): digest(path)[:16] for path in chosen}


def _feed(loop: Loop, tokens: list[int], positions: list[int], dump: Dump) -> bytes:
    """The real tokens of a step, one by one; padding is left out."""
    logits = b""
    real = [at for at, position in enumerate(positions) if position >= 0]
    for at in real:
        if positions[at] != loop.next_position:
            raise Failure(
                f"positions={positions}: {positions[at]} does not follow, {loop.next_position} would"
            )
        logits = loop.step(tokens[at], dump.add, whole_caches=at == real[-1])
    return logits


def _next(logits: bytes, step: Mapping[str, Any]) -> int:
    if not logits:
        raise Failure(
            f"step {step['index']}: its token is what the step before predicts, but that was prefilled on "
            "the host; write the package with tokens"
        )
    return largest(logits)


def _pick(mapping: Mapping[str, Any], *names: str) -> dict[str, Any]:
    return {name: mapping[name] for name in names}


def to_stderr(line: str) -> None:
    """Where a person looks; stdout may belong to the C libraries."""
    print(line, file=sys.stderr, flush=True)
