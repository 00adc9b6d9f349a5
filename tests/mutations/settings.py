"""The cases that patches are tried on: ours, and modules of other libraries."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent

#: Setting -> options of `parity.run`, small on purpose: what needs a long history has a setting of its own.
SETTINGS: dict[str, dict[str, Any]] = {
    path.stem: {"model": "klm-tiny", "weights": "random:0", "scenario": str(path)}
    for path in sorted((HERE / "scenarios").glob("*.toml"))
}

SETTINGS |= {f"seed-{seed}": {**SETTINGS["brief"], "weights": f"random:{seed}"} for seed in (1, 2, 3)}
SETTINGS |= {
    f"whole-{name}": {**SETTINGS["brief"], "scenario": name}
    for name in ("default", "batch3", "reset", "exact")
}

SETTINGS["chip"] = {**SETTINGS["brief"], "scenario": "exact", "steps": 2}


def setting(name: str) -> Mapping[str, Any]:
    """Options of a setting; `zoo:NAME` is a module of `zoo.py` with its inputs."""
    if not name.startswith("zoo:"):
        return SETTINGS[name]
    from . import zoo

    kind = name.removeprefix("zoo:")
    return {"model": f"mutations.zoo:{kind}", "inputs": zoo.INPUTS[kind]}
