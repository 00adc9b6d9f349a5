"""The trusted execution: the plain torch run of each cache policy, and the training of checkpoints."""

from __future__ import annotations

#: Name -> import string of the class, made without arguments.
REFERENCES: dict[str, str] = {"torch": "parity.reference.torch_run:TorchTarget"}

#: The same for a module of the user's (`ModuleCase`).
MODULE_REFERENCES: dict[str, str] = {"torch": "parity.reference.module:ModuleReference"}
