"""KLM, the Keyboard LM: a character language model with grouped key/value heads."""

from .config import ROWS as ROWS
from .config import KLMConfig as KLMConfig
from .model import KLMModel as KLMModel
from .model import find as find
