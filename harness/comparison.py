"""What a comparison found. Reports render these objects and nothing else; all of it goes to JSON and back."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

from .emitted import Tokens as Tokens
from .emitted import TokenStep as TokenStep
from .isolation import Isolation
from .onset import Onset as Onset

if TYPE_CHECKING:
    from .metrics import LogitMetrics, Metrics

SCHEMA = 1

#: Statuses that count as a divergence.
FAILING = frozenset({"fail", "missing", "shape", "nonfinite"})
#: An error that is a greater multiple of what is allowed is only said to be greater.
LARGEST = 1e6
#: Statuses of records whose values were really held against each other.
COMPARED = frozenset({"equal", "pass", "fail", "nonfinite"})

EXIT_CODES = {"parity": 0, "divergence": 1, "refused": 2, "inconclusive": 3, "failed": 4}


@dataclass(slots=True)
class Row:
    """One record of the reference and what the candidate had for it. Only the comparison fills it in.

    `error` is the relative L2 error of the forced replay (what was inherited and what was born here),
    `local` that of the isolated replay (born here); `ratio` and `local_ratio` are the same errors as
    multiples of what the tolerance allows: above 1 fails. `floor` is the relative noise level in force.
    `kind` calls the error rounding, quantization or bug; empty where there is none, or no telling.
    Where the candidate's narrow arithmetic was emulated, `quantization` is the emulation's relative error
    and `implementation` the candidate's against the emulation.
    """

    order: int
    tap: str
    step: int
    call: int
    status: str
    reason: str = ""
    error: float | None = None
    ratio: float | None = None
    local: float | None = None
    local_ratio: float | None = None
    local_reason: str = ""
    floor: float | None = None
    segment: str | None = None
    slice: str = ""
    axes: str = ""
    shape: tuple[int, ...] = ()
    dtype: str = ""
    expected_dtype: str = ""
    hidden: int = 0
    padded: int = 0
    rule: str = ""
    kind: str = ""
    quantization: float | None = None
    implementation: float | None = None
    metrics: Metrics | None = None
    logits: LogitMetrics | None = None

    @property
    def inherited(self) -> float | None:
        """`error`, by the name that it has beside `local`."""
        return self.error

    @property
    def failing(self) -> bool:
        """Whether this record alone makes the comparison a divergence."""
        return self.status in FAILING


@dataclass(frozen=True)
class First:
    """The first divergence in execution order, with how much the claim is worth."""

    tap: str
    step: int
    slice: str
    claim: str
    before: str = ""
    call: int = 0


@dataclass(frozen=True)
class Culprit:
    """A tap where a fault was born: wrong although everything handed to it was right."""

    tap: str
    step: int
    segment: str
    evidence: str
    ratio: float | None = None


@dataclass(frozen=True)
class Coverage:
    """How much of the reference was looked at, counted in values."""

    expected: int = 0
    checked: int = 0
    hidden: int = 0
    skipped: Mapping[str, int] = field(default_factory=dict)
    blind_spot: str | None = None

    @property
    def share(self) -> float:
        """Checked share of what there was to check, 0 to 1."""
        return self.checked / self.expected if self.expected else 0.0


@dataclass(frozen=True)
class Side:
    """One side of a comparison: a run and where it came from."""

    label: str
    run: str
    target: str
    path: str
    provenance: Mapping[str, Any] = field(default_factory=dict)
    seconds: tuple[float, ...] = ()


@dataclass(frozen=True)
class Finding:
    """Something a reader must know besides the rows: `level` is note, warning or error."""

    level: str
    text: str


@dataclass(frozen=True)
class Cause:
    """A named explanation that reproduces what the candidate did, and the evidence for it.

    `residual` is the relative error that it leaves, `next_best` what the best of another kind leaves.
    """

    tap: str
    name: str
    evidence: str
    residual: float | None = None
    next_best: float | None = None


@dataclass(frozen=True)
class Stage:
    """One stage of a pipeline held against the stage before: what `name` (export, quantization ...) changed.

    `tap`, `step` and `slice` are the first divergence, or the worst record where there is none. `ratio` is
    the worst error over what is allowed, `error` the largest relative L2 error, `compared` counts records.
    """

    name: str
    earlier: str
    later: str
    verdict: str
    tap: str = ""
    step: int = 0
    slice: str = ""
    ratio: float | None = None
    error: float | None = None
    compared: int = 0
    reason: str = ""


@dataclass(frozen=True)
class Comparison:
    """One candidate held against the reference.

    `inconclusive` says why nothing follows from an absence of failures, `unsound` why nothing follows at
    all (the reference itself cannot be trusted), `failure` why the candidate did not run, `refused` what
    its user must mend before it can. `handed`: what submodules were handed wrongly in the isolated replay.
    """

    label: str
    reference: Side
    candidate: Side
    records: tuple[Row, ...] = ()
    first: First | None = None
    culprits: tuple[Culprit, ...] = ()
    coverage: Coverage = field(default_factory=Coverage)
    tokens: Tokens = field(default_factory=Tokens)
    findings: tuple[Finding, ...] = ()
    causes: tuple[Cause, ...] = ()
    stages: tuple[Stage, ...] = ()
    onset: Onset | None = None
    rules: Mapping[str, int] = field(default_factory=dict)
    tolerance: str = ""
    replay: str = "forced"
    inconclusive: str = ""
    unsound: str = ""
    failure: str = ""
    refused: str = ""
    isolation: Isolation = field(default_factory=Isolation)
    handed: tuple[Row, ...] = ()

    def __bool__(self) -> bool:
        raise TypeError(f"a comparison is neither true nor false; ask for .verdict ({self.verdict!r})")

    def rows(self) -> Sequence[Row]:
        """One row per record, in execution order of the reference."""
        return self.records

    def explain(self) -> Sequence[Cause]:
        """Named causes with their evidence; empty when none reproduces what was seen."""
        return self.causes

    @cached_property
    def counts(self) -> Mapping[str, int]:
        """Records per status."""
        return dict(Counter(row.status for row in self.records))

    @property
    def verdict(self) -> str:
        """`parity`, `divergence`, `inconclusive`, `failed` or `refused`."""
        if self.refused:
            return "refused"
        if self.failure:
            return "failed"
        if self.unsound:
            return "inconclusive"
        if any(row.failing for row in self.records):
            return "divergence"
        compared = sum(self.counts.get(status, 0) for status in COMPARED)
        return "inconclusive" if self.inconclusive or not compared else "parity"

    @property
    def exit_code(self) -> int:
        """Exit status of this comparison alone (DESIGN section 8)."""
        return EXIT_CODES[self.verdict]

    @property
    def worst(self) -> Row | None:
        """The compared record with the largest error over its allowance."""
        compared = [row for row in self.records if row.ratio is not None]
        return max(compared, key=lambda row: row.ratio or 0.0, default=None)

    def taps(self) -> list[str]:
        """Tap names in execution order."""
        return list(dict.fromkeys(row.tap for row in self.records))

    def to_json(self, *, detailed: int = 200) -> dict[str, Any]:
        """Plain data. All metrics are kept for `detailed` records: the worst of each tap, then the worst.

        Other records that fail keep theirs without histogram and profiles, healthy ones keep none.
        """
        ranked = sorted(self.records, key=lambda row: row.ratio or 0.0, reverse=True)
        worst = {row.tap: row for row in reversed(ranked)}.values()
        keep = {id(row) for row in [*worst, *ranked][:detailed]}
        data = asdict(replace(self, records=(), handed=()))
        data["handed"] = [_row_json(row, full=False) for row in self.handed]
        data["records"] = [_row_json(row, full=id(row) in keep) for row in self.records]
        data["verdict"], data["exit_code"] = self.verdict, self.exit_code
        data["counts"] = dict(self.counts)
        return data

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Comparison:
        """Read back what `to_json` wrote."""
        first, tokens = data["first"], dict(data["tokens"])
        tokens["flips"] = tuple(TokenStep(**flip) for flip in tokens["flips"])
        for key in ("expected_text", "actual_text"):
            tokens[key] = tuple(tokens[key])
        return cls(
            label=data["label"],
            reference=_side(data["reference"]),
            candidate=_side(data["candidate"]),
            records=tuple(_row(row) for row in data["records"]),
            first=First(**first) if first else None,
            culprits=tuple(Culprit(**item) for item in data["culprits"]),
            coverage=Coverage(**data["coverage"]),
            tokens=Tokens(**tokens),
            findings=tuple(Finding(**item) for item in data["findings"]),
            causes=tuple(Cause(**item) for item in data["causes"]),
            stages=tuple(Stage(**item) for item in data["stages"]),
            onset=Onset(**data["onset"]) if data.get("onset") else None,
            rules=data["rules"],
            tolerance=data["tolerance"],
            replay=data["replay"],
            inconclusive=data["inconclusive"],
            unsound=data["unsound"],
            failure=data["failure"],
            refused=data["refused"],
            isolation=Isolation(**data.get("isolation", {})),
            handed=tuple(_row(row) for row in data.get("handed", ())),
        )


def _side(data: Mapping[str, Any]) -> Side:
    return Side(**{**data, "seconds": tuple(data["seconds"])})


def _row_json(row: Row, *, full: bool) -> dict[str, Any]:
    data: dict[str, Any] = {}
    for name in Row.__slots__:
        value = getattr(row, name)
        if name in ("metrics", "logits"):
            value = value.to_json() if value is not None else None
        data[name] = value
    if not full and not row.failing:
        data["metrics"] = data["logits"] = None
    elif data["metrics"] is not None:
        for heavy in ("rows",) if full else ("hist", "joint", "profiles", "rows"):
            data["metrics"].pop(heavy, None)
    return data


def _row(data: Mapping[str, Any]) -> Row:
    from .metrics import LogitMetrics, Metrics

    fields = {**data, "shape": tuple(data["shape"])}
    if fields["metrics"] is not None:
        fields["metrics"] = Metrics.from_json(fields["metrics"])
    if fields["logits"] is not None:
        fields["logits"] = LogitMetrics.from_json(fields["logits"])
    return Row(**fields)


@dataclass(frozen=True)
class Result:
    """Everything one `parity run` found: a comparison per candidate, and the files it wrote."""

    comparisons: tuple[Comparison, ...]
    provenance: Mapping[str, Any] = field(default_factory=dict)
    files: Mapping[str, str] = field(default_factory=dict)

    def __getitem__(self, label: str) -> Comparison:
        for comparison in self.comparisons:
            if comparison.label == label:
                return comparison
        raise KeyError(f"no candidate {label!r}; there are {[c.label for c in self.comparisons]}")

    def __iter__(self) -> Iterator[Comparison]:
        return iter(self.comparisons)

    def __len__(self) -> int:
        return len(self.comparisons)

    def __bool__(self) -> bool:
        raise TypeError(f"a result is neither true nor false; ask for .exit_code ({self.exit_code})")

    @property
    def exit_code(self) -> int:
        """The gravest of the candidates: 4 before 1 before 3 before 0; nothing at all is 3."""
        codes = {comparison.exit_code for comparison in self.comparisons}
        return next((code for code in (2, 4, 1, 3, 5) if code in codes), 0 if codes else 3)

    def to_json(self) -> dict[str, Any]:
        """Plain data under a versioned schema."""
        return {
            "schema": SCHEMA,
            "exit_code": self.exit_code,
            "provenance": dict(self.provenance),
            "files": dict(self.files),
            "comparisons": [comparison.to_json() for comparison in self.comparisons],
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Result:
        """Read back what `to_json` wrote; UserError for another schema."""
        from .errors import UserError

        if data.get("schema") != SCHEMA:
            raise UserError(
                f"schema={data.get('schema')!r}: this is not a report.json of schema {SCHEMA}; "
                "render it with the version that wrote it"
            )
        return cls(
            comparisons=tuple(Comparison.from_json(item) for item in data["comparisons"]),
            provenance=data["provenance"],
            files=data["files"],
        )
