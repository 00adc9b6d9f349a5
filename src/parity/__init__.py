"""Proves that a ported neural network still computes what the original computes.

>>> import parity
>>> case = {"model": "klm-tiny", "weights": "random:0", "scenario": "one", "steps": 2, "tol": "fp32"}
>>> result = parity.run(ref="torch", cand=["segmented"], out="out", **case)
>>> result.exit_code
0
>>> found = result["segmented"]
>>> found.verdict, f"{found.coverage.share:.0%}", found.first, found.culprits
('parity', '100%', None, ())
>>> row = found.rows()[-1]
>>> row.tap, row.step, row.status, row.ratio < 1
('logits', 2, 'pass', True)

Everything that was held against each other lies in the trace, and can be held against each other again.

>>> parity.Trace("out/trace.h5")["torch"]["logits", 2].shape
(1, 1, 512)
>>> again = parity.compare_traces("out/trace.h5", "out/trace.h5", cand_run="segmented", tol="exact")
>>> again.verdict, again.first is not None
('divergence', True)

Everything that the command line does is a call here, with the same words. Names are loaded when they are
first used: importing `parity` costs neither torch nor numpy.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .auditing import audit as audit
    from .baselines import baseline_check as baseline_check
    from .baselines import baseline_save as baseline_save
    from .bisecting import Bisection as Bisection
    from .bisecting import bisect as bisect
    from .budgeting import budget as budget
    from .calibrating import calibrate as calibrate
    from .capsules import capsule as capsule
    from .compiling import compile_order as compile_order
    from .driver import run as run
    from .evaluating import Evaluations as Evaluations
    from .evaluating import evaluate as evaluate
    from .explaining import explain as explain
    from .harness.comparison import Comparison as Comparison
    from .harness.comparison import Result as Result
    from .harness.errors import CandidateError as CandidateError
    from .harness.errors import InconclusiveError as InconclusiveError
    from .harness.errors import ParityError as ParityError
    from .harness.errors import UserError as UserError
    from .harness.trace import Trace as Trace
    from .harness.trace import TraceWriter as TraceWriter
    from .harness.tracer import compare as compare
    from .harness.tracer import executing as executing
    from .harness.tracer import running as running
    from .harness.tracer import step as step
    from .harness.tracer import tap_modules as tap_modules
    from .harness.tracer import trace_tensor as trace_tensor
    from .importing import import_dump as import_dump
    from .invariance import invariants as invariants
    from .judging import judge as judge
    from .powering import power as power
    from .seaming import seams as seams
    from .selftesting import selftest as selftest
    from .stages import export as export
    from .stages import prefill as prefill
    from .stages import record as record
    from .stored import compare_traces as compare_traces
    from .weighing import weights as weights

_NAMES = {
    "run": ".driver",
    "seams": ".seaming",
    "invariants": ".invariance",
    "bisect": ".bisecting",
    "weights": ".weighing",
    "budget": ".budgeting",
    "evaluate": ".evaluating",
    "explain": ".explaining",
    "compare_traces": ".stored",
    "judge": ".judging",
    "calibrate": ".calibrating",
    "audit": ".auditing",
    "power": ".powering",
    "baseline_check": ".baselines",
    "baseline_save": ".baselines",
    "capsule": ".capsules",
    "record": ".stages",
    "prefill": ".stages",
    "export": ".stages",
    "import_dump": ".importing",
    "selftest": ".selftesting",
    "compile_order": ".compiling",
    "Bisection": ".bisecting",
    "Evaluations": ".evaluating",
    "Comparison": ".harness.comparison",
    "Result": ".harness.comparison",
    "ParityError": ".harness.errors",
    "UserError": ".harness.errors",
    "CandidateError": ".harness.errors",
    "InconclusiveError": ".harness.errors",
    "Trace": ".harness.trace",
    "TraceWriter": ".harness.trace",
    "running": ".harness.tracer",
    "executing": ".harness.tracer",
    "trace_tensor": ".harness.tracer",
    "compare": ".harness.tracer",
    "step": ".harness.tracer",
    "tap_modules": ".harness.tracer",
}

__all__ = [*_NAMES]


def __getattr__(name: str) -> Any:
    if name not in _NAMES:
        raise AttributeError(f"module 'parity' has no attribute {name!r}")
    value = getattr(import_module(_NAMES[name], __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *_NAMES])
