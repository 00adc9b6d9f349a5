"""What is executed: scenario, model, case. How it is executed is a target's business.

The types live here; `fixtures` holds scenarios and `models` holds models. Nothing here imports torch.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any, Protocol

from .errors import UserError

if TYPE_CHECKING:
    from torch import Tensor, nn


@dataclass(frozen=True)
class CachePolicy:
    """Which absolute positions a token may attend to.

    `full`: every earlier position and itself. `window`: itself and the `window - 1` positions before it;
    keys and values stay as they were computed when their token was new.
    """

    kind: str = "full"
    window: int | None = None

    def __post_init__(self) -> None:
        if self.kind not in ("full", "window"):
            raise UserError(f"cache={self.kind!r}: unknown cache policy; use full or window(N)")
        given = self.window is not None
        if (self.kind == "window") != given or (self.window is not None and self.window < 1):
            raise UserError(f"cache={self}: window(N) needs a window of at least 1, full takes none")

    def __str__(self) -> str:
        return self.kind if self.window is None else f"{self.kind}({self.window})"

    @classmethod
    def parse(cls, text: str) -> CachePolicy:
        """Read `full` or `window(63)`."""
        word, _, rest = text.strip().partition("(")
        if not rest:
            return cls(word)
        digits = rest.removesuffix(")")
        if not rest.endswith(")") or not (digits.isascii() and digits.isdigit()):
            raise UserError(f"cache={text!r}: not a cache policy; use full or window(N) with a whole number")
        return cls(word, int(digits))


@dataclass(frozen=True)
class Scenario:
    """The inputs and the protocol.

    `ids` holds one prompt per sequence (token ids). `padding` says on which side shorter prompts of a
    batch, or all prompts up to `pad_to`, are filled. `resets` are step indices before which every cache
    is cleared and positions start again at 0 with the prompt. `chunks` are the lengths of the pieces in
    which the prompt is fed, the last one as often as needed; none: all of it at once.
    """

    name: str
    ids: tuple[tuple[int, ...], ...]
    steps: int = 16
    policy: CachePolicy = field(default_factory=CachePolicy)
    padding: str = "right"
    pad_to: int | None = None
    pad_id: int = 0
    resets: tuple[int, ...] = ()
    sampling: str = "greedy"
    seed: int = 0
    texts: tuple[str, ...] = ()
    chunks: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if not self.ids or any(not row for row in self.ids):
            raise UserError(
                f"scenario={self.name!r}: has no tokens; give ids, texts or a file that is not empty"
            )
        if self.steps < 0:
            raise UserError(f"steps={self.steps}: cannot be negative")
        if self.padding not in ("left", "right"):
            raise UserError(f"padding={self.padding!r}: use left or right")
        if self.sampling != "greedy":
            raise UserError(f"sampling={self.sampling!r}: only greedy is defined; drop the key")
        if self.pad_to is not None and self.pad_to < max(map(len, self.ids)):
            raise UserError(
                f"pad_to={self.pad_to}: shorter than the longest prompt ({max(map(len, self.ids))})"
            )
        if any(length < 1 for length in self.chunks):
            raise UserError(f"chunks={list(self.chunks)}: each holds at least one token")
        if self.chunks and self.resets:
            raise UserError("chunks: a scenario with resets feeds its prompt at once; leave one of them out")
        for reset in self.resets:
            if not 1 <= reset <= self.steps:
                raise UserError(
                    f"resets={list(self.resets)}: {reset} is not a decode step of 1..{self.steps}"
                )

    @property
    def batch(self) -> int:
        """Number of sequences."""
        return len(self.ids)

    @property
    def prompt_length(self) -> int:
        """Tokens of the padded prompt."""
        return self.pad_to or max(map(len, self.ids))

    @property
    def padded(self) -> bool:
        """Whether some prompt is shorter than the padded width."""
        return any(len(row) != self.prompt_length for row in self.ids)

    def with_batch(self, batch: int) -> Scenario:
        """The same scenario with `batch` sequences: one prompt is replicated, a list must already fit."""
        if batch == self.batch:
            return self
        if self.batch != 1 or batch < 1:
            raise UserError(
                f"batch={batch}: the scenario {self.name!r} lists {self.batch} prompts; "
                "only a single prompt can be replicated"
            )
        return replace(self, ids=self.ids * batch, texts=self.texts * batch)

    def to_json(self) -> dict[str, Any]:
        """Plain data; two scenarios are the same exactly when this is equal (but for name and texts)."""
        data = asdict(self)
        data["policy"] = str(self.policy)
        if not self.chunks:  # as before there were chunks, so that digests of such scenarios stay
            del data["chunks"]
        return data

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Scenario:
        """Read back what `to_json` wrote."""
        return cls(
            **{
                **data,
                "policy": CachePolicy.parse(data["policy"]),
                "ids": tuple(tuple(row) for row in data["ids"]),
                "resets": tuple(data["resets"]),
                "chunks": tuple(data.get("chunks", ())),
                "texts": tuple(data["texts"]),
            }
        )


@dataclass(frozen=True)
class Step:
    """One event of a scenario: its `kind` is prefill, chunk (a later piece of a prefill) or decode.

    `positions` are the absolute positions of the new tokens, `[B][T]`, -1 at padding. `tokens` are their
    ids, or None when they are what the previous step predicted. `reset` clears every cache first. At the
    `last` step caches are recorded in full.
    """

    index: int
    kind: str
    positions: tuple[tuple[int, ...], ...]
    tokens: tuple[tuple[int, ...], ...] | None
    reset: bool = False
    last: bool = False

    @property
    def width(self) -> int:
        """New token columns T."""
        return len(self.positions[0])


def plan(scenario: Scenario) -> tuple[Step, ...]:
    """Lay a scenario out as steps: the prefill or its chunks, then one step per decoded token, with resets.

    Decode steps count on from the last chunk.
    """
    lengths = [len(row) for row in scenario.ids]
    steps, offset = _chunked(scenario), 0
    for index in range(len(steps), len(steps) + scenario.steps):
        if index in scenario.resets:
            steps.append(_prefill(scenario, index=index, reset=True))
            offset = 0
            continue
        steps.append(Step(index, "decode", tuple((n + offset,) for n in lengths), None))
        offset += 1
    steps[-1] = replace(steps[-1], last=True)
    return tuple(steps)


def _chunked(scenario: Scenario) -> list[Step]:
    """The prefill, cut into chunks where the scenario says so."""
    whole = _prefill(scenario, index=0, reset=False)
    assert whole.tokens is not None
    if not scenario.chunks:
        return [whole]
    steps = []
    for index, (start, stop) in enumerate(chunk_bounds(scenario.chunks, whole.width)):
        positions = tuple(row[start:stop] for row in whole.positions)
        tokens = tuple(row[start:stop] for row in whole.tokens)
        steps.append(Step(index, "chunk" if index else "prefill", positions, tokens))
    return steps


def chunk_bounds(chunks: tuple[int, ...], width: int) -> list[tuple[int, int]]:
    """Columns start..stop of each chunk of `width` columns."""
    bounds: list[tuple[int, int]] = []
    start = 0
    while start < width:
        length = chunks[min(len(bounds), len(chunks) - 1)]
        bounds.append((start, min(start + length, width)))
        start += length
    return bounds


def _prefill(scenario: Scenario, *, index: int, reset: bool) -> Step:
    width = scenario.prompt_length
    tokens, positions = [], []
    for row in scenario.ids:
        fill = width - len(row)
        own = tuple(range(len(row)))
        if scenario.padding == "left":
            tokens.append((scenario.pad_id,) * fill + row)
            positions.append((-1,) * fill + own)
        else:
            tokens.append(row + (scenario.pad_id,) * fill)
            positions.append(own + (-1,) * fill)
    return Step(index, "prefill", tuple(positions), tuple(tokens), reset)


@dataclass(frozen=True)
class Port:
    """One input or output of a segment.

    `name` is what the graph calls it, `value` the value that it carries: a tap, `ids`, `rope`, `mask`.
    `shape` uses B, T (new tokens) and W (cache rows handed in) for what a build decides.
    """

    name: str
    value: str
    axes: str
    shape: tuple[int | str, ...]
    dtype: str = "float32"


@dataclass(frozen=True)
class Segment:
    """A part of the model that is exported and compiled alone; `taps` lie inside it, in execution order."""

    name: str
    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]
    taps: tuple[str, ...] = ()


@dataclass(frozen=True)
class CacheRow:
    """Before `segment` runs, the rows of value `source` are appended to the cache tap `cache`."""

    cache: str
    source: str
    segment: str


@dataclass(frozen=True)
class Wiring:
    """The table that drives a segmented model: who feeds whom, and what is appended to which cache."""

    segments: tuple[Segment, ...]
    caches: tuple[CacheRow, ...]
    output: str = "logits"

    def appends(self, segment: str) -> Iterator[CacheRow]:
        """Cache rows that are due before a segment."""
        return (row for row in self.caches if row.segment == segment)

    def producer(self, tap: str) -> str | None:
        """The segment in which a tap is computed; None for inputs and caches."""
        for segment in self.segments:
            if tap in segment.taps or any(port.value == tap for port in segment.outputs):
                return segment.name
        return None

    def to_json(self) -> dict[str, Any]:
        """Plain data, as shipped to a board's runner and stored in a run."""
        return asdict(self)


@dataclass(frozen=True)
class Role:
    """What the op behind a tap is: diagnosis learns it from here, never from names.

    `inputs` are taps, `parameters` plain numbers, `weights` state_dict keys; `{i}` stands for the layer.
    """

    taps: str
    role: str
    inputs: tuple[str, ...] = ()
    parameters: Mapping[str, float] = field(default_factory=dict)
    weights: tuple[str, ...] = ()


class Model(Protocol):
    """One row of a model family: everything that references and targets need to know of it."""

    @property
    def name(self) -> str: ...
    @property
    def config(self) -> Any: ...
    @property
    def vocab_size(self) -> int: ...
    @property
    def window(self) -> int:
        """Rows that the deployed model attends to: what a bare `window` cache policy means."""

    @property
    def wiring(self) -> Wiring:
        """The default static build: every row handed in may be attended to."""

    @property
    def masked_wiring(self) -> Wiring:
        """The build with an additive `mask` port, for histories shorter than the window and for padding."""

    @property
    def roles(self) -> tuple[Role, ...]: ...
    @property
    def taps(self) -> tuple[str, ...]:
        """Canonical tap names in execution order."""

    @property
    def widths(self) -> Mapping[str, int]:
        """Values of each tap per token and sequence, of a cache tap per row; a run's size follows."""

    @property
    def renames(self) -> Mapping[str, str]:
        """Names that the original programs used -> canonical tap."""

    def build(self) -> nn.Module:
        """The whole model in eval mode, weights as torch's current generator draws them."""

    def init_random(self, module: nn.Module, seed: int) -> None:
        """Draw weights from `seed` alone, scaled so that activations are alive."""

    def check_state(self, state: Mapping[str, Tensor]) -> None:
        """UserError for a checkpoint whose keys, shapes or values cannot be this model's."""

    def rope(self, module: nn.Module, positions: Tensor) -> Tensor:
        """Rotary rows `[2, B, T, D]` for absolute positions `[B, T]`; -1 reads row 0."""

    def split(self, state: Mapping[str, Tensor], *, masked: bool = False) -> dict[str, nn.Module]:
        """Segment modules in wiring order, loaded strictly from a whole checkpoint."""

    def encode(self, text: str) -> tuple[int, ...]:
        """Token ids of a text; UserError for what the vocabulary has not."""

    def decode(self, ids: tuple[int, ...]) -> str:
        """Text of token ids."""


@dataclass(frozen=True)
class Case:
    """Model + weights + scenario.

    `state` is the checkpoint (float32, whole model), `weights` the digest of its source, `weights_label`
    says in words where it came from and `weights_spec` how it was asked for (None: the trained one).
    """

    model: Model
    state: Mapping[str, Tensor]
    weights: str
    scenario: Scenario
    weights_label: str = ""
    weights_spec: str | None = None


@dataclass(frozen=True)
class ModuleCase:
    """Any `nn.Module` and the arrays it is called with: one step, taps by module hooks.

    `spec` is how the factory was named (`PKG:FACTORY`), `inputs` maps argument names to arrays. A graph
    from a file is not `executable` by torch.
    """

    spec: str
    module: nn.Module
    inputs: Mapping[str, Any]
    weights: str
    executable: bool = True
