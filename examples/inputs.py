"""Writes inputs.npz: seeded token ids for `tinynet`, one array per argument of its forward."""

from __future__ import annotations

import numpy as np

np.savez("inputs.npz", ids=np.random.default_rng(0).integers(0, 100, (2, 12)))
