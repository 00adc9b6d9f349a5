"""Runs one patch through the public call, against a reference that was recorded once without it."""

from __future__ import annotations

import os
import shutil
import time
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

import parity
from parity.harness.comparison import Comparison
from parity.harness.errors import ParityError
from parity.harness.folders import cache_folder
from parity.harness.trace import Trace

from . import dumping, patches, rivals
from .plant import Apply
from .settings import setting

#: The quicker exporter: what is planted does not depend on it.
EXPORTER = "script"


@dataclass(frozen=True)
class Ran:
    """One run: what came of it (None and an error where nothing did) and how long it took.

    `idle` names what was patched in and never called, `others` holds what other tools' rules say.
    """

    comparison: Comparison | None
    seconds: float
    error: str = ""
    idle: tuple[str, ...] = ()
    others: Mapping[str, rivals.Said] = field(default_factory=dict)

    @property
    def verdict(self) -> str:
        """That of the comparison, or `refused`."""
        return "refused" if self.comparison is None else self.comparison.verdict


class Lab:
    """A folder with everything that runs without a patch: references, floors, exports, healthy candidates.

    What is there is used again, by other processes too: it is made beside and renamed.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._keep_toolchains()
        self._healthy: dict[tuple[str, str, str], Ran] = {}
        self._count = 0
        #: Milliseconds that naming the causes took, of every run that departed.
        self.explaining: list[float] = []

    def healthy(self, name: str, cand: str, options: Mapping[str, Any] | None = None) -> Ran:
        """The same run without a patch: it fills the caches and is the measure of a bug that nobody saw."""
        key = (name, cand, repr(sorted((options or {}).items())))
        if key not in self._healthy:
            self.reference(name)
            self._healthy[key] = self._run(name, cand, self._once(f"{name}-{cand}-{key[2]}"), options or {})
        return self._healthy[key]

    def planted(
        self, name: str, cand: str, apply: Apply, options: Mapping[str, Any] | None = None, against: str = ""
    ) -> Ran:
        """One run with the patch on. `against`: another stored run than the setting's reference."""
        self.healthy(name, cand, options)
        with self._scratch() as out, pytest.MonkeyPatch.context() as patch:
            patches.calls.clear()
            apply(patch)
            ran = self._run(name, cand, out, options or {}, against)
            return replace(ran, idle=tuple(key for key, count in patches.calls.items() if not count))

    def size(self, name: str, cand: str, apply: Apply, options: Mapping[str, Any] | None = None) -> float:
        """How far the patch moves this target from itself, in multiples of what is allowed, at its worst."""
        # A run that starts from shipped files has no prompt to ship again; the segments compute the same.
        like = "segmented" if cand.startswith("prefilled") else cand
        healthy = self.healthy(name, like, options).comparison
        if healthy is None or healthy.candidate.run == "":
            return float("nan")
        same = f"{healthy.candidate.path}:{healthy.candidate.run}"
        found = self.planted(name, cand, apply, options, against=same).comparison
        worst = found.worst if found is not None else None
        return float("nan") if worst is None or worst.ratio is None else worst.ratio

    def reference(self, name: str) -> str:
        """The stored reference of a setting, recorded with its floors."""
        folder = self.folder / "references" / _plain(name)
        if not folder.exists():
            with self._scratch() as draft:
                cand = "segmented" if not name.startswith("zoo:") else "torch"
                with self._quiet():
                    parity.run("torch", [f"plain={cand}"], out=draft, report=False, **setting(name))
                folder.parent.mkdir(parents=True, exist_ok=True)
                try:
                    os.replace(draft, folder)
                except OSError:  # another process was quicker
                    if not folder.exists():
                        raise
        return f"{folder / 'trace.h5'}:torch"

    def _run(self, name: str, cand: str, out: Path, options: Mapping[str, Any], against: str = "") -> Ran:
        asked = {key: value for key, value in setting(name).items() if key in ("model", "inputs")}
        asked = {"exporter": EXPORTER, **asked, **options}
        begin = time.perf_counter()
        with self._quiet():
            try:
                if cand == "dump":
                    source = self.healthy(name, "segmented").comparison
                    assert source is not None
                    cand = (
                        f"dump:{dumping.written(out / 'dump', source.candidate.path, source.candidate.run)}"
                    )
                if cand == "onnx:exported":
                    cand = f"onnx:{self._exported()}"
                ref = against or self.reference(name)
                with self._timed():
                    result = parity.run(ref, [f"port={cand}"], out=out, report=False, **asked)
            except ParityError as error:
                return Ran(None, time.perf_counter() - begin, str(error))
        (comparison,) = result
        seconds = time.perf_counter() - begin
        return Ran(comparison, seconds, others={} if against else _others(comparison))

    def _keep_toolchains(self) -> None:
        """Compilers of chips are installed in the cache of every day; everything else is the lab's own."""
        held, link = cache_folder() / "toolchains", self.folder / "cache" / "toolchains"
        link.parent.mkdir(parents=True, exist_ok=True)
        if held.is_dir() and not link.exists():
            with suppress(FileExistsError):
                link.symlink_to(held)

    def _exported(self) -> Path:
        """Segments of our model as files of somebody else's."""
        folder = self.folder / "exported"
        if not folder.exists():
            with self._scratch() as draft:
                parity.export(draft, model="klm-tiny", weights="random:0", exporter=EXPORTER, masked=True)
                os.replace(draft, folder)
        return folder

    def _once(self, what: str) -> Path:
        """A folder of its own for a healthy run of this process."""
        self._count += 1
        return self.folder / "healthy" / f"{os.getpid()}-{self._count}"

    @contextmanager
    def _scratch(self) -> Iterator[Path]:
        self._count += 1
        out = self.folder / "scratch" / f"{os.getpid()}-{self._count}"
        out.mkdir(parents=True)
        try:
            yield out
        finally:
            shutil.rmtree(out, ignore_errors=True)

    @contextmanager
    def _timed(self) -> Iterator[None]:
        """What explaining costs, measured where the comparison asks for it."""
        from parity.harness import compare

        explain = compare.causes_of

        def causes_of(comparison: Comparison, *rest: Any) -> Any:
            begin = time.perf_counter()
            found = explain(comparison, *rest)
            if comparison.first is not None:
                self.explaining.append(1e3 * (time.perf_counter() - begin))
            return found

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(compare, "causes_of", causes_of)
            yield

    @contextmanager
    def _quiet(self) -> Iterator[None]:
        """Everything is kept in the lab's folder; exporters and other libraries keep their warnings."""
        with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            patch.setenv("PARITY_CACHE", str(self.folder / "cache"))
            yield


def _others(comparison: Comparison) -> Mapping[str, rivals.Said]:
    """What other tools' rules say of the same two runs; nothing where the candidate did not run."""
    sides = comparison.reference, comparison.candidate
    if not all(side.path for side in sides):
        return {}
    one, two = (Trace(side.path)[side.run] for side in sides)
    return rivals.said(one, two)


def _plain(name: str) -> str:
    return name.replace(":", "-")
