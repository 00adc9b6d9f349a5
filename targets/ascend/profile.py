"""The arithmetic a candidate was made in, as far as its environment and command line tell.

None of it stands in a dump, and all of it changes numbers; a tolerance chosen without it is a guess.
Source of the switches: MindIE's FAQ on determinism and the ATB and `atc` manuals.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from parity.harness.errors import UserError, did_you_mean

from .chips import Chip, chip_of
from .lint import PRECISION_MODES


@dataclass(frozen=True)
class Switch:
    """An environment variable that changes results, and the value that makes them repeatable."""

    name: str
    repeatable: str | None
    effect: str


SWITCHES = (
    Switch("LCCL_DETERMINISTIC", "1", "order in which LCCL adds the ranks' partial sums"),
    Switch("HCCL_DETERMINISTIC", "true", "order in which HCCL adds the ranks' partial sums"),
    Switch("ATB_MATMUL_SHUFFLE_K_ENABLE", "0", "rows of a batch are summed over K in different orders"),
    Switch("CLOSE_MATMUL_K_SHIFT", "1", "the same, older name"),
    Switch("ATB_LLM_LCOC_ENABLE", "0", "communication overlapped with computing, in other pieces"),
    Switch("HCCL_OP_EXPANSION_MODE", None, "AIV adds on the vector cores, in no fixed order; leave it unset"),
    Switch("INF_NAN_MODE_ENABLE", None, "1: overflow gives Inf and NaN; otherwise fp16 stops at 65504"),
    Switch("INF_NAN_MODE_FORCE_DISABLE", None, "1: overflow stops at 65504 even where Inf is the default"),
)
#: Names of every environment variable worth keeping beside a dump.
RECORDED = tuple(switch.name for switch in SWITCHES)

_KEYS = (
    "format",
    "chip",
    "cann",
    "precision_mode",
    "environment",
    "atc",
    "model",
    "sha256",
    "deq_scale",
    "rounding",
)
ROUNDINGS = ("half-even", "half-away", "trunc", "unknown")
DEQ_SCALES = ("float32", "fp19", "fp16", "unknown")


@dataclass(frozen=True)
class ArithmeticProfile:
    """What is known of a candidate's arithmetic; `unknown` is said, never guessed.

    overflow: `saturates` (fp16 stops at 65504, where torch has Inf) or `inf`. order: `fixed` when every
    switch that reorders sums is set to its repeatable value, else `varies`. rounding is that of quantizers,
    deq_scale the width in which int32 sums are scaled back (fp19 drops 13 bits of the scale's mantissa).
    """

    chip: str = "unknown"
    precision_mode: str = "unknown"
    overflow: str = "unknown"
    order: str = "unknown"
    rounding: str = "unknown"
    deq_scale: str = "unknown"
    switches: Mapping[str, str] = field(default_factory=dict)
    details: Mapping[str, Any] = field(default_factory=dict)

    def facts(self) -> dict[str, Any]:
        """As it is kept in the provenance of a run."""
        return asdict(self)

    @property
    def unknown(self) -> tuple[str, ...]:
        """The fields that nothing told."""
        return tuple(name for name, value in asdict(self).items() if value == "unknown")


def profile_of(said: Mapping[str, Any]) -> ArithmeticProfile:
    """The profile from what was noted on the board: chip, precision_mode, environment ...

    `said` is the content of `ascend.json`, which the lines of `atc_lines` write. UserError for unknown keys
    and words.
    """
    for key in said:
        if key not in _KEYS:
            raise UserError(f"manifest key={key!r}: is unknown. {did_you_mean(str(key), _KEYS)}")
    if said.get("format", "parity-ascend") != "parity-ascend":
        raise UserError(f"format={said['format']!r}: the manifest of an Ascend dump says 'parity-ascend'")
    switches = _switches(said.get("environment"))
    mode = _one_of("precision_mode", said, tuple(PRECISION_MODES))
    named = said.get("chip")
    chip, soc = chip_of(str(named)) if named is not None else (None, "unknown")
    return ArithmeticProfile(
        soc,
        mode,
        _overflow(chip, switches),
        _order(switches),
        _one_of("rounding", said, ROUNDINGS),
        _one_of("deq_scale", said, DEQ_SCALES),
        switches or {},
        {key: said[key] for key in ("cann", "atc", "model", "sha256") if key in said},
    )


def _one_of(key: str, said: Mapping[str, Any], options: tuple[str, ...]) -> str:
    word = said.get(key, "unknown")
    if word != "unknown" and word not in options:
        raise UserError(f"{key}={word!r}: is unknown. {did_you_mean(str(word), options)}")
    return str(word)


def _switches(environment: Any) -> dict[str, str] | None:
    """The recorded variables; None where the environment was not noted at all."""
    if environment is None:
        return None
    if not isinstance(environment, dict) or not all(isinstance(value, str) for value in environment.values()):
        raise UserError(f"environment={environment!r:.60}: should be an object of texts, name -> value")
    return {name: environment[name] for name in RECORDED if name in environment}


def _overflow(chip: Chip | None, switches: Mapping[str, str] | None) -> str:
    if chip is None or switches is None:
        return "unknown"
    if chip.always_saturates or switches.get("INF_NAN_MODE_FORCE_DISABLE") == "1":
        return "saturates"
    if switches.get("INF_NAN_MODE_ENABLE") == "1":
        return "inf"
    return "saturates" if chip.name == "ascend310b" else "unknown"


def _order(switches: Mapping[str, str] | None) -> str:
    """`fixed` if each switch has its repeatable value; the K shift has two names, either of which will do."""
    if switches is None:
        return "unknown"
    kept = {switch.name for switch in SWITCHES if switches.get(switch.name) == switch.repeatable}
    one_of_two = {"ATB_MATMUL_SHUFFLE_K_ENABLE", "CLOSE_MATMUL_K_SHIFT"} & kept
    others = {"LCCL_DETERMINISTIC", "HCCL_DETERMINISTIC", "ATB_LLM_LCOC_ENABLE"} <= kept
    vector = switches.get("HCCL_OP_EXPANSION_MODE") == "AIV"
    return "fixed" if one_of_two and others and not vector else "varies"
