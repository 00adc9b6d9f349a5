"""The two protocols that every way of executing a case fulfils, and the language that names them."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from .errors import UserError
from .mapping import TapMap

if TYPE_CHECKING:
    import numpy as np

    from .case import Case, Step
    from .progress import Progress
    from .values import Values


@dataclass(frozen=True)
class Options:
    """What a run sets for every target; a target's own argument goes before.

    `handed`: the reference of a user's module also records what submodules are handed, as a floor needs it.
    """

    dtype: str | None = None
    device: str | None = None
    threads: int | None = None
    seed: int = 0
    exporter: str = "dynamo"
    opset: int | None = None
    segments: str | None = None
    share_weights: bool = False
    mapping: TapMap = field(default_factory=TapMap)
    handed: bool = False


@dataclass(frozen=True)
class Unobserved:
    """Taps (glob) that a target cannot show at some steps (None: at all of them), and why."""

    taps: str
    reason: str
    steps: tuple[int, ...] | None = None


@dataclass(frozen=True)
class Facts:
    """What a session really does; stored in the run, shown in the report.

    `substitutions` names every cast, fallback and replacement. `unobserved` lists what it cannot show;
    every other tap is promised. `cache_records` is `views` when each record of a cache tap is all that a
    segment was handed, `rows` when it is what was appended (and all of it at the last step). With `single`
    a step is fed token by token, each with records of its own. Where running segments alone is slow,
    `isolated_steps` are the steps at which it is done; None: all.
    """

    dtype: str
    layout: str
    substitutions: tuple[str, ...] = ()
    unobserved: tuple[Unobserved, ...] = ()
    cache_records: str = "views"
    single: bool = False
    isolated_steps: tuple[int, ...] | None = None
    details: Mapping[str, Any] = field(default_factory=dict)


class Session(Protocol):
    """A prepared target: executes the steps of one case and records taps through the tracer."""

    facts: Facts

    def step(
        self, step: Step, tokens: np.ndarray, positions: np.ndarray, isolate: Values | None
    ) -> np.ndarray | None:
        """Execute one step and return the logits `[B, V]` of each sequence's last real token.

        `tokens` and `positions` are int64 `[B, T]`, -1 at padding. With `isolate`, every segment is run a
        second time on the reference's values and recorded under the isolated sink. None: the step was
        done elsewhere (a prefilled cache) and there is nothing to return.
        """

    def close(self) -> None:
        """Free what the session holds."""


class Target(Protocol):
    """A way of executing a case."""

    @property
    def name(self) -> str: ...

    @property
    def summary(self) -> str:
        """One line for `parity targets`."""

    def missing(self) -> str | None:
        """Why this target cannot run here and what to do; None when it can."""

    def check(self, arg: str, options: Options) -> None:
        """UserError for an argument or option that no case makes right; asked before anything runs."""

    def prepare(
        self,
        case: Case,
        *,
        arg: str,
        options: Options,
        reference: Values | None,
        workdir: Path,
        progress: Progress,
    ) -> Session:
        """Export, compile and load. Files go to `workdir`, which is cached by content digest."""


@dataclass(frozen=True)
class Spec:
    """One side of a comparison, as a person writes it.

    `kind` is `target` (NAME[:ARG][@DEVICE]) or `stored` (trace.h5[:RUN]).
    """

    label: str
    text: str
    kind: str
    name: str
    arg: str = ""
    device: str | None = None


def _bare(name: str) -> bool:
    return re.fullmatch(r"[A-Za-z0-9_\-]+", name.strip()) is not None


_LABEL = re.compile(r"^([A-Za-z0-9_.\-]+)=(.+)$", re.DOTALL)


def parse_spec(text: str) -> Spec:
    """Read `[label=]NAME[:ARG][@DEVICE]`, `[label=]trace.h5[:RUN]` or `[label=]module:PKG:FACTORY`."""
    match = _LABEL.match(text)
    label, body = (match[1], match[2]) if match else ("", text)
    if not body.strip():
        raise UserError(f"spec={text!r}: is empty; name a target, for example onnx or trace.h5:torch")
    if body[-1] in ":@":
        raise UserError(f"spec={text!r}: breaks off after {body[-1]!r}; leave that out, or name what follows")
    path, run = _stored(body)
    if path:
        return Spec(label or run or Path(path).stem, body, "stored", path, run)
    at = re.fullmatch(r"(.*)@([a-z]+(?::\d+)?)", body) if not body.startswith("module:") else None
    body, device = (at[1], at[2]) if at else (body, "")
    name, _, arg = body.partition(":")
    if not name:
        raise UserError(f"spec={text!r}: names no target; write for example torch@cuda")
    return Spec(label or body, text if not match else match[2], "target", name, arg, device or None)


def _stored(body: str) -> tuple[str, str]:
    match = re.match(r"^(.+\.(?:h5|hdf5))(?::(.+))?$", body)
    return (match[1], match[2] or "") if match else ("", "")


def split_specs(texts: Sequence[str]) -> list[Spec]:
    """Several `--cand` values; one that lists bare names splits at commas, labels are made unique."""
    parts: list[str] = []
    for text in texts:
        names = text.split(",")
        bare = all(map(_bare, names))
        if not bare and len(names) > 1 and _bare(names[0]):
            raise UserError(
                f"cand={text!r}: only bare names can be listed with commas; repeat --cand for the others"
            )
        parts += [name.strip() for name in names] if bare else [text]
    specs = [parse_spec(part) for part in parts]
    labels = [spec.label for spec in specs]
    for label in labels:
        if labels.count(label) > 1:
            raise UserError(
                f"cand={label!r}: named twice; give one of them a label, for example second={label}"
            )
    return specs
