"""`module:PKG.MOD:FACTORY`: another `nn.Module` that claims to compute the same."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from parity.harness.arrays import checked_device
from parity.harness.case import Case, ModuleCase
from parity.harness.dtypes import dtype_of_word
from parity.harness.errors import CandidateError, UserError
from parity.harness.imports import build_module, load_factory
from parity.harness.inputs import check_names
from parity.harness.mapping import TapMap
from parity.harness.module_copy import switched_off
from parity.harness.module_session import ModuleSession, Original, dtype_of, prepared, tensors
from parity.harness.outputs import is_output
from parity.harness.progress import Progress
from parity.harness.target import Facts, Options, Unobserved

from .module_lm import ModuleLMSession, lm_session
from .module_weights import compare_weights, share_weights

if TYPE_CHECKING:
    from parity.harness.target import Session
    from parity.harness.values import Values


@dataclass
class ModuleTarget:
    """Taken as its factory built it; `share` loads the reference's weights into it first, strictly.

    `mapping` names the candidate's axes where a language model is held against ours.
    """

    name: str = "module"
    summary: str = "module:PKG.MOD:FACTORY, any nn.Module that claims to compute the same"

    def missing(self) -> str | None:
        """Always there: torch is a base dependency."""
        return None

    def check(self, arg: str, options: Options) -> None:
        """A factory that is not named or cannot be imported, unknown number formats and devices."""
        if not arg:
            raise UserError("cand='module': name a factory, as module:mypkg.port:build")
        load_factory(arg)
        dtype_of_word(options.dtype or "fp32")
        checked_device(options.device)

    def prepare(
        self,
        case: Case | ModuleCase,
        *,
        arg: str,
        options: Options,
        reference: Values | None,
        workdir: Path,
        progress: Progress,
    ) -> Session:
        """Build it, hold its weights against the reference's, and say what is found."""
        dtype = None if options.dtype is None else dtype_of_word(options.dtype)
        device = checked_device(options.device)
        built = build_module(arg, seed=options.seed)
        state = case.module.state_dict() if isinstance(case, ModuleCase) else case.state
        module, said = prepared(built, dtype=None, device="cpu", own=options.share_weights)
        left = switched_off(built)
        said = tuple(line for line in said if line != left)
        if options.share_weights:
            said = (*said, *share_weights(module, state, arg))
        details: dict[str, Any] = {
            "device": device,
            "threads": torch.get_num_threads(),
            "torch": torch.__version__,
            "weights": compare_weights(module.state_dict(), state),
        }
        if left:
            details["warnings"] = (f"candidate: {left}",)
        module, cast = prepared(module, dtype=dtype, device=device)
        facts = Facts(
            dtype=dtype or dtype_of(module), layout="call", substitutions=(*said, *cast), details=details
        )
        if isinstance(case, ModuleCase):
            check_names(module, case.inputs)
            inputs = tensors(module, case.inputs, dtype=dtype, device=device)
            original = Original.of(case, options.mapping, module)
            session = ModuleSession(module, inputs, facts, CandidateError, options.seed, original)
            return with_unobserved(session, session.shown(), reference, options.mapping)
        lm, shown = lm_session(case, module, facts, device, options.mapping)
        return with_unobserved(lm, shown, reference, options.mapping)


def with_unobserved(
    session: ModuleSession | ModuleLMSession, shown: Iterable[str], reference: Values | None, mapping: TapMap
) -> Session:
    """Say which of the reference's taps another implementation does not have; its outputs are promised."""
    if reference is not None:
        known = {*mapping.names(shown), "ids", "logits"}
        lacking = [tap for tap in reference.run.taps if tap not in known and not is_output(tap)]
        reason = "the candidate shows nothing of that name; a map file can declare its counterpart"
        unobserved = tuple(Unobserved(tap, reason) for tap in lacking)
        session.facts = replace(session.facts, unobserved=(*session.facts.unobserved, *unobserved))
    return session
