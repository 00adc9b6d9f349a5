"""`parity compile`: a model's segments, or anyone's ONNX files, for a chip."""

from __future__ import annotations

from .order import Order as Order
from .run import Compiled as Compiled
from .run import compile_order as compile_order
