"""What the compiler prints when it dies, in one sentence: the operator by our name, its reason, the log."""

from __future__ import annotations

import json
import re
import signal
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import onnx

from parity.harness.errors import CandidateError, ParityError, UserError

from .finding import Finding
from .mlir import Graph, unescape
from .process import Ended, ending

_STACK = re.compile(
    r"^ *#\d+ 0x|^PLEASE submit a bug|^Stack dump:|^\d+\.\t|^Obtained \d+ stack frames"
    r"|\(\S*\+0x[0-9a-f]+\) \[0x"
)
_UNREACHABLE = re.compile(r"UNREACHABLE executed at \S*?([\w/]+\.(?:cpp|h)):(\d+)")
_ASSERT_AT = re.compile(r"ASSERT executed at\s*\S*?([\w/]+\.(?:cpp|h)):(\d+)")
_ASSERT_INFO = re.compile(r"ASSERT INFO:\s*(.+)")
_C_ASSERT = re.compile(r"Assertion [`\"](.+?)['\"] failed")
_BACKEND = re.compile(r"ERROR: ASSERT \S*?(\w+\.c): (\w+): \d+: (.+)")
_MLIR_ERROR = re.compile(r"error: (.+)")
_KERNEL = re.compile(r"ppl jit call failed!\s*Error: (.+?)!*$", re.MULTILINE)
_OPERATOR = re.compile(r'^(->\s*)?%\S+ = "(\w+\.\w+)"\(.*loc\("((?:[^"\\]|\\.)*)"\)')
_NODE = re.compile(r"^PARITY-NODE (\{.*\})$", re.MULTILINE)
#: The last lines before the end, in which an operator is looked for.
_TAIL = 40


@dataclass(frozen=True)
class Known:
    """What is known of a graph when its compilation fails: its Top form, and the names of what is in it."""

    top: Graph | None = None
    onnx_of: Mapping[str, str] = field(default_factory=dict)
    taps: Mapping[str, str] = field(default_factory=dict)
    findings: Sequence[Finding] = ()

    def named(self, tensor: str) -> str:
        """A tensor's tap or ONNX value, with its own name behind."""
        value = self.onnx_of.get(tensor, tensor)
        tap = self.taps.get(value)
        return f"{tap} ({tensor})" if tap and tap != tensor else tensor


def compiler(where: str, stage: str, ended: Ended, log: Path, known: Known) -> ParityError:
    """The sentence for a stage of the compiler that died."""
    lines = [line for line in ended.output.splitlines() if line.strip() and not _STACK.search(line)]
    operator = _operator(lines[-_TAIL:], known)
    said = reason(lines) or _last_words(ended)
    hint = _hint(operator, known)
    at = f" at {operator[0]} {known.named(operator[1])}" if operator else ""
    return CandidateError(f"{where}: the compiler failed in {stage}{at}: {said}{hint}; the whole log: {log}")


def converter(where: str, graph: onnx.ModelProto, ended: Ended, log: Path, known: Known) -> ParityError:
    """The sentence for a graph that the converter does not take."""
    last = last_error(ended)
    if unsupported := re.search(r"Op not support:\{(.+)\}", last):
        return CandidateError(f"{where}: {_unsupported(unsupported[1], graph, known)}; the whole log: {log}")
    if "dynamic dim" in last:
        return UserError(f"{where}: the graph has open sizes; export it with fixed shapes (the log: {log})")
    node = _NODE.search(ended.output)
    at = ""
    if node:
        told = json.loads(node[1])
        at = f" at {told['op']} {known.named(told['output'])}"
    said, hint = last or _last_words(ended), suspect(known.findings)
    return CandidateError(f"{where}: the converter failed{at}: {said}{hint}; the whole log: {log}")


def last_error(ended: Ended) -> str:
    """The last line with which a Python program gave up."""
    lines = (line.strip() for line in reversed(ended.output.splitlines()))
    return next((line for line in lines if re.match(r"[\w.]*(Error|Exception|Exit)\b", line)), "")


def reason(lines: Sequence[str]) -> str:
    """The tool's own reason among the lines of a log, without paths of the machine that built it."""
    text = "\n".join(lines)
    if found := _KERNEL.search(text):
        lacking = re.findall(r"(\w[\w+.-]*): (?:command )?not found", text)
        told = f"this machine has no {' and no '.join(lacking)}" if lacking else found[1]
        return f"a kernel could not be built ({told})"
    if found := _UNREACHABLE.search(text):
        before = text[: found.start()].rstrip().rpartition("\n")[2]
        said = "" if before.startswith(("%", "[", "$", "->")) else f"{before.rstrip('.!')}, "
        return f"{said}{_file(found[1])}:{found[2]}"
    if found := _ASSERT_AT.search(text):
        info = _ASSERT_INFO.search(text)
        return f"{info[1].strip() if info else 'assertion failed'}, {_file(found[1])}:{found[2]}"
    if found := _BACKEND.search(text):
        return f"{found[2]}: {found[3].strip()} does not hold ({found[1]})"
    if found := _C_ASSERT.search(text):
        return f"{found[1]} does not hold"
    errors = _MLIR_ERROR.findall(text)
    return errors[0].strip() if errors else ""


def _file(path: str) -> str:
    """`CV18xx/RMSNorm.cpp` of a longer path."""
    parts = path.split("/")
    return "/".join(parts[-2:]) if len(parts) > 1 and parts[-2][:1].isupper() else parts[-1]


def _last_words(ended: Ended) -> str:
    if ended.status == -signal.SIGKILL:
        return "it was killed from outside, as happens where memory runs out"
    return f"it said nothing and ended ({ending(ended.status)})"


def _operator(lines: Sequence[str], known: Known) -> tuple[str, str] | None:
    """Kind and tensor of the operator that a log ends at, or that the source file in it is about."""
    found = [match for match in map(_OPERATOR.match, lines) if match]
    marked = [match for match in found if match[1]] or found
    if marked:
        return marked[-1][2].partition(".")[2], unescape(marked[-1][3])
    about = re.search(r"(\w+)\.cpp:\d+", reason(lines))
    if about and known.top is not None:
        names = [op.name for op in known.top.ops if op.kind == f"top.{about[1]}"]
        if names:
            return about[1], names[0]
    return None


def _hint(operator: tuple[str, str] | None, known: Known) -> str:
    """What the linter knew: the rewrite for this operator, or the forms that it found elsewhere."""
    bad = [finding for finding in known.findings if finding.severity == "abort"]
    value = known.onnx_of.get(operator[1]) if operator else None
    fits = [finding for finding in bad if finding.value == value]
    if fits:
        return f"; {fits[0].rewrite}"
    return suspect(bad) if operator is None or len(bad) == 1 else ""


def suspect(findings: Sequence[Finding]) -> str:
    """The first form that was known to abort, as the tail of a sentence that does not name it."""
    bad = [finding for finding in findings if finding.severity == "abort"]
    if not bad:
        return ""
    more = f" (and {len(bad) - 1} more)" if len(bad) > 1 else ""
    return f"; {str(bad[0]).removeprefix('abort: ')}{more}"


def _unsupported(names: str, graph: onnx.ModelProto, known: Known) -> str:
    ops = re.findall(r"'(\w+)'", names)
    nodes = [node for node in graph.graph.node if node.op_type in ops]
    places = ", ".join(known.named(node.output[0]) for node in nodes[:4])
    return f"the converter has no operator {' and '.join(ops)}" + (f" (at {places})" if places else "")
