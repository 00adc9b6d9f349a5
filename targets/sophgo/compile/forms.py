"""What a rule of the linter gives back."""

from __future__ import annotations

from dataclasses import dataclass

from onnx import NodeProto


@dataclass(frozen=True)
class Found:
    """A form at a node: how bad it is (`abort`, `wrong`, `note`), what happens, what to write instead."""

    node: NodeProto
    severity: str
    what: str
    rewrite: str
