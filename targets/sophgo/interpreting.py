"""The compiler's interpreter of the quantized graphs, also where it crashes on one of them.

It ends with a signal on some graphs that the compiler takes. With their taps as outputs such graphs are
fused otherwise, and are often interpreted; that is a substitution, and is said.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from parity.harness.errors import CandidateError

from .compile import Artefact, Interpreter
from .executor import values_at
from .graphs import ChipGraph
from .toolchain import Toolchain

#: Calls before an interpreter is believed: it writes beyond its tensors, and may outlive the first of them.
PROBES = 3

#: Segment -> its graph with what the compiler can hand out, and the artefact of the build that does.
Instrumented = Callable[[str], tuple[ChipGraph, Artefact]]


@dataclass(frozen=True)
class Interpreted:
    """Segment -> its graph, its interpreter, and ONNX value -> tensor; `stand_ins` are sentences."""

    graphs: Mapping[str, ChipGraph]
    players: Mapping[str, Interpreter]
    held: Mapping[str, Mapping[str, str]]
    stand_ins: tuple[str, ...]


def interpreted(
    made: Mapping[str, ChipGraph],
    artefacts: Mapping[str, Artefact],
    instrumented: Instrumented,
    toolchain: Toolchain,
    logs: Path,
) -> Interpreted:
    """An interpreter per segment; CandidateError where neither build of a segment can be interpreted."""
    graphs, players, held, said = dict(made), dict[str, Interpreter](), {}, []
    with ExitStack() as opened:
        for name, clean in artefacts.items():
            try:
                players[name] = opened.enter_context(_probed(toolchain, clean, logs / f"tpu-{name}"))
                held[name] = values_at(clean, "tpu")
            except CandidateError as crash:
                graph, artefact, player = _stand_in(name, crash, instrumented, toolchain, logs)
                players[name] = opened.enter_context(player)
                graphs[name], held[name] = graph, values_at(artefact, "tpu")
                said.append(
                    f"{name}: the compiler's own interpreter crashes on its quantized graph ({crash}); in "
                    "its place stands that of the build whose taps are outputs, which is fused otherwise"
                )
        opened.pop_all()
    return Interpreted(graphs, players, held, tuple(said))


def _stand_in(
    name: str, crash: CandidateError, instrumented: Instrumented, toolchain: Toolchain, logs: Path
) -> tuple[ChipGraph, Artefact, Interpreter]:
    """The instrumented build; where that cannot be had or crashes too, the clean build's own error."""
    try:
        graph, artefact = instrumented(name)
        return graph, artefact, _probed(toolchain, artefact, logs / f"tpu-{name}-tapped")
    except CandidateError as second:
        raise CandidateError(f"{crash}; so it does with its taps as outputs ({second})") from crash


def _probed(toolchain: Toolchain, artefact: Artefact, log: Path) -> Interpreter:
    """An interpreter that has answered: what it crashes on is the graph, whatever is fed."""
    player = Interpreter(toolchain, artefact.tpu, log)
    zeros = {name: np.zeros(shape or (1,), np.float32) for name, shape in player.inputs.items()}
    try:
        for _ in range(PROBES):
            player.call(zeros)
    except BaseException:
        player.close()
        raise
    return player
