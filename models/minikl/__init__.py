"""MiniKL: a small teaching model with rotary pairs, RMSNorm, shared key/value heads and nested batches."""

from .config import ROWS as ROWS
from .config import MiniKLConfig as MiniKLConfig
