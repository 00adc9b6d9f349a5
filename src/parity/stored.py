"""`parity.compare_traces`: two stored runs held against each other, nothing executed."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from parity.harness.compare import compare_runs
from parity.harness.comparison import Comparison
from parity.harness.mapping import load_map
from parity.harness.progress import Progress
from parity.harness.target import Spec
from parity.harness.tolerance import load_tolerance

from .emulating import emulated_of, floors_of, told_apart
from .floors import rules_of
from .provenance import isolated_of, side_of
from .recorder import refuse_itself, stored


def compare_traces(
    reference: str | Path,
    candidate: str | Path,
    *,
    ref_run: str | None = None,
    cand_run: str | None = None,
    tol: str = "auto",
    taps: Sequence[str] = (),
    map: str | None = None,
    force: bool = False,
    progress: Progress | None = None,
) -> Comparison:
    """The comparison of two stored runs; nothing is executed and torch is not imported.

    Without names, the run called `torch` or `ref`, or the only one of its file, is taken.
    """
    sides = []
    for path, name in ((reference, ref_run), (candidate, cand_run)):
        trace, chosen = stored(Spec(name or "", str(path), "stored", str(path), name or ""))
        sides.append((trace, chosen, str(path)))
    (ref_trace, ref_name, ref_path), (cand_trace, cand_name, cand_path) = sides
    refuse_itself((ref_path, ref_name), (cand_path, cand_name))
    one, two = ref_trace[ref_name], cand_trace[cand_name]
    emulated, known = emulated_of(cand_trace, cand_name), load_map(map) if map else None
    rules = rules_of(load_tolerance(tol), floors_of(ref_path, one, two, emulated), one, two)
    found = compare_runs(
        one,
        two,
        rules=rules,
        sides=(side_of(one, ref_name, ref_path), side_of(two, cand_name, cand_path)),
        isolated=isolated_of(cand_trace, cand_name),
        taps=taps,
        mapping=known,
        replay=str(two.provenance.get("replay", "forced")),
        force=force,
        progress=progress,
    )
    return told_apart(found, (one, two, emulated), rules, mapping=known)
