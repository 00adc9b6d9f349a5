"""`parity import`: a dump of a device becomes a run of a trace file."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from parity.harness.errors import UserError
from parity.harness.mapping import TapMap, load_map
from parity.harness.progress import Progress, Silent
from parity.harness.target import parse_spec
from parity.harness.trace import Run, TraceWriter

from .recorder import stored

if TYPE_CHECKING:
    import numpy as np

    from parity.harness.case import Model
    from parity.targets.dumps.core import Contents
    from parity.targets.dumps.naming import Naming
    from parity.targets.dumps.recording import Summary


@dataclass(frozen=True)
class Imported:
    """What became of a dump: the run, how its names met the reference's, what was undone."""

    run: str
    trace: str
    kind: str
    records: int
    bytes: int
    steps: int
    dtypes: Mapping[str, int]
    rules: Mapping[str, int]
    unmatched: tuple[str, ...]
    """Names of the dump that no rule ties to a tap."""
    absent: tuple[str, ...]
    """Taps of the reference that the dump does not hold."""
    known: bool
    """Whether the reference's taps were known."""
    complete: bool
    notes: tuple[str, ...] = ()
    facts: Mapping[str, Any] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        return asdict(self)


def import_dump(
    path: str | Path,
    *,
    out: str | Path = "trace.h5",
    kind: str | None = None,
    run: str | None = None,
    map: str | None = None,
    model: str | None = None,
    against: str | None = None,
    step_offset: int = 0,
    prompt: str | None = None,
    tokens: str | Sequence[int] | None = None,
    dtype: str | None = None,
    manifest: str | None = None,
    atc_json: str | None = None,
    onnx: str | None = None,
    settings: Mapping[str, str] | None = None,
    progress: Progress | None = None,
) -> Imported:
    """Read a dump that a device wrote and append it as a run to the trace file `out`.

    `against` (`trace.h5[:RUN]`) or `model` say which taps there are; `map` is a map file, `atc_json` what
    `atc --mode=1` printed of an .om and `onnx` the graph that it was made from. `tokens` (ids) or `prompt`
    are held against the dump's own ids, and so are those of `against`. `dtype` says in which number format
    the device computed. Raises UserError for a dump that is none, is damaged, holds another prompt, or two
    dumps.
    """
    from parity.targets.dumps.core import ReadOptions
    from parity.targets.dumps.detect import detect, digest, open_dump
    from parity.targets.dumps.facts import said_of_case
    from parity.targets.dumps.prompts import check_prompt
    from parity.targets.dumps.recording import Player, record_all

    from .stages import trace_file

    progress, source = progress or Silent(), Path(path)
    options = ReadOptions(Path(manifest) if manifest else None, dict(settings or {}))
    mapping, origin = load_map(map) if map else TapMap(), _origins(atc_json, onnx)
    known = _Known.of(model, against)
    contents = open_dump(source, kind or detect(source, options.manifest), options)
    known = known.beside(said_of_case(contents.facts, "model"))
    naming = known.naming(mapping, origin)
    player = Player(contents, naming, step_offset=step_offset, shapes=known.shapes)
    said = check_prompt(player, _wanted(known, prompt, tokens), known.run)
    where = trace_file(out)
    with progress.stage("reading its digest", 1) as bar:
        files = digest(source)
        bar.advance()
    with TraceWriter(where) as writer:
        about = {"dump": {"kind": contents.kind, "path": str(source), **files}, **_case(contents)}
        with writer.run(
            run or _run_name(contents, source), target=f"dump:{source}", provenance=about
        ) as into:
            summary = record_all(player, into.record, progress)
            notes = (*contents.notes, *said)
            into.update_provenance(**_provenance(contents, summary, dtype, notes))
            complete = contents.facts.get("complete", True) is not False
            if not complete:
                into.finish(complete=False)
    notes = (*notes, into.notice) if into.notice else notes
    return _imported(into.name, where, contents, summary, complete, notes)


@dataclass(frozen=True)
class _Known:
    """What is known of the reference: its run, or at least its model."""

    run: Run | None = None
    model: Model | None = None

    @classmethod
    def of(cls, model: str | None, against: str | None) -> _Known:
        from parity.models import find_model, known_models

        run = None
        if against is not None:
            spec = parse_spec(against)
            if spec.kind != "stored":
                raise UserError(
                    f"against={against!r}: is no stored run; name one, for example trace.h5:torch"
                )
            trace, name = stored(spec)
            run = trace[name]
        recorded = None if run is None else run.provenance.get("model")
        wanted = model or (recorded if recorded in known_models() else None)
        return cls(run, find_model(wanted) if wanted else None)

    def beside(self, stated: str | None) -> _Known:
        """With the model that the dump says it is of; UserError where that is another one."""
        from parity.models import find_model, known_models

        own = self.model.name if self.model is not None else None
        if self.run is not None:
            own = self.run.provenance.get("model", own)
        if stated is not None and own is not None and stated != own:
            raise UserError(
                f"model={own!r}: the dump says it is of {stated[:60]!r}; name that, or its reference"
            )
        if own is None and stated in known_models():
            return _Known(self.run, find_model(stated))
        return self

    @property
    def taps(self) -> list[str] | None:
        """Its taps in execution order; None where nothing is known."""
        if self.run is not None:
            return list(self.run.taps)
        return None if self.model is None else ["ids", *self.model.taps]

    @property
    def shapes(self) -> dict[tuple[str, int, int], tuple[int, ...]]:
        """Shapes of its records."""
        records = self.run.records() if self.run is not None else ()
        return {(record.tap, record.step, record.call): record.shape for record in records}

    def naming(self, mapping: TapMap, origin: Callable[[str], str | None]) -> Naming:
        """How names of the dump become taps."""
        from parity.targets.dumps.naming import Naming

        originals = self.model.renames if self.model is not None else {}
        return Naming(mapping, self.taps, originals, origin)


def _origins(atc_json: str | None, onnx: str | None) -> Callable[[str], str | None]:
    """Entry of a compiled graph's dump -> value (with the ONNX graph) or `node:index` that it stands for."""
    if atc_json is None:
        if onnx is not None:
            raise UserError("onnx: says nothing without --atc-json, which ties a dump to the graph's nodes")
        return lambda name: None
    from parity.targets.dumps.ascend.atcjson import read_atc

    table = read_atc(Path(atc_json))
    values = table.values(Path(onnx)) if onnx is not None else {}
    return lambda name: values.get(name) or values.get(name.partition("/")[2]) or table.origin(name)


def _wanted(known: _Known, prompt: str | None, tokens: str | Sequence[int] | None) -> np.ndarray | None:
    """The ids `[B, T]` that a person says the prompt has; None where nothing is said."""
    from parity.targets.dumps.prompts import ids_of

    if prompt is not None and tokens is not None:
        raise UserError("prompt: say either --prompt or --tokens")
    if prompt is None:
        return None if tokens is None else ids_of(tokens)
    if known.model is None:
        raise UserError("prompt: its ids need a model; name it with --model, or give --tokens")
    return ids_of(known.model.encode(prompt))


def _run_name(contents: Contents, source: Path) -> str:
    name = str(contents.facts.get("run") or source.resolve().stem or contents.kind)
    return name.replace("#", "_")


#: Provenance that a dump may state of its case, by the same words as a run.
CASE = ("model", "weights", "policy")


def _case(contents: Contents) -> dict[str, Any]:
    """What the dump says of its case, in the words by which runs are held against each other."""
    from parity.harness.case import Scenario

    from .cases import scenario_digest

    stated = contents.facts.get("provenance") or contents.facts
    about = {key: stated[key] for key in CASE if isinstance(stated.get(key), str)}
    try:
        scenario = Scenario.from_json(contents.facts.get("scenario") or {})
    except (KeyError, TypeError, ValueError, UserError):
        return about
    digest = scenario_digest(scenario)
    case = {"scenario": scenario.to_json(), "scenario_digest": digest, "policy": str(scenario.policy)}
    return {**about, **case}


def _provenance(
    contents: Contents, summary: Summary, dtype: str | None, notes: Sequence[str]
) -> dict[str, Any]:
    from parity.targets.dumps.facts import computed_in, substitutions

    name, doubt = computed_in(contents, summary, dtype)
    return {
        "dtype": name,
        "layout": "dump",
        "replay": "forced",
        "cache_records": "rows",
        "unobserved": [{"taps": "*", "reason": "not in the dump", "steps": None}],
        "substitutions": [*substitutions(summary), *([doubt] if doubt else []), *notes],
        "details": {**contents.facts, "rules": summary.matching.rules},
    }


def _imported(
    run: str, trace: Path, contents: Contents, summary: Summary, complete: bool, notes: Sequence[str]
) -> Imported:
    matching = summary.matching
    return Imported(
        run,
        str(trace),
        contents.kind,
        summary.records,
        summary.bytes,
        len(summary.steps),
        summary.dtypes,
        matching.rules,
        tuple(matching.unmatched),
        tuple(summary.absent),
        matching.known is not None,
        complete,
        tuple(notes),
        contents.facts,
    )
