"""What must hold of a run whatever a reference computes: such faults need no second opinion."""

from __future__ import annotations
