"""LLaMA: RMSNorm, rotary positions by halves, grouped key/value heads, a gated MLP."""

from .config import ROWS as ROWS
from .config import LlamaConfig as LlamaConfig
from .config import from_huggingface as from_huggingface
from .config import to_huggingface as to_huggingface
