"""What was found of what was planted: per run, per family, and against the aims."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from statistics import median
from typing import Any

import pytest

from .lab import Lab, Ran
from .plant import Harmless, Plant, part_of
from .rivals import Said

#: Shares that a catalogue must reach (of what lies above the floor).
AIMS = {"detected": 1.0, "exact": 0.95, "explained": 0.70}


@dataclass(frozen=True)
class Outcome:
    """One planted bug in one target.

    `size` is known where nothing was detected: how far the bug moves the target from its healthy self, as a
    multiple of what is allowed. `tap`, `step` are where it was said to be born, `why` what was explained.
    """

    name: str
    family: str
    cand: str
    verdict: str
    expected: str
    tap: str = ""
    step: int = 0
    detected: bool = False
    exact: bool = False
    part: bool = False
    explained: bool = False
    why: str = ""
    ratio: float | None = None
    size: float | None = None
    seconds: float = 0.0
    error: str = ""
    others: Mapping[str, Said] = field(default_factory=dict)

    @property
    def undetectable(self) -> bool:
        """Smaller than what the number format explains, so that nobody can tell it from rounding."""
        return not self.detected and self.size is not None and 0.0 < self.size < 1.0

    @property
    def idle(self) -> bool:
        """Changes no bit in this target: nothing is planted there."""
        return not self.detected and self.size == 0.0

    @property
    def missed(self) -> bool:
        """Above the floor and not detected."""
        return not (self.detected or self.undetectable or self.idle)


@dataclass(frozen=True)
class Alarm:
    """One harmless change in one target; `false` where it was flagged."""

    name: str
    family: str
    cand: str
    verdict: str
    false: bool
    worst: float | None = None
    said: str = ""
    seconds: float = 0.0
    others: Mapping[str, Said] = field(default_factory=dict)


@dataclass(frozen=True)
class Rule:
    """One way of judging: shares of the bugs above the floor, runs flagged wrongly, bugs under it noticed."""

    detected: float
    located: float
    false_alarms: int
    under: int = 0


@dataclass(frozen=True)
class Score:
    """Everything that was tried."""

    bugs: tuple[Outcome, ...] = ()
    harmless: tuple[Alarm, ...] = ()
    facts: dict[str, Any] = field(default_factory=dict)

    @property
    def above(self) -> list[Outcome]:
        """Bugs that can be told from rounding."""
        return [outcome for outcome in self.bugs if outcome.detected or outcome.missed]

    def share(self, what: str) -> float:
        """Of the bugs above the floor: `detected`, `exact`, `part` or `explained`."""
        return sum(getattr(outcome, what) for outcome in self.above) / max(len(self.above), 1)

    @property
    def false_alarms(self) -> list[Alarm]:
        """Harmless changes that were flagged."""
        return [alarm for alarm in self.harmless if alarm.false]

    def missed_aims(self) -> list[str]:
        """Sentences; none where every aim is reached."""
        said = [
            f"{what}: {self.share(what):.1%}, should be at least {aim:.0%}"
            for what, aim in AIMS.items()
            if self.above and self.share(what) < aim
        ]
        if self.false_alarms:
            said.append(f"false alarms: {len(self.false_alarms)}, should be none")
        return said

    def rules(self) -> dict[str, Rule]:
        """Our own verdicts and other tools' rules, over the same traces."""
        found = {"parity": Rule(self.share("detected"), self.share("exact"), len(self.false_alarms))}
        bugs = [outcome for outcome in self.above if outcome.others]
        for name in dict.fromkeys(name for outcome in bugs for name in outcome.others):
            said = [(outcome.others[name], outcome.expected.partition("@")[0]) for outcome in bugs]
            found[name] = Rule(
                sum(one.objects for one, _ in said) / len(said),
                sum(one.objects and one.first == tap for one, tap in said) / len(said),
                sum(alarm.others[name].objects for alarm in self.harmless if alarm.others),
                sum(one.others[name].objects for one in self.bugs if one.undetectable and one.others),
            )
        return found

    def families(self) -> dict[str, list[Outcome]]:
        """Bugs by family, in the order of the catalogue."""
        found: dict[str, list[Outcome]] = {}
        for outcome in self.bugs:
            found.setdefault(outcome.family, []).append(outcome)
        return found

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        seconds = [outcome.seconds for outcome in self.bugs]
        return {
            "planted": len({outcome.name for outcome in self.bugs}),
            "runs": len(self.bugs),
            "undetectable": sum(outcome.undetectable for outcome in self.bugs),
            "idle": sum(outcome.idle for outcome in self.bugs),
            **{what: self.share(what) for what in ("detected", "exact", "part", "explained")},
            "harmless": len({alarm.name for alarm in self.harmless}),
            "harmless_runs": len(self.harmless),
            "false_alarms": len(self.false_alarms),
            "seconds_median": median(seconds) if seconds else None,
            "missed_aims": self.missed_aims(),
            "rules": {name: asdict(rule) for name, rule in self.rules().items()},
            "facts": self.facts,
            "bugs": [_shown(outcome) for outcome in self.bugs],
            "changes": [_shown(alarm) for alarm in self.harmless],
        }


def _shown(item: Outcome | Alarm) -> dict[str, Any]:
    data = asdict(item)
    return {key: None if isinstance(v, float) and not math.isfinite(v) else v for key, v in data.items()}


def judge(plant: Plant, cand: str, lab: Lab) -> Outcome:
    """Plant it, look at what is said, and measure it where nothing is said."""
    birth = plant.birth(cand)
    expected = f"{birth.tap}@{birth.step}"
    case = plant.case(cand)
    ran = lab.planted(case, cand, plant.apply)
    about = {"name": plant.name, "family": plant.family, "cand": cand, "expected": expected}
    about |= {"others": ran.others}
    if ran.verdict != "divergence":
        size = lab.size(case, cand, plant.apply) if ran.verdict == "parity" else None
        return Outcome(
            **about, verdict=ran.verdict, size=size, seconds=ran.seconds, error=_error(ran), ratio=_worst(ran)
        )
    tap, step = _said(ran)
    why = _why(ran, tap)
    return Outcome(
        **about,
        verdict=ran.verdict,
        tap=tap,
        step=step,
        detected=True,
        exact=(tap, step) == (birth.tap, birth.step),
        part=part_of(tap) == part_of(birth.tap),
        explained=bool(plant.says) and all(re.search(word, why, re.IGNORECASE) for word in plant.says),
        why=why,
        ratio=_worst(ran),
        seconds=ran.seconds,
    )


def _said(ran: Ran) -> tuple[str, int]:
    """Where the comparison says that the fault was born: its first culprit."""
    found = ran.comparison
    assert found is not None
    place = found.culprits[0] if found.culprits else found.first
    return ("", 0) if place is None else (place.tap, place.step)


def _why(ran: Ran, tap: str) -> str:
    """The first cause that is named for this tap."""
    assert ran.comparison is not None
    cause = next((cause for cause in ran.comparison.causes if cause.tap == tap), None)
    return "" if cause is None else cause.name


def _worst(ran: Ran) -> float | None:
    worst = None if ran.comparison is None else ran.comparison.worst
    return None if worst is None else worst.ratio


def _error(ran: Ran) -> str:
    found = ran.comparison
    return (
        ran.error if found is None else found.failure or found.refused or found.unsound or found.inconclusive
    )


def tried(change: Harmless, cand: str, lab: Lab) -> Alarm:
    """Run a harmless change; anything but parity is a false alarm. One that never ran proves nothing."""
    ran = lab.planted(change.setting, cand, change.apply, change.options)
    said = _error(ran)
    if ran.comparison is not None and ran.comparison.first is not None:
        first = ran.comparison.first
        said = f"{first.tap} at step {first.step}: {first.slice}"
    if ran.idle:
        said = f"never ran: {', '.join(ran.idle)}"
    false = ran.verdict != "parity" or bool(ran.idle)
    about = (change.name, change.family, cand, ran.verdict, false, _worst(ran))
    return Alarm(*about, said=said, seconds=ran.seconds, others=ran.others)


def scored(bugs: Iterable[Outcome], harmless: Iterable[Alarm], **facts: Any) -> Score:
    """All of it."""
    return Score(tuple(bugs), tuple(harmless), facts)


def costs(lab: Lab) -> dict[str, Any]:
    """What diagnosis cost: explaining in every run that departed, isolation on somebody's module."""
    found = {"forwards of the reference that isolation takes": isolation_forwards(lab)}
    if lab.explaining:
        found["milliseconds of explaining, median"] = median(lab.explaining)
    return found


def isolation_forwards(lab: Lab) -> float:
    """Calls of a whole module, reference or port, while its submodules are isolated."""
    from parity.harness.module_session import ModuleSession

    from .zoo import Encoder

    isolate, forward = ModuleSession._isolate, Encoder.forward
    calls = {"inside": 0, "all": 0}

    def isolated(self: Any, *arguments: Any) -> None:
        before = calls["all"]
        isolate(self, *arguments)
        calls["inside"] = calls["all"] - before

    def called(self: Any, ids: Any) -> Any:
        calls["all"] += 1
        return forward(self, ids)

    def counted(patch: pytest.MonkeyPatch) -> None:
        patch.setattr(ModuleSession, "_isolate", isolated)
        patch.setattr(Encoder, "forward", called)

    lab.planted("zoo:encoder", "module:mutations.zoo:encoder_port", counted)
    return float(calls["inside"])
