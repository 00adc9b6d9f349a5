"""GPT-BigCode: the family of StarCoder and WizardCoder, one key/value head and learned positions."""

from .config import ROWS as ROWS
from .config import GPTBigCodeConfig as GPTBigCodeConfig
from .config import from_huggingface as from_huggingface
from .config import to_huggingface as to_huggingface
