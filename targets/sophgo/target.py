"""`cvi` and `bm1684x`: a model's segments compiled by the real toolchain and run on the chip's simulator."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from parity.harness.case import Case, Wiring
from parity.harness.errors import UserError
from parity.harness.progress import Progress
from parity.harness.segmented import Executor
from parity.harness.target import Facts, Options, Session, Unobserved
from parity.harness.values import Values

from ..onnx.session import CachePlan, assemble, plan_cache
from .asked import LEVELS, Asked, parse_arg

if TYPE_CHECKING:
    from .levels import Level

#: What the compiler says it failed in -> the stage. Every level from `tpu` on runs the whole of it.
STEPS = {"lowering": "quantization", "layout": "code generation", "codegen": "code generation"}

#: Level -> what makes it from the level before.
STAGES = (
    ("onnx", "export"),
    ("top", "conversion"),
    ("tpu", "quantization"),
    ("sim", "code generation"),
    ("tapped", "instrumentation"),
)


@dataclass(frozen=True)
class ChipTarget:
    """`cvi[:CHIP+MODE+LEVEL+...]`, `cvi:DIR`, and the same for `bm1684x`."""

    name: str
    summary: str
    chip: str
    mode: str
    #: Decode steps of a bare command: the BM1684X simulator takes seconds for each.
    steps: int | None = None

    def missing(self) -> str | None:
        """What the toolchain lacks."""
        from .toolchain import why_missing

        return why_missing()

    def check(self, arg: str, options: Options) -> None:
        """Unknown words, modes that the chip has not, files that are not there."""
        self.asked(arg)
        if options.dtype is not None:
            raise UserError(
                f"dtype={options.dtype!r}: a chip's number format is its mode; write {self.name}:{self.mode}"
            )
        if options.segments is not None:
            raise UserError(
                f"segments={options.segments!r}: {self.name} runs all segments; compile some with "
                "`parity compile --segments`"
            )
        if options.device not in (None, "cpu"):
            raise UserError(f"device={options.device!r}: the simulator runs on the cpu; leave it out")

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
        """Export, compile, load; all of it is kept by content, so that a second run begins at once."""
        from .files import file_session
        from .levels import prepare_level

        asked = self.asked(arg)
        if asked.path is not None:
            return file_session(self.name, case, asked, options, reference, workdir / "cache")
        rows = plan_cache(case, masked=asked.masked, reference=reference is not None)
        wiring = case.model.masked_wiring if rows.masked else case.model.wiring
        level = prepare_level(case, asked, wiring, rows, options, reference, workdir / "cache", progress)
        return assemble(case, wiring, level.executor, rows, _facts(case, asked, rows, level), reference)

    def stages(self, arg: str) -> list[tuple[str, str]]:
        """Arguments of the stages that lead to this candidate, and what makes each from the one before."""
        asked = self.asked(arg)
        if asked.path is not None or asked.level != "sim":
            raise UserError(f"stages: {self.name}:{arg} is one stage itself; leave out its path and level")
        more = f"{arg}+" if arg else ""
        return [(f"{more}{level}", makes) for level, makes in STAGES]

    def failed_in(self, failure: str) -> str | None:
        """The stage that a failure of the compiler names itself; None for other failures."""
        said = re.search(r"the compiler failed in (\w+)", failure)
        return STEPS.get(said[1]) if said else None

    def emulation(self, arg: str) -> str | None:
        """The argument of the compiler's interpreter of the same quantized graph; None where it is that."""
        asked = self.asked(arg)
        if asked.path is not None or asked.level not in ("sim", "tapped"):
            return None
        words = [word for word in arg.split("+") if word and word not in LEVELS]
        return "+".join([*words, "tpu"])

    def keep(self, executor: Executor, segments: Sequence[str], folder: Path) -> list[Path]:
        """Tables for `+qtable=FOLDER` that keep every operator of these segments in a float format."""
        from .keeping import write_tables

        return write_tables(executor, segments, folder)

    def asked(self, arg: str) -> Asked:
        """What an argument says."""
        return parse_arg(self.name, arg, chip=self.chip, mode=self.mode)


def _facts(case: Case, asked: Asked, rows: CachePlan, level: Level) -> Facts:
    from .levels import isolated_steps

    hidden = [tap for tap in case.model.taps if _computed(tap, case.model.wiring) and tap not in level.shown]
    return Facts(
        dtype=asked.computed_in,
        layout="window" if case.scenario.policy.window else "static",
        substitutions=level.substitutions,
        unobserved=tuple(Unobserved(tap, level.why_hidden) for tap in hidden),
        details={
            **level.details,
            "chip": asked.chip.name,
            "mode": asked.mode.name,
            "level": asked.level,
            "masked": rows.masked,
            "rows": rows.rows,
        },
        isolated_steps=isolated_steps(case),
    )


def _computed(tap: str, wiring: Wiring) -> bool:
    return wiring.producer(tap) is not None


def cvi() -> ChipTarget:
    """CV18xx: .cvimodel segments."""
    return ChipTarget(
        "cvi",
        "real TPU-MLIR: .cvimodel on the CV18xx simulator; cvi:int8, cvi:tpu, cvi:DIR",
        "cv181x",
        "bf16",
    )


def bm1684x() -> ChipTarget:
    """BM1684X: .bmodel segments; its simulator is some twenty times slower."""
    return ChipTarget(
        "bm1684x",
        "real TPU-MLIR: .bmodel on the BM1684X simulator; bm1684x:int8, bm1684x:w4f16, bm1684x:FILE",
        "bm1684x",
        "f16",
        steps=2,
    )
