"""What a person asks the compiler for: the options of `parity compile`, with their defaults."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path

from parity.harness.errors import UserError, did_you_mean
from parity.targets.sophgo.compile.chips import CHIPS, Chip, Mode, chip_named, mode_for

from ..request import DEFAULT_MODEL, DEFAULT_SCENARIO

#: The number format that a chip was made for, where no `--mode` says otherwise.
DEFAULT_MODES = {"cvi": "bf16", "bm": "f16"}
ASCENDS = ("ascend310b", "ascend910b")


@dataclass(frozen=True)
class Order:
    """One field per option; `files` are ONNX files of the user's, `modes` a mode per glob of names."""

    chip: str
    files: tuple[Path, ...] = ()
    model: str | None = None
    weights: str | None = None
    mode: str | None = None
    modes: Mapping[str, str] = field(default_factory=dict)
    group_size: int | None = None
    segments: str | None = None
    window: int | None = None
    masked: bool = False
    tapped: bool = False
    calibration: Path | None = None
    calibrator: str | None = None
    qtable: Path | None = None
    scenario: str | None = None
    samples: tuple[Path, ...] = ()
    out: Path | None = None
    combine: bool = False
    num_device: int = 1
    strict: bool = False
    dry_run: bool = False

    def __post_init__(self) -> None:
        if self.num_device != 1:
            raise UserError(
                f"num_device={self.num_device}: several devices are not simulated here, so nothing could be "
                "held against them; compile for 1"
            )
        if self.files and (self.model or self.weights or self.window or self.masked or self.tapped):
            raise UserError("model: ONNX files are compiled as they are; leave out the options of a model")
        if self.samples and not self.files:
            raise UserError("samples: belong to ONNX files; a model is calibrated on --scenario")
        if self.calibration is not None and (self.calibrator is not None or self.samples):
            raise UserError(
                f"calibration={str(self.calibration)!r}: is a table already; leave out --calibrator and "
                "--samples"
            )
        if self.window is not None and self.window < 1:
            raise UserError(f"window={self.window}: must be at least 1")
        if self.ascend:
            self._check_ascend()
            return
        row = self.row
        for mode in filter(None, (self.mode, *self.modes.values())):
            mode_for(row, mode)

    @property
    def ascend(self) -> bool:
        """Whether the chip is of another maker, whose compiler only gets its lines written."""
        return self.chip.lower().startswith("ascend")

    @property
    def row(self) -> Chip:
        """The chip; UserError for an unknown one."""
        if self.chip not in CHIPS:
            raise UserError(f"chip={self.chip!r}: unknown. {did_you_mean(self.chip, [*CHIPS, *ASCENDS])}")
        return chip_named(self.chip)

    @property
    def model_name(self) -> str:
        """The model row."""
        return self.model or DEFAULT_MODEL

    @property
    def scenario_name(self) -> str:
        """Where the activations for int8 come from."""
        return self.scenario or DEFAULT_SCENARIO

    def _check_ascend(self) -> None:
        if not self.dry_run:
            raise UserError(
                f"chip={self.chip!r}: its compiler does not run here; --dry-run writes the lines for it"
            )
        if self.modes:
            raise UserError("segment_mode: atc has one precision mode per line; leave it out, use --mode")
        others = {**self._of_calibration(), "qtable": self.qtable, "group_size": self.group_size}
        for name, value in {**others, "combine": self.combine}.items():
            if value:
                raise UserError(f"{name}={str(value)!r}: belongs to Sophgo's compiler; leave it out")

    def modes_of(self, names: Sequence[str]) -> dict[str, Mode]:
        """Name -> mode. UserError for a glob that matches none of them, or a mode that the chip has not."""
        common = self.mode or self._default_mode()
        chosen = dict.fromkeys(names, common)
        for glob, mode in self.modes.items():
            matched = [name for name in names if fnmatchcase(name, glob)]
            if not matched:
                raise UserError(f"segment_mode={glob}={mode}: matches none. {did_you_mean(glob, names)}")
            chosen |= dict.fromkeys(matched, mode)
        modes = {name: mode_for(self.row, mode) for name, mode in chosen.items()}
        self._check_used(modes)
        return modes

    def _check_used(self, modes: Mapping[str, Mode]) -> None:
        """UserError for what was given and none of the modes takes."""
        said = ", ".join(sorted({mode.name for mode in modes.values()}))
        if not any(mode.calibrated for mode in modes.values()):
            for name, value in self._of_calibration().items():
                raise UserError(f"{name}={value!r}: {said} needs no calibration; leave it out, or take int8")
        if self.group_size is not None and not any(mode.group_size for mode in modes.values()):
            raise UserError(
                f"group_size={self.group_size}: {said} has no groups of weights; leave it out, or take w8* "
                "or w4*"
            )

    def _of_calibration(self) -> dict[str, str]:
        """Options that were given and only a calibration reads."""
        given: dict[str, str] = {}
        if self.calibration is not None:
            given["calibration"] = str(self.calibration)
        if self.calibrator is not None:
            given["calibrator"] = self.calibrator
        if self.samples:
            given["samples"] = str(self.samples[0])
        return given

    def _default_mode(self) -> str:
        wanted = DEFAULT_MODES[self.row.family]
        return wanted if wanted in self.row.modes else self.row.modes[0]


def parse_modes(texts: Sequence[str]) -> dict[str, str]:
    """`seg_head=int8` ... -> {"seg_head": "int8"}; UserError for what is not so written."""
    modes = {}
    for text in texts:
        glob, equals, mode = text.partition("=")
        if not (glob and equals and mode):
            raise UserError(f"segment_mode={text!r}: write GLOB=MODE, for example seg_head=int8")
        modes[glob] = mode
    return modes
